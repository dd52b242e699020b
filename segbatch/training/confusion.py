"""Confusion matrix and boundary counts of label maps, and the scores computed from them.

Parts of a dataset, and workers, hand over counts and not scores: counts add up, and the scores of
the sum are those of the whole. A class that is in neither truth nor prediction has no score (NaN,
``null`` in JSON) and is left out of every mean.
"""

from __future__ import annotations

from math import ceil, hypot, isnan, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch.masks.classes import IGNORE_INDEX, Classes

BOUNDARY_TOLERANCE = 0.0075  # of the image's diagonal

Ids = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
ClassScores = npt.NDArray[np.float64]  # (C,)


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column): ``counts``, C×C int64.

    Matrices of parts of a dataset, or of several workers, add up: ``a.counts += b.counts``. The
    scores are those of Long, Shelhamer and Darrell, "Fully convolutional networks for semantic
    segmentation", 2015, section 5.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts: Counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: Ids, prediction: Ids) -> None:
        """Count two label maps of the same shape; pixels whose truth is ignored are left out.

        Raises ``ValueError`` for different shapes, or ids that are no class.
        """
        _check_shapes(truth, prediction)
        known = truth != IGNORE_INDEX
        rows, columns = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        num_classes = len(self.counts)
        if rows.size and max(rows.max(), columns.max()) >= num_classes:
            raise ValueError(
                f"class ids go up to {max(rows.max(), columns.max())}, not {num_classes - 1}"
            )
        pairs = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
        self.counts += pairs.reshape(num_classes, num_classes)

    @property
    def hits(self) -> Counts:
        """Pixels of each class, ``(C,)``, that were predicted as that class."""
        return np.diag(self.counts)

    @property
    def truth(self) -> Counts:
        """Pixels, ``(C,)``, whose truth is the class."""
        pixels: Counts = self.counts.sum(1)
        return pixels

    @property
    def prediction(self) -> Counts:
        """Pixels, ``(C,)``, that were predicted as the class."""
        pixels: Counts = self.counts.sum(0)
        return pixels

    def iou(self) -> ClassScores:
        """Intersection over union of each class, 0 to 1."""
        return _ratio(self.hits, self._union)

    def accuracy(self) -> ClassScores:
        """Share of each class's pixels predicted as that class; 0 where it is only predicted."""
        return np.where(self._union > 0, np.nan_to_num(_ratio(self.hits, self.truth)), np.nan)

    def miou(self) -> float:
        """Mean IoU over the classes."""
        return _mean(self.iou())

    def mean_accuracy(self) -> float:
        """Mean accuracy over the classes."""
        return _mean(self.accuracy())

    def frequency_weighted_iou(self) -> float:
        """Mean IoU over the classes, each weighted by its share of the true pixels."""
        total = self.counts.sum()
        return float(np.nansum(self.iou() * self.truth) / total) if total else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of pixels with the right class."""
        total = self.counts.sum()
        return float(self.hits.sum() / total) if total else float("nan")

    @property
    def _union(self) -> Counts:
        return self.truth + self.prediction - self.hits


class BoundaryCounts:
    """Pixels of class boundaries, true and predicted, and how many have a counterpart nearby.

    ``counts`` is 4×C int64: true boundary pixels, those of them that were found, predicted boundary
    pixels, those of them that are right. These add up as confusion matrices do. A pixel is on the
    boundary of its class if one of its four neighbours is of another class; the image's edge is no
    boundary, and neither is a place where the truth is ignored. Nearby is within 0.75 % of the
    image's diagonal, rounded up to whole pixels.

    Sources: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
    segmentation?", 2013; tolerance and rounding as in the boundary measure of Perazzi et al., "A
    benchmark dataset and evaluation methodology for video object segmentation", 2016.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts: Counts = np.zeros((4, num_classes), np.int64)

    def update(self, truth: Ids, prediction: Ids) -> None:
        """Count the boundaries of two label maps, ``(height, width)``.

        Raises ``ValueError`` for different shapes.
        """
        _check_shapes(truth, prediction)
        radius = ceil(BOUNDARY_TOLERANCE * hypot(*truth.shape))
        width = truth.shape[1]
        known = truth != IGNORE_INDEX
        true, true_ids = _boundary(truth, known)
        predicted, predicted_ids = _boundary(prediction, known)
        for class_id in range(self.counts.shape[1]):
            one, other = true[true_ids == class_id], predicted[predicted_ids == class_id]
            found, right = _near(one, other, width, radius), _near(other, one, width, radius)
            self.counts[:, class_id] += (len(one), found, len(other), right)

    def f_scores(self) -> ClassScores:
        """Harmonic mean of recall and precision of each class's boundary, 0 to 1."""
        true, found, predicted, right = self.counts
        recall = np.nan_to_num(_ratio(found, true))
        precision = np.nan_to_num(_ratio(right, predicted))
        scores = np.nan_to_num(_ratio(2 * precision * recall, precision + recall))
        return np.where(true + predicted > 0, scores, np.nan)

    def mean_f(self) -> float:
        """Mean boundary F-score over the classes."""
        return _mean(self.f_scores())


