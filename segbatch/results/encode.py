"""Encodes label maps and the model's counts as rows of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch.masks import encode_mask
from segbatch.masks.classes import Classes
from segbatch.results.formulas import Formula
from segbatch.results.schema import FAILED, OK
from segbatch.results.stats import (
    boxes_column,
    count_components,
    count_regions,
    coverage,
    find_regions,
    struct_column,
)
from segbatch.storage.arrow import binary_views

USER = "user:"  # prefix of user columns in the stages, so that none is taken for a stage's own


def carried(name: str) -> str:
    """The name of a manifest column within the stages."""
    return name if name in ("image_id", "uri") else f"{USER}{name}"


def user_fields(carried_schema: pa.Schema) -> list[pa.Field]:
    """The user's columns, with their original names."""
    users = [field for field in carried_schema if field.name.startswith(USER)]
    return [field.with_name(field.name.removeprefix(USER)) for field in users]


@dataclass(frozen=True)
class Encoding:
    """What the rows of a run contain; ``schema`` is from :func:`.rows_schema`."""

    classes: Classes
    schema: pa.Schema
    formulas: Sequence[Formula] = ()
    store_masks: bool = True

    @property
    def wants_label_maps(self) -> bool:
        return self.store_masks or bool({"components", "boxes"} & set(self.schema.names))


def encode(table: pa.Table, encoding: Encoding) -> pa.Table:
    """One row of results for each row of ``table``, with the columns and types of the schema.

    ``table`` has the columns image_id, uri, the user's columns as :func:`carried`, ``error``,
    ``message``, ``width``, ``height``, ``mask_width`` and ``mask_height``, and for each image
    without an error ``class_pixels`` (list of int64), ``class_confidence`` (list of float32, NaN
    for absent classes), ``uncertainty`` and, if :attr:`Encoding.wants_label_maps`, ``label_map``
    (uint8 class ids, row by row).
    """
    ok = table["error"].is_null().to_numpy()
    num_classes = len(encoding.classes)
    pixels = _per_class(table["class_pixels"], ok, num_classes).astype(np.int64)
    label_maps = _label_maps(table, ok) if encoding.wants_label_maps else []
    shares = coverage(pixels)

    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "status": pa.array(np.where(ok, OK, FAILED)),
        "pixels": pixels,
        "coverage": shares,
        "confidence": _per_class(table["class_confidence"], ok, num_classes),
    }
    if encoding.formulas:
        columns["formulas"] = np.column_stack(
            [formula.evaluate(shares.astype(np.float64)) for formula in encoding.formulas]
        )
    if "boxes" in encoding.schema.names:
        regions = [None if m is None else find_regions(m) for m in label_maps]
        columns["boxes"] = regions
        columns["components"] = _stack(
            [None if r is None else count_regions(r, num_classes) for r in regions], num_classes
        )
    elif "components" in encoding.schema.names:
        columns["components"] = _stack(
            [None if m is None else count_components(m, num_classes) for m in label_maps],
            num_classes,
        )
    if encoding.store_masks:
        palette = encoding.classes.palette
        masks = [None if m is None else encode_mask(m, palette) for m in label_maps]
        columns["mask"] = pa.array(masks, pa.binary())
    else:
        columns["mask"] = pa.nulls(table.num_rows, pa.binary())
    return pa.table(
        [_column(table, columns, ok, field) for field in encoding.schema], schema=encoding.schema
    )


def _column(
    table: pa.Table,
    columns: dict[str, object],
    ok: npt.NDArray[np.bool_],
    field: pa.Field,
) -> pa.Array | pa.ChunkedArray:
    value = columns.get(field.name)
    if value is None:
        user = f"{USER}{field.name}"
        return table[user if user in table.column_names else field.name].cast(field.type)
    if isinstance(value, np.ndarray):
        return struct_column(value, ok, field.type)
    if isinstance(value, list):
        return boxes_column(value, field.type)
    return value


def _label_maps(table: pa.Table, ok: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.uint8] | None]:
    """Views of the label maps, ``(mask_height, mask_width)`` uint8; ``None`` for failed images."""
    heights = table["mask_height"].to_pylist()
    widths = table["mask_width"].to_pylist()
    return [
        labels.reshape(height, width) if good and labels is not None else None
        for labels, height, width, good in zip(
            binary_views(table["label_map"]), heights, widths, ok, strict=True
        )
    ]


def _per_class(
    lists: pa.ChunkedArray, ok: npt.NDArray[np.bool_], num_classes: int
) -> npt.NDArray[np.float64]:
    """Lists of one value per class as ``(rows, classes)``, with zeros in place of null lists."""
    values = np.zeros((len(lists), num_classes))  # float64 holds pixel counts exactly
    flat = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values[ok] = flat.reshape(-1, num_classes)
    return values


def _stack(
    counts: Sequence[npt.NDArray[np.int32] | None], num_classes: int
) -> npt.NDArray[np.int32]:
    nothing = np.zeros(num_classes, np.int32)
    return np.stack([nothing if count is None else count for count in counts])
