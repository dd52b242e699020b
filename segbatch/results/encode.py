"""Encodes label maps and the model's counts as rows of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch.images.place import PLACE
from segbatch.masks import encode_mask
from segbatch.masks.classes import Classes
from segbatch.results.formulas import Formula
from segbatch.results.schema import FAILED, OK
from segbatch.results.stats import STATISTICS, Block, coverage, struct_column, values_by_class
from segbatch.storage.arrow import binary_views

USER = "user:"  # prefix of user columns in the stages, so that none is taken for a stage's own


def carried(name: str) -> str:
    """The name of a manifest column within the stages."""
    return name if name in ("image_id", "uri", PLACE.name) else f"{USER}{name}"


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
    schema, num_classes = encoding.schema, len(encoding.classes)
    ok = table["error"].is_null().to_numpy()
    label_maps = _label_maps(table, ok) if encoding.wants_label_maps else []
    pixels = values_by_class(table["class_pixels"], ok, num_classes).astype(np.int64)
    shares = coverage(pixels)

    def structs(name: str, values: npt.NDArray[np.generic]) -> pa.StructArray:
        return struct_column(values, ok, schema.field(name).type)

    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "status": pa.array(np.where(ok, OK, FAILED)),
        "mask": pa.nulls(table.num_rows, pa.binary()),
        "pixels": structs("pixels", pixels),
        "coverage": structs("coverage", shares),
    }
    if encoding.store_masks:
        palette = encoding.classes.palette
        masks = [None if m is None else encode_mask(m, palette) for m in label_maps]
        columns["mask"] = pa.array(masks, pa.binary())
    if "formulas" in schema.names:
        values = [formula.evaluate(shares.astype(np.float64)) for formula in encoding.formulas]
        columns["formulas"] = structs("formulas", np.column_stack(values))
    block = Block(ok, num_classes, label_maps, table, with_boxes="boxes" in schema.names)
    for name, compute in STATISTICS.items():
        if name in schema.names:
            columns[name] = compute(block, schema.field(name).type)
    for field in schema:  # the others are in the table
        if field.name not in columns:
            user = f"{USER}{field.name}"
            source = table[user if user in table.column_names else field.name]
            columns[field.name] = source.cast(field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


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