def all_scores(
    confusion: ConfusionMatrix, boundaries: BoundaryCounts, classes: Classes
) -> dict[str, Any]:
    """All scores as JSON: the overall ones, and those per class by class name.

    ``None`` where there is no score.
    """
    return {
        "miou": number(confusion.miou()),
        "pixel_accuracy": number(confusion.pixel_accuracy()),
        "mean_accuracy": number(confusion.mean_accuracy()),
        "frequency_weighted_iou": number(confusion.frequency_weighted_iou()),
        "boundary_f": number(boundaries.mean_f()),
        "iou": by_class(confusion.iou(), classes),
        "accuracy": by_class(confusion.accuracy(), classes),
        "boundary_f_per_class": by_class(boundaries.f_scores(), classes),
    }


def number(score: float) -> float | None:
    """A score as JSON: ``None`` for NaN."""
    return None if isnan(score) else float(score)


def by_class(scores: ClassScores, classes: Classes) -> dict[str, float | None]:
    """Scores, ``(C,)``, by class name."""
    return dict(zip(classes.names, map(number, scores), strict=True))


def _boundary(label_map: Ids, known: npt.NDArray[np.bool_]) -> tuple[Counts, Ids]:
    """Boundary pixels as positions in the flattened map, ascending, and their class ids."""
    edge = np.zeros(label_map.shape, bool)
    for one, other in (
        ((slice(1, None), slice(None)), (slice(-1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        differ = (label_map[one] != label_map[other]) & known[one] & known[other]
        edge[one] |= differ
        edge[other] |= differ
    positions = np.flatnonzero(edge)
    return positions, label_map.ravel()[positions]


def _near(points: Counts, targets: Counts, width: int, radius: int) -> int:
    """How many of ``points`` have one of ``targets`` within ``radius`` pixels.

    Both are positions in a flattened map of ``width``, ``targets`` ascending. A row of the disc
    around a point is a range of positions; two binary searches tell whether a target is in it.
    """
    waiting = points
    for dy in sorted(range(-radius, radius + 1), key=abs):
        reach = isqrt(radius**2 - dy**2)
        x, row = waiting % width, (waiting // width + dy) * width
        first = np.searchsorted(targets, row + np.maximum(x - reach, 0))
        end = np.searchsorted(targets, row + np.minimum(x + reach, width - 1), side="right")
        waiting = waiting[first == end]
    return len(points) - len(waiting)


def _ratio(part: Counts | ClassScores, whole: Counts | ClassScores) -> ClassScores:
    """``part / whole``, NaN where ``whole`` is 0."""
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean(scores: ClassScores) -> float:
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")


def _check_shapes(truth: Ids, prediction: Ids) -> None:
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
