"""Scores: what the driver of an evaluation knows, from the rows of images to the metrics of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segbatch.errors import Incomplete, JobFailed
from segbatch.jobs.scoring import BOUNDARY_COLUMNS, Scoring, score_schema
from segbatch.training.metrics import BoundaryCounts, ConfusionMatrix, report

WORST = 24


class Scores:
    """What the driver knows of the images that were scored: their sum, their rows, the worst."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.confusion = ConfusionMatrix(len(scoring.classes))
        self.boundaries = BoundaryCounts(len(scoring.classes))
        self.worst: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Take in rows of :func:`~segbatch.jobs.scoring.score_stage`."""
        scored = table.filter(pc.is_null(table["message"]))
        size = self.confusion.counts.shape
        for row in scored.to_pylist():
            self.confusion.counts += np.array(row["confusion"], np.int64).reshape(size)
            self.boundaries.counts += [list(row[name].values()) for name in BOUNDARY_COLUMNS]
            if row["miou"] is not None:
                self.worst.append(row)
        self.worst = sorted(self.worst, key=lambda row: (row["miou"], row["image_id"]))[:WORST]
        self._tables.append(table.drop_columns(["confusion", "mask"]))

    @property
    def num_images(self) -> int:
        return sum(map(len, self._tables))

    def per_image(self) -> pa.Table:
        """A row for each image, by its id."""
        none = score_schema(self.scoring.classes).empty_table().drop_columns(["confusion", "mask"])
        return pa.concat_tables([none, *self._tables]).sort_by("image_id")

    def check(self, expected: int) -> None:
        """Raises ``Incomplete`` unless every image came once, ``JobFailed`` if one has no score."""
        rows = self.per_image()
        once = pc.count_distinct(rows["image_id"]).as_py()
        if (once, len(rows)) != (expected, expected):
            raise Incomplete(
                f"of {expected} images {expected - once} were not scored and {len(rows) - once}"
                " were scored twice: run again"
            )
        failed = rows.filter(pc.is_valid(rows["message"]))
        if len(failed):
            named = [f"{row['uri']} (image_id {row['image_id']}): {row['message']}"
                     for row in failed.slice(0, 5).to_pylist()]  # fmt: skip
            more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
            raise JobFailed(
                f"{len(failed)} of {expected} images cannot be scored: {'; '.join(named)}{more};"
                " `segbatch labels check` finds such images"
            )

    def metrics(self) -> dict[str, Any]:
        """The scores of all images together, and how many pixels of each class there are."""
        classes = self.scoring.classes
        return {
            **report(self.confusion, self.boundaries, classes),
            "images": self.num_images,
            "pixels": dict(zip(classes.names, self.confusion.truth.tolist(), strict=True)),
        }

    def confusion_table(self) -> pa.Table:
        """``truth``, ``prediction`` and ``pixels``, a row for each pair of class names."""
        names = self.scoring.classes.names
        return pa.table(
            {
                "truth": np.repeat(names, len(names)),
                "prediction": np.tile(names, len(names)),
                "pixels": self.confusion.counts.ravel(),
            }
        )


def as_text(metrics: Mapping[str, Any]) -> str:
    """The metrics as a table: the mIoU, the other means, then a line for each class."""

    def shown(score: float | None) -> str:
        return "    -" if score is None else f"{score:.3f}"

    keys = ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "boundary_f")
    width = max(map(len, [*keys, *metrics["iou"]]))
    means = [f"{key:{width}}  {shown(metrics[key])}" for key in keys]
    lines = [
        f"{name:{width}}  {shown(iou)}  {shown(metrics['accuracy'][name]):>8}"
        f"  {shown(metrics['boundary_f_per_class'][name]):>10}"
        for name, iou in metrics["iou"].items()
    ]
    return "\n".join([*means, "", f"{'class':{width}}    IoU  accuracy  boundary F", *lines])
