"""Scores predictions against labels: the stages on workers, and the sum of them on the driver.

:func:`read_stage` makes what :func:`~segbatch.jobs.stages.decode_stage` takes, with the truth as
another column. :func:`score_stage` compares the label maps of
:class:`~segbatch.jobs.stages.PredictStage` with the truth, image by image, and :class:`Scores` adds
up its rows. The stages in between are those of the segment job, so what is measured is what
production predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

WORST = 24  # images on the page of the worst

Ids = npt.NDArray[np.uint8]

BOUNDARY_COLUMNS = (
    "boundary_truth", "boundary_truth_hits", "boundary_prediction", "boundary_prediction_hits",
)  # fmt: skip
DRIVER_COLUMNS = ["confusion", "mask"]  # of `score_stage`, for the driver alone


@dataclass(frozen=True, eq=False)
class ClassMapping:
    """The model's classes, and its id for each id of the dataset."""

    classes: Classes
    model_ids: Ids  # (256,): by the dataset's id; 255 for ids that are no class

    @classmethod
    def by_name(cls, dataset: Dataset, classes: Classes, model_uri: str) -> ClassMapping:
        """Match the classes of a dataset and of a model by name, in any order.

        Raises :class:`~segbatch.errors.InputError` where one has a class that the other lacks.
        """
        names = dataset.classes.names
        if set(names) != set(classes.names):
            unmatched = [
                f"only {where} has {', '.join(repr(name) for name in some if name not in other)}"
                for where, some, other in (
                    (dataset.uri, names, classes.names),
                    (model_uri, classes.names, names),
                )
                if set(some) - set(other)
            ]
            raise InputError(
                f"the model's classes are not those of the labels: {'; '.join(unmatched)}; import"
                " the labels with --map, or take the model that was trained on them"
            )
        model_ids = np.full(256, IGNORE_INDEX, np.uint8)
        model_ids[: len(names)] = [classes.names.index(name) for name in names]
        return cls(classes, model_ids)

    def decode_truth(self, mask: bytes) -> Ids:
        """The label map of a mask of the dataset, in the model's ids.

        Raises :class:`~segbatch.errors.SourceError` for a mask that cannot be read, or with ids
        that are no class.
        """
        label_map = decode_mask(mask)
        highest = label_map.max(initial=0, where=label_map != IGNORE_INDEX)
        if highest >= len(self.classes):
            raise SourceError(f"the mask holds class id {highest} of {len(self.classes)} classes")
        return self.model_ids[label_map]


def read_stage(table: pa.Table, dataset: Dataset) -> pa.Table:
    """Read shards of a dataset into one row per image, with the encoded image and its mask.

    ``table`` has a row for each shard: ``path``, ``rows``, ``sha256``. The result has ``image_id``,
    ``uri``, ``file`` (the shard's path), ``truth`` (the mask's PNG), and ``data``, ``error`` and
    ``message`` as :func:`~segbatch.images.fetch.fetch` gives them. Uses at most twice the shards'
    bytes of memory. Raises what :meth:`~segbatch.labels.dataset.Dataset.read_shard` does.
    """
    parts = []
    for entry in table.to_pylist():
        shard = Shard(**entry)
        rows = dataset.read_shard(shard, ["image_id", "uri", "image", "mask"])
        no_error = pa.nulls(len(rows), pa.string())
        parts.append(
            pa.table(
                {
                    "image_id": rows["image_id"],
                    "uri": rows["uri"],
                    "file": pa.array([shard.path] * len(rows)),
                    "truth": _file_bytes(rows["mask"]),
                    "data": _file_bytes(rows["image"]),
                    "error": no_error,
                    "message": no_error,
                }
            )
        )
    return pa.concat_tables(parts)


