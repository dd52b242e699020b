"""Finishes a run: writes the table ``stats/``, and deletes files that no commit refers to.

This is the step *finish*, once every image has a committed row. ``stats/`` holds the rows without
masks, sorted. It is written in parts, so memory does not grow with the run, and replaced by one
commit. The sweep takes the place of Delta's vacuum: it deletes unreferenced files of this driver's
epoch and of older ones. Files of a newer epoch belong to a driver that took over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from segbatch import signals, storage
from segbatch.results.log import TableFile, read_columns
from segbatch.results.schema import stats_schema
from segbatch.results.table import STATISTICS, DataFile, Table, epoch_of
from segbatch.results.write import write_parquet

STATS_ROW_GROUP_ROWS = 131_072
PART_BYTES = 256 << 20  # of statistics in memory, written as one file
READERS = 16
LOW_CARDINALITY = ["status", "error", "message", "file"]

# Left by processes that were killed while they wrote a file, or while they tested the output.
_TEMPORARY = re.compile(r"\.(.+\.(?:parquet|json))\.[a-z0-9_]{8}")
_PROBE = re.compile(r"preflight-[0-9a-f]{32}")
LEFT_BEHIND_S = 3600.0  # a younger temporary file may still be in use


def write_stats(rows: Table, stats: Table, epoch: int) -> None:
    """Replace the content of ``stats/`` by the rows of ``rows/``, without masks, sorted by id.

    Files of ``rows/`` are read in the order of their first ids, and a part is written once it has
    ``PART_BYTES``. Memory: at most three times that, plus rows of files whose ids reach far beyond
    those of the others. Raises ``Damaged``, ``Fenced``, ``OSError``.
    """
    written = [write_stats_file(part, stats.uri, epoch) for part in _parts(rows)]
    note = {"event": "stats", "rows": rows.version}
    stats.commit(written, remove=stats.files(), note=note)


def write_stats_file(rows: pa.Table, folder: str, epoch: int) -> DataFile:
    """Write ``rows`` without masks, sorted by ``image_id``, as one file of ``stats/``."""
    return write_parquet(
        rows,
        folder,
        epoch,
        STATISTICS,
        compression_level=3,
        row_group_size=STATS_ROW_GROUP_ROWS,
        use_dictionary=LOW_CARDINALITY,
    )


def _parts(rows: Table) -> Iterator[pa.Table]:
    """All rows without masks in consecutive parts, sorted by ``image_id``."""
    schema = stats_schema(rows.schema)
    files = rows.files()
    pending: list[pa.Table] = []
    with ThreadPoolExecutor(READERS) as threads:
        for start in range(0, len(files), READERS):
            signals.check()
            group, later = files[start : start + READERS], files[start + READERS :]
            pending += threads.map(lambda file: _without_masks(rows.uri, file, schema), group)
            if later and sum(table.nbytes for table in pending) < PART_BYTES:
                continue
            table = pa.concat_tables(pending)
            pending = []
            if later:  # ids of later files may come before these: keep these for the next part
                keep = pc.greater_equal(table["image_id"], later[0].first_id)
                pending = [table.filter(keep)]
                table = table.filter(pc.invert(keep))
            if table.num_rows:
                yield table.sort_by("image_id")


def _without_masks(folder: str, file: TableFile, schema: pa.Schema) -> pa.Table:
    columns = [name for name in schema.names if name not in ("file", "file_row")]
    table = read_columns(folder, file.name, columns)
    table = table.append_column("file", pa.array([file.name] * table.num_rows))
    table = table.append_column("file_row", pa.array(range(table.num_rows), pa.int64()))
    return table.cast(schema)


def unreferenced(
    folder: str, files: Iterable[TableFile], newest_epoch: int | None = None
) -> list[storage.StoredFile]:
    """Parquet files in a table's ``folder`` that are not among the table's ``files``.

    With ``newest_epoch``, only files of that epoch and older ones. Delta's own vacuum makes no such
    difference: from an outdated handle it deletes files that a newer driver has committed.
    """
    referenced = {file.name for file in files}
    found = []
    for file in storage.list_files(folder):
        name = storage.name_of(file.uri)
        if not name.endswith(".parquet") or "/_delta_log/" in file.uri or name in referenced:
            continue
        epoch = epoch_of(name)
        if newest_epoch is None or (epoch is not None and epoch <= newest_epoch):
            found.append(file)
    return found


def sweep(run_uri: str, rows: Table, stats: Table, epoch: int) -> int:
    """Delete files that were written and never committed, and return their number."""
    strays = [
        *unreferenced(rows.uri, rows.files(), epoch),
        *unreferenced(stats.uri, stats.files(), epoch),
        *_left_behind(run_uri, epoch),
    ]
    storage.delete(file.uri for file in strays)
    return len(strays)


def _left_behind(run_uri: str, epoch: int) -> Iterator[storage.StoredFile]:
    """Files that killed processes left: tests of the output, and half-written local files."""
    for file in storage.list_files(run_uri):
        name = storage.name_of(file.uri)
        if _PROBE.fullmatch(name):
            yield file
        elif storage.is_local(run_uri) and (match := _TEMPORARY.fullmatch(name)):
            written_in = epoch_of(match[1])
            if written_in is None:  # run.json, lease.json, the manifest
                with suppress(FileNotFoundError):
                    age_s = time.time() - storage.local_path(file.uri).stat().st_mtime
                    if age_s > LEFT_BEHIND_S:
                        yield file
            elif written_in <= epoch:
                yield file
