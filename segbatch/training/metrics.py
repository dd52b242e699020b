"""Metrics of segmentation: a confusion matrix, and what follows from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segbatch.classes import IGNORE_INDEX

Ids = npt.NDArray[np.uint8]


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column): ``counts``, C×C int64.

    Matrices of parts of a dataset, or of several workers, add up: ``a.counts += b.counts``.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: Ids, prediction: Ids) -> None:
        """Count two label maps of one shape; pixels whose truth is the ignore index are left out.

        Raises ``ValueError`` for other shapes, or ids that are no class.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
        known = truth != IGNORE_INDEX
        rows, columns = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        num_classes = len(self.counts)
        if rows.size and max(rows.max(), columns.max()) >= num_classes:
            raise ValueError(
                f"class ids go to {max(rows.max(), columns.max())}, not {num_classes - 1}"
            )
        pairs = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
        self.counts += pairs.reshape(num_classes, num_classes)

    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class; NaN where neither truth nor prediction has it."""
        hit = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        iou = np.full(len(hit), np.nan)
        np.divide(hit, union, out=iou, where=union > 0)
        return iou

    def miou(self) -> float:
        """Mean IoU over the classes that have one; NaN if none has."""
        iou = self.iou()
        present = iou[~np.isnan(iou)]
        return float(present.mean()) if present.size else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of pixels with the right class; NaN without pixels."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")
