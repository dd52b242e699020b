"""Mask lookup: one mask by its id, in one small read of a run of any size."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from segbatch import storage
from segbatch.errors import RunError
from segbatch.results.database import remote_filesystem
from segbatch.results.run import Run, open_run
from segbatch.results.table import Table


def mask_png(run: Run, image_id: int) -> bytes | None:
    """The mask of one image as it is stored; ``None`` where it failed or no masks are stored.

    Raises :class:`~segbatch.errors.RunError` for an id that has no row, ``OSError`` if storage
    fails.
    """
    try:
        return _mask_png(run, image_id)
    except FileNotFoundError:  # swept away at the finish after the table had been looked at
        return _mask_png(open_run(run.uri), image_id)


def _mask_png(run: Run, image_id: int) -> bytes | None:
    stats = run.table("stats") if run.finished else None
    table = stats or run.table("rows")
    row = _find_row(table, image_id, "file" if stats else "mask") if table else None
    if row is None:
        missing = "has no row" if run.finished else "has no row yet"
        raise RunError(f"{run.uri}: image_id {image_id} {missing}")
    if stats:
        file = storage.join(run.uri, "rows", row["file"])
        row = _read_row(file, image_id, "mask")
        if row is None:
            raise RunError(f"{file}: image_id {image_id} should be in it; audit the run")
    png: bytes | None = row["mask"]
    return png


def _find_row(table: Table, image_id: int, column: str) -> dict[str, Any] | None:
    """The row of an image, from the files that may have it by what the table's log says."""
    files = (f["path"] for f in table.files() if f["first_id"] <= image_id <= f["last_id"])
    rows = (_read_row(storage.join(table.uri, name), image_id, column) for name in files)
    return next((row for row in rows if row is not None), None)


def _read_row(uri: str, image_id: int, column: str) -> dict[str, Any] | None:
    """``column`` of the row with this id, from the only row group that may have it."""
    if storage.is_local(uri):
        source, path = arrow_fs.LocalFileSystem(), str(storage.local_path(uri))
    else:
        handler = arrow_fs.FSSpecHandler(remote_filesystem(storage.scheme_of(uri)))
        source, path = arrow_fs.PyFileSystem(handler), uri
    with pq.ParquetFile(path, filesystem=source, page_checksum_verification=True) as parquet:
        for group in range(parquet.num_row_groups):
            ids = parquet.metadata.row_group(group).column(0).statistics  # of image_id
            if ids.min <= image_id <= ids.max:
                rows = parquet.read_row_group(group, columns=["image_id", column])
                found: list[dict[str, Any]] = rows.filter(
                    pc.field("image_id") == image_id
                ).to_pylist()
                if found:
                    return found[0]
    return None
