"""Looks up the mask of one image, with one small read from a run of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged, RunError, SegbatchError, SourceError, UnreadableMask
from segbatch.masks import decode_mask
from segbatch.results.log import read_failure
from segbatch.results.runfolder import RunFolder, open_folder
from segbatch.results.table import Table
from segbatch.storage.uris import without_query


def label_map(run: RunFolder, image_id: int) -> npt.NDArray[np.uint8] | None:
    """The mask of one image, ``(mask_height, mask_width)`` uint8 class ids.

    ``None`` and errors as in :func:`mask_png`.
    """
    png = mask_png(run, image_id)
    try:
        return None if png is None else decode_mask(png)
    except SourceError as error:
        raise unreadable_mask(run, image_id, error) from error


def mask_png(run: RunFolder, image_id: int) -> bytes | None:
    """The mask of one image as it is stored; ``None`` if it failed or no masks are stored.

    Raises :class:`~segbatch.errors.RunError` for an id without a row,
    :class:`~segbatch.errors.UnreadableMask` if the mask's file is damaged, ``OSError`` if storage
    fails.
    """
    try:
        return _mask_png(run, image_id)
    except FileNotFoundError:  # replaced and swept since the table was opened: open it again
        return _mask_png(open_folder(run.uri), image_id)


def image_uri(run: RunFolder, image_id: int) -> str:
    """The URI of one image. Raises what :func:`mask_png` raises, except for damaged masks."""
    try:
        row = _find_row(_table(run), image_id, "uri")
    except FileNotFoundError:  # as in mask_png
        row = _find_row(_table(open_folder(run.uri)), image_id, "uri")
    if row is None:
        raise _no_row(run, image_id)
    return str(row["uri"])


def why_no_mask(run: RunFolder, image_id: int) -> str:
    """Why an image without a mask, whose :func:`mask_png` is ``None``, has none."""
    row = _find_row(_table(run), image_id, "error", "message") or {}
    why = f"it failed: {row['error']}: {row['message']}" if row.get("error") else "the run has none"
    return f"{run.uri}: image {image_id} has no mask: {why}"


def unreadable_mask(run: RunFolder, image_id: int, why: SegbatchError) -> UnreadableMask:
    """The error to raise for a damaged mask; it also names the image's URI, if that is readable."""
    try:
        row = _find_row(_table(run), image_id, "uri")
    except (Damaged, OSError):
        row = None
    return UnreadableMask(run.uri, image_id, without_query(row["uri"]) if row else "?", why)


def _mask_png(run: RunFolder, image_id: int) -> bytes | None:
    table = _table(run)
    in_stats = table is not None and storage.name_of(table.uri) == "stats"
    try:
        row = _find_row(table, image_id, "file" if in_stats else "mask")
        if row is None:
            raise _no_row(run, image_id)
        if in_stats:
            folder, name = storage.join(run.uri, "rows"), row["file"]
            row = _read_row(folder, name, image_id, "mask")
            if row is None:
                raise RunError(
                    f"{folder}/{name}: image_id {image_id} should be in it; audit the run"
                )
    except Damaged as error:
        raise unreadable_mask(run, image_id, error) from error
    png: bytes | None = row["mask"]
    return png


def _no_row(run: RunFolder, image_id: int) -> RunError:
    yet = "" if run.finished else " yet"
    return RunError(f"{run.uri}: image_id {image_id} has no row{yet}")


def _table(run: RunFolder) -> Table | None:
    """The table in which to find an image's row."""
    return run.finished_stats or run.table("rows")


def _find_row(table: Table | None, image_id: int, *columns: str) -> dict[str, Any] | None:
    """``columns`` of the row of an image, from those files whose range of ids includes it."""
    if table is None:
        return None
    files = (f.name for f in table.files() if f.first_id <= image_id <= f.last_id)
    rows = (_read_row(table.uri, name, image_id, *columns) for name in files)
    return next((row for row in rows if row is not None), None)


def _read_row(folder: str, name: str, image_id: int, *columns: str) -> dict[str, Any] | None:
    """``columns`` of the row with this id, from the row groups whose range of ids includes it.

    Raises :class:`~segbatch.errors.Damaged`, or ``OSError`` if storage fails.
    """
    source, path = storage.arrow_filesystem(storage.join(folder, name))
    try:
        with pq.ParquetFile(path, filesystem=source, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                ids = parquet.metadata.row_group(group).column(0).statistics  # image_id
                if ids.min <= image_id <= ids.max:
                    rows = parquet.read_row_group(group, columns=["image_id", *columns])
                    found: list[dict[str, Any]] = rows.filter(
                        pc.field("image_id") == image_id
                    ).to_pylist()
                    if found:
                        return found[0]
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(folder, name, error) from error
    return None
