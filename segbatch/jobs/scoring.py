"""Scoring: the stages of a labelled image before and after its prediction, on Arrow tables.

:func:`read_stage` gives what :func:`~segbatch.jobs.stages.decode_stage` takes, with the truth
beside it; :func:`score_stage` holds the label maps of :class:`~segbatch.jobs.stages.PredictStage`
against it. What lies between is the segment job's own: what is measured is what production
predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segbatch.errors import Incomplete, InputError, JobFailed, SourceError
from segbatch.labels.dataset import Dataset, Shard
from segbatch.masks import decode_mask, encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.results.schema import per_class
from segbatch.training.confusion import BoundaryCounts, ConfusionMatrix, all_scores, number

Ids = npt.NDArray[np.uint8]


BOUNDARY_COLUMNS = (
    "boundary_truth", "boundary_truth_hits", "boundary_prediction", "boundary_prediction_hits",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scoring:
    """What a prediction is scored by: the model's classes, and its ids for those of the truth."""

    classes: Classes
    class_ids: Ids  # (256,): the model's id of each of the dataset's, 255 for what is none

    @classmethod
    def between(cls, dataset: Dataset, classes: Classes, model_uri: str) -> Scoring:
        """The classes of a dataset and of a model, matched by name, whatever their order.

        Raises :class:`~segbatch.errors.InputError` where one has a class that the other has not.
        """
        names = dataset.classes.names
        if set(names) != set(classes.names):
            strangers = [
                f"only {where} has {', '.join(repr(name) for name in some if name not in other)}"
                for where, some, other in (
                    (dataset.uri, names, classes.names),
                    (model_uri, classes.names, names),
                )
                if set(some) - set(other)
            ]
            raise InputError(
                f"the model's classes are not those of the labels: {'; '.join(strangers)}; import"
                " the labels with --map, or take the model that was trained on them"
            )
        class_ids = np.full(256, IGNORE_INDEX, np.uint8)
        class_ids[: len(names)] = [classes.names.index(name) for name in names]
        return cls(classes, class_ids)

    def truth(self, mask: bytes) -> Ids:
        """The label map of a dataset's mask, in the model's ids.

        Raises :class:`~segbatch.errors.SourceError` for a mask that cannot be read, or with ids
        that are no class.
        """
        label_map = decode_mask(mask)
        highest = label_map.max(initial=0, where=label_map != IGNORE_INDEX)
        if highest >= len(self.classes):
            raise SourceError(f"the mask holds class id {highest} of {len(self.classes)} classes")
        return self.class_ids[label_map]


def read_stage(table: pa.Table, dataset: Dataset) -> pa.Table:
    """Shards of a dataset → their images, encoded, and their masks.

    ``table`` has a row for each shard: ``path``, ``rows``, ``sha256``. Gives ``image_id``, ``uri``,
    ``file`` (the shard's path), ``truth`` (the mask's PNG), and ``data``, ``error`` and ``message``
    as :func:`~segbatch.images.fetch.fetch` does. Worst case in memory: the shards' bytes, twice.
    Raises what :meth:`Dataset.read_shard <segbatch.labels.dataset.Dataset.read_shard>` does.
    """
    parts = []
    for entry in table.to_pylist():
        shard = Shard(**entry)
        rows = dataset.read_shard(shard, ["image_id", "uri", "image", "mask"])
        nothing = pa.nulls(len(rows), pa.string())
        parts.append(
            pa.table(
                {
                    "image_id": rows["image_id"],
                    "uri": rows["uri"],
                    "file": pa.array([shard.path] * len(rows)),
                    "truth": _content(rows["mask"]),
                    "data": _content(rows["image"]),
                    "error": nothing,
                    "message": nothing,
                }
            )
        )
    return pa.concat_tables(parts)


def score_stage(table: pa.Table, scoring: Scoring) -> pa.Table:
    """Label maps and masks → one row of scores and counts per image (:func:`score_schema`).

    Worst case in memory: one image's label maps, besides ``table``.
    """
    needed, rows = table.select(_SCORED), []
    for index in range(len(table)):
        [row] = needed.slice(index, 1).to_pylist()
        rows.append(_failed(row) if row["error"] is not None else _scored(row, scoring))
    return pa.Table.from_pylist(rows, score_schema(scoring.classes))


def score_schema(classes: Classes) -> pa.Schema:
    """What :func:`score_stage` gives: ``per_image.parquet``, and three columns more for the driver.

    ``message`` says why an image has no scores, ``null`` where it has; ``confusion`` is the matrix,
    row by row; ``mask`` the prediction's PNG.
    """
    pixels, scores = per_class(classes, pa.int64()), per_class(classes, pa.float64())
    return pa.schema(
        {
            "image_id": pa.int64(),
            "uri": pa.string(),
            "file": pa.string(),  # the dataset's file that holds the image
            "width": pa.int32(),
            "height": pa.int32(),
            "pixel_accuracy": pa.float64(),  # of this image alone, as are all scores
            "miou": pa.float64(),
            "boundary_f": pa.float64(),
            "iou": scores,
            "hits": pixels,
            "truth": pixels,
            "prediction": pixels,
            **dict.fromkeys(BOUNDARY_COLUMNS, pixels),
            "message": pa.string(),
            "confusion": pa.list_(pa.int64()),
            "mask": pa.binary(),
        }
    )


_SCORED = ["image_id", "uri", "file", "truth", "error", "message", "width", "height", "label_map"]


def _failed(row: dict[str, Any], message: str | None = None) -> dict[str, Any]:
    said = message or f"{row['error']}: {row['message']}"
    return {name: row[name] for name in ("image_id", "uri", "file")} | {"message": said}


def _scored(row: dict[str, Any], scoring: Scoring) -> dict[str, Any]:
    width, height = row["width"], row["height"]
    prediction = np.frombuffer(row["label_map"], np.uint8).reshape(height, width)
    try:
        truth = scoring.truth(row["truth"])
    except SourceError as error:
        return _failed(row, str(error))
    if truth.shape != prediction.shape:
        size = f"{truth.shape[1]}×{truth.shape[0]}"
        return _failed(row, f"the mask is {size}, the image {width}×{height}")
    confusion = ConfusionMatrix(len(scoring.classes))
    confusion.update(truth, prediction)
    boundaries = BoundaryCounts(len(scoring.classes))
    boundaries.update(truth, prediction)

    def by_field(values: npt.NDArray[Any]) -> dict[str, Any]:
        return dict(zip(scoring.classes.fields, values.tolist(), strict=True))

    return {
        **{name: row[name] for name in ("image_id", "uri", "file", "width", "height")},
        "pixel_accuracy": number(confusion.pixel_accuracy()),
        "miou": number(confusion.miou()),
        "boundary_f": number(boundaries.mean_f()),
        "iou": dict(zip(scoring.classes.fields, map(number, confusion.iou()), strict=True)),
        "hits": by_field(confusion.hits),
        "truth": by_field(confusion.truth),
        "prediction": by_field(confusion.prediction),
        **{
            name: by_field(counts)
            for name, counts in zip(BOUNDARY_COLUMNS, boundaries.counts, strict=True)
        },
        "confusion": confusion.counts.ravel(),
        "mask": encode_mask(prediction, scoring.classes.palette),
    }


def _content(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a column of files."""
    return pc.struct_field(files, "bytes").cast(pa.large_binary())


# Scores: what the driver of an evaluation knows, from the rows of images to the metrics of all.


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
            **all_scores(self.confusion, self.boundaries, classes),
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
