"""The schemas of a run's tables, column by column; docs/reading-results.md explains them to users.

All files of a table have one schema, written out here: Arrow would infer the type ``null`` for a
column that happens to be all null in one block, and files of one table would disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from segbatch.masks.classes import Classes

OK = "ok"
FAILED = "failed"

# Errors of failed rows. Transient ones may go away: a later pass does the images again.
TRANSIENT_ERRORS = ("timeout", "unavailable")
PERMANENT_ERRORS = (
    "not_found", "forbidden", "truncated", "undecodable", "unsupported", "too_large", "crashed",
)  # fmt: skip
ERRORS = TRANSIENT_ERRORS + PERMANENT_ERRORS

BOX = pa.struct(
    [
        ("x", pa.int32()),  # left edge, from 0
        ("y", pa.int32()),  # top edge, from 0
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels", pa.int64()),  # of the component, not of the box
    ]
)

# Our names in tables and query views, which a user's column must not have, in upper or lower case.
RESERVED_COLUMNS = frozenset(
    {
        "image_id", "uri", "status", "error", "message", "width", "height", "mask_width",
        "mask_height", "mask", "pixels", "coverage", "confidence", "uncertainty", "formulas",
        "components", "boxes", "run", "file", "file_row", "frame", "time_s",
    }
)  # fmt: skip


def per_class(classes: Classes, value: pa.DataType) -> pa.StructType:
    """A struct with one field per class, in the order of the class ids."""
    return pa.struct([(name, value) for name in classes.fields])


def rows_schema(
    classes: Classes,
    *,
    stats: Sequence[str] = (),
    formulas: Sequence[str] = (),
    user_columns: Sequence[pa.Field] = (),
) -> pa.Schema:
    """The schema of the table ``rows/``: one row per image, with its mask.

    ``stats`` holds the optional statistics (``confidence``, ``components``, ``boxes``),
    ``formulas`` the names of the job's formulas, ``user_columns`` the manifest's own columns.
    """
    fields = [
        pa.field("image_id", pa.int64(), nullable=False),  # row number in the manifest
        pa.field("uri", pa.string(), nullable=False),  # as the manifest gave it
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("error", pa.string()),  # one of ERRORS; null if ok
        pa.field("message", pa.string()),  # one line; null if ok
        pa.field("width", pa.int32()),  # of the upright image; null if unknown
        pa.field("height", pa.int32()),
        pa.field("mask_width", pa.int32()),  # the grid of mask, pixels, components and boxes
        pa.field("mask_height", pa.int32()),
        pa.field("mask", pa.binary()),  # palette PNG, palette index = class id
        pa.field("pixels", per_class(classes, pa.int64())),  # pixels of each class
        pa.field("coverage", per_class(classes, pa.float32())),  # pixels ÷ all pixels, 0 to 1
    ]
    if "confidence" in stats:
        fields += [
            pa.field("confidence", per_class(classes, pa.float32())),  # 0 to 1; null where absent
            pa.field("uncertainty", pa.float32()),  # 1 − mean margin of the two best, 0 to 1
        ]
    if formulas:
        fields.append(pa.field("formulas", pa.struct([(name, pa.float32()) for name in formulas])))
    if "components" in stats:
        fields.append(pa.field("components", per_class(classes, pa.int32())))
    if "boxes" in stats:
        fields.append(pa.field("boxes", per_class(classes, pa.list_(BOX))))
    return pa.schema([*fields, *user_columns])


def stats_schema(rows: pa.Schema) -> pa.Schema:
    """The schema of the table ``stats/``: ``rows`` without masks, plus the place of each mask."""
    fields = [field for field in rows if field.name != "mask"]
    return pa.schema(
        [
            *fields,
            pa.field("file", pa.string(), nullable=False),  # relative to rows/
            pa.field("file_row", pa.int64(), nullable=False),  # from 0
        ]
    )
