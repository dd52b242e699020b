"""Scoring: the stages of a labelled image before and after its prediction, on Arrow tables.

:func:`read_stage` gives what :func:`~segbatch.jobs.stages.decode_stage` takes, with the truth
beside it; :func:`score_stage` holds the label maps of :class:`~segbatch.jobs.stages.PredictStage`
against it. What lies between is the segment job's own: what is measured is what production
predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segbatch.errors import InputError, SourceError
from segbatch.labels.dataset import Dataset, Shard
from segbatch.masks import decode_mask, encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.results.schema import per_class
from segbatch.training.metrics import BoundaryCounts, ConfusionMatrix, number

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