def _file_bytes(files: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(files, "bytes").cast(pa.large_binary())


def score_stage(table: pa.Table, mapping: ClassMapping) -> pa.Table:
    """Compare label maps with masks: one row of scores and counts per image (:func:`score_schema`).

    Besides ``table``, uses the memory of one image's label maps.
    """
    columns = [
        "image_id", "uri", "file", "truth", "error", "message", "width", "height", "label_map",
    ]  # fmt: skip
    rows = []
    for index in range(len(table)):
        [row] = table.select(columns).slice(index, 1).to_pylist()
        scored = {name: row[name] for name in ("image_id", "uri", "file")}
        try:
            scored |= _scores_of(row, mapping)
        except SourceError as error:
            scored["message"] = str(error)
        rows.append(scored)
    return pa.Table.from_pylist(rows, score_schema(mapping.classes))


def _scores_of(row: dict[str, Any], mapping: ClassMapping) -> dict[str, Any]:
    """The scores of one image; raises ``SourceError`` where it cannot have any."""
    if row["error"] is not None:
        raise SourceError(f"{row['error']}: {row['message']}")
    width, height = row["width"], row["height"]
    prediction = np.frombuffer(row["label_map"], np.uint8).reshape(height, width)
    truth = mapping.decode_truth(row["truth"])
    if truth.shape != prediction.shape:
        size = f"{truth.shape[1]}×{truth.shape[0]}"
        raise SourceError(f"the mask is {size}, the image {width}×{height}")
    classes = mapping.classes
    confusion = ConfusionMatrix(len(classes))
    confusion.update(truth, prediction)
    boundaries = BoundaryCounts(len(classes))
    boundaries.update(truth, prediction)

    def by_field(values: Iterable[Any]) -> dict[str, Any]:
        return dict(zip(classes.fields, values, strict=True))

    return {
        "width": width,
        "height": height,
        "pixel_accuracy": number(confusion.pixel_accuracy()),
        "miou": number(confusion.miou()),
        "boundary_f": number(boundaries.mean_f()),
        "iou": by_field(map(number, confusion.iou())),
        "hits": by_field(confusion.hits),
        "truth": by_field(confusion.truth),
        "prediction": by_field(confusion.prediction),
        **dict(zip(BOUNDARY_COLUMNS, map(by_field, boundaries.counts), strict=True)),
        "confusion": confusion.counts.ravel(),
        "mask": encode_mask(prediction, classes.palette),
    }


def score_schema(classes: Classes) -> pa.Schema:
    """The columns of ``per_image.parquet``, and three more for the driver.

    ``message`` says why an image has no scores, ``null`` where it has them; ``confusion`` is the
    matrix, row by row; ``mask`` is the prediction's PNG.
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


class Scores:
    """Adds up the rows of :func:`score_stage` on the driver, and keeps the worst images."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.confusion = ConfusionMatrix(len(classes))
        self.boundaries = BoundaryCounts(len(classes))
        self.worst: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Add rows of :func:`score_stage`."""
        scored = table.filter(pc.is_null(table["message"]))
        size = self.confusion.counts.shape
        for row in scored.to_pylist():
            self.confusion.counts += np.array(row["confusion"], np.int64).reshape(size)
            self.boundaries.counts += [list(row[name].values()) for name in BOUNDARY_COLUMNS]
            if row["miou"] is not None:
                self.worst.append(row)
        self.worst = sorted(self.worst, key=lambda row: (row["miou"], row["image_id"]))[:WORST]
        self._tables.append(table.drop_columns(DRIVER_COLUMNS))

    @property
    def num_images(self) -> int:
        return sum(map(len, self._tables))

    def per_image(self) -> pa.Table:
        """A row per image, sorted by ``image_id``."""
        empty = score_schema(self.classes).empty_table().drop_columns(DRIVER_COLUMNS)
        return pa.concat_tables([empty, *self._tables]).sort_by("image_id")

    def check(self, expected: int) -> None:
        """Raises ``Incomplete`` unless every image was scored once, and ``JobFailed`` where one
        could not be scored.
        """
        rows = self.per_image()
        distinct = pc.count_distinct(rows["image_id"]).as_py()
        if (distinct, len(rows)) != (expected, expected):
            raise Incomplete(
                f"of {expected} images {expected - distinct} were not scored and"
                f" {len(rows) - distinct} were scored twice: run again"
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
        """The scores of all images together, and the number of pixels of each class."""
        classes = self.classes
        return {
            **all_scores(self.confusion, self.boundaries, classes),
            "images": self.num_images,
            "pixels": dict(zip(classes.names, self.confusion.truth.tolist(), strict=True)),
        }

    def confusion_table(self) -> pa.Table:
        """The confusion matrix, a row for each pair of classes: ``truth``, ``prediction``,
        ``pixels``.
        """
        names = self.classes.names
        return pa.table(
            {
                "truth": np.repeat(names, len(names)),
                "prediction": np.tile(names, len(names)),
                "pixels": self.confusion.counts.ravel(),
            }
        )


def as_text(metrics: Mapping[str, Any]) -> str:
    """The metrics as text: the mIoU and the other means, then a table of the classes."""

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
