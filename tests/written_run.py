"""A small run, written by hand as its layout says, for the tests of those who read runs."""

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.masks import encode_mask
from segbatch.masks.classes import Classes
from segbatch.results.runinfo import FORMAT, parse_info, write_info
from segbatch.results.schema import rows_schema, stats_schema
from segbatch.results.stats import (
    boxes_column,
    count_components,
    coverage,
    find_regions,
    pixels_per_class,
    struct_column,
)
from segbatch.results.table import DataFile, Table, file_name
from segbatch.run import Run

NAMES = ["background", "wall", "window", "traffic light"]
CITIES = ["Zurich", "Basel", "Bern"]
USER_COLUMNS = [pa.field("city", pa.string()), pa.field("building_id", pa.string())]
USER_VALUES: dict[str, Callable[[int], Any]] = {
    "city": lambda image_id: CITIES[image_id % 3],
    "building_id": lambda image_id: f"B{image_id // 2}",
}


def write_run(
    uri: str,
    *,
    names: list[str] = NAMES,
    num_ok: int = 12,
    failed: tuple[str, ...] = ("not_found", "timeout"),
    masks: bool = True,
    finished: bool = True,
    user_columns: list[pa.Field] = USER_COLUMNS,
    user_values: dict[str, Callable[[int], Any]] = USER_VALUES,
    photos: str = "s3://photos",
) -> Run:
    """A run of ``num_ok`` images in two files of rows, and then one file for each failed one.

    Their photographs would be in ``photos``, called after their ids. ``user_values`` are those of
    the user's columns by image id; columns without them are null.
    """
    classes = Classes(names)
    schema = rows_schema(
        classes,
        stats=["confidence", "components", "boxes"],
        formulas=["window_to_wall"],
        user_columns=user_columns,
    )
    parts: dict[str, pa.Table] = {}
    for ids in (range(num_ok // 2), range(num_ok // 2, num_ok)):
        if ids:
            own = _user_values(ids, user_values)
            parts[file_name(1, "ok")] = _ok_rows(ids, photos, classes, schema, own, masks=masks)
    for image_id, kind in enumerate(failed, start=num_ok):
        own = _user_values(range(image_id, image_id + 1), user_values)
        parts[file_name(1, kind)] = _failed_row(image_id, photos, kind, schema, own)

    table = Table.create(storage.join(uri, "rows"), schema)
    table.commit([_write(table.uri, name, rows, row_group_size=4) for name, rows in parts.items()])
    if finished:
        _write_stats(uri, parts, schema)
    num_rows = num_ok + len(failed)
    info: dict[str, Any] = {
        "format": FORMAT,
        "status": "complete" if finished else "running",
        "identity": {},
        "job": {},
        "model": {"uri": "models/facades", "sha256": "0" * 64, "classes": classes.to_json()},
        "manifest": {"rows": num_rows, "duplicates": 0, "files": []},
        "created": time.time(),
        "updated": time.time(),
    }
    written = parse_info(uri, info)
    write_info(uri, written)
    return Run(storage.normalize(uri), written)


def label_map(image_id: int) -> np.ndarray:
    """A wall, class 1, and in it a window, class 2, that is wider in later images.

    From image 12 on it is higher as well, so that there are images with more glass than wall.
    """
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 5:] = 1
    labels[2 : 12 if image_id < 12 else 18, 6 : 7 + image_id] = 2
    return labels


def with_uris(run: Run, uri_of: Callable[[int], str]) -> Run:
    """The same run, of images that are elsewhere."""
    for path in Path(run.uri, "rows").glob("*.parquet"):
        rows = pq.read_table(path)
        uris = [uri_of(image_id) for image_id in rows["image_id"].to_pylist()]
        pq.write_table(rows.set_column(1, "uri", [uris]), path)
    return run


def damage_mask(run: Run, image_id: int) -> None:
    """Flip a bit where the mask of an image is stored; its row group holds others as well."""
    for path in Path(run.uri, "rows").glob("*-ok-*.parquet"):
        metadata = pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
            ids, mask = columns["image_id"].statistics, columns["mask"]
            if ids.min <= image_id <= ids.max:
                data = bytearray(path.read_bytes())
                data[mask.data_page_offset - 20] ^= 1  # the end of what the page before it holds
                path.write_bytes(data)


def _ok_rows(
    ids: range,
    photos: str,
    classes: Classes,
    schema: pa.Schema,
    own: dict[str, Any],
    *,
    masks: bool,
) -> pa.Table:
    maps = [label_map(image_id) for image_id in ids]
    pixels = np.array([pixels_per_class(m, len(classes)) for m in maps])
    shares = coverage(pixels)
    valid = np.ones(len(ids), bool)
    per_class = {
        "pixels": pixels,
        "coverage": shares,
        "confidence": np.where(pixels > 0, 0.5 + pixels / 1200, np.nan),
        "components": np.array([count_components(m, len(classes)) for m in maps]),
        "formulas": shares[:, [2]] / shares[:, [1]],
    }
    columns: dict[str, Any] = {
        "image_id": ids,
        "uri": [f"{photos}/{image_id:04d}.jpg" for image_id in ids],
        "status": ["ok"] * len(ids),
        "width": [60] * len(ids),
        "height": [40] * len(ids),
        "mask_width": [30] * len(ids),
        "mask_height": [20] * len(ids),
        "mask": [encode_mask(m, classes.palette) if masks else None for m in maps],
        "uncertainty": [0.05 * (image_id % 7) for image_id in ids],
        "boxes": boxes_column([find_regions(m) for m in maps], schema.field("boxes").type),
        **{n: struct_column(v, valid, schema.field(n).type) for n, v in per_class.items()},
        **own,
    }
    return _table(columns, len(ids), schema)


def _failed_row(
    image_id: int, photos: str, kind: str, schema: pa.Schema, own: dict[str, Any]
) -> pa.Table:
    columns = {
        "image_id": [image_id],
        "uri": [f"{photos}/{image_id:04d}.jpg"],
        "status": ["failed"],
        "error": [kind],
        "message": [f"it was {kind}"],
        **own,
    }
    return _table(columns, 1, schema)


def _user_values(ids: range, values: dict[str, Callable[[int], Any]]) -> dict[str, Any]:
    return {name: [value(image_id) for image_id in ids] for name, value in values.items()}


def _table(columns: dict[str, Any], num_rows: int, schema: pa.Schema) -> pa.Table:
    nothing = [None] * num_rows
    arrays = [pa.array(columns.get(field.name, nothing), field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def _write_stats(uri: str, parts: dict[str, pa.Table], schema: pa.Schema) -> None:
    table = Table.create(storage.join(uri, "stats"), stats_schema(schema))
    rows = [
        part.drop_columns("mask")
        .append_column("file", pa.array([name] * part.num_rows))
        .append_column("file_row", pa.array(range(part.num_rows), pa.int64()))
        for name, part in parts.items()
    ]
    whole = pa.concat_tables(rows, promote_options="default").cast(table.schema)
    file = _write(table.uri, file_name(1, "stats"), whole.sort_by("image_id"), row_group_size=100)
    table.commit([file])


def _write(folder: str, name: str, rows: pa.Table, *, row_group_size: int) -> DataFile:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=row_group_size, write_page_checksum=True)
    data = buffer.getvalue()
    storage.write_bytes(storage.join(folder, name), data)
    ids = rows["image_id"].to_pylist()
    kind = name.split("-")[1]
    sha256 = hashlib.sha256(data).hexdigest()
    return DataFile(name, len(data), rows.num_rows, min(ids), max(ids), kind, sha256)
