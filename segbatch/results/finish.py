"""Finish: once every image has its row, the statistics without masks, and a clean folder.

``stats/`` is written a part at a time, so memory does not grow with the run, and replaced by one
commit. Then everything is deleted that no table refers to and that this driver or an older one has
written; files of a newer epoch belong to a driver that took over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segbatch import signals, storage
from segbatch.results.log import read_columns
from segbatch.results.schema import stats_schema
from segbatch.results.table import STATISTICS, Table, epoch_of
from segbatch.results.write import store

STATS_ROW_GROUP_ROWS = 131_072
PART_BYTES = 256 << 20  # of statistics in memory that become one file
READERS = 16
LOW_CARDINALITY = ["status", "error", "message", "file"]

# What a process leaves behind that is killed while it writes a file, or tries the output.
_TEMPORARY = re.compile(r"\.(.+\.(?:parquet|json))\.[a-z0-9_]{8}")
_PROBE = re.compile(r"preflight-[0-9a-f]{32}")
LEFT_BEHIND_S = 3600.0


def write_stats(rows: Table, stats: Table, epoch: int) -> None:
    """Replace ``stats/`` by the rows of ``rows/`` without masks, sorted by ``image_id``.

    Files of ``rows/`` are read by their first id, and a part is written once it has
    ``PART_BYTES``: at worst this holds three times that, and rows of files that reach far beyond
    the others. Raises ``Damaged``, ``Fenced``, ``OSError``.
    """
    written = [
        store(
            part,
            stats.uri,
            epoch,
            STATISTICS,
            compression_level=3,
            row_group_size=STATS_ROW_GROUP_ROWS,
            use_dictionary=LOW_CARDINALITY,
        )
        for part in _parts(rows)
    ]
    note = {"event": "stats", "rows": rows.version}
    stats.commit(written, remove=stats.files(), note=note)


def _parts(rows: Table) -> Iterator[pa.Table]:
    """All rows without masks, sorted by ``image_id``, in parts that follow one another."""
    schema = stats_schema(rows.schema)
    files = rows.files()
    pending: list[pa.Table] = []
    with ThreadPoolExecutor(READERS) as threads:
        for start in range(0, len(files), READERS):
            signals.check()
            group, later = files[start : start + READERS], files[start + READERS :][:1]
            pending += threads.map(lambda file: _without_masks(rows.uri, file, schema), group)
            if later and sum(table.nbytes for table in pending) < PART_BYTES:
                continue
            table = pa.concat_tables(pending)
            pending = []
            if later:  # rows that those of a file to come may precede wait for them
                follows = pc.greater_equal(table["image_id"], later[0]["first_id"])
                pending = [table.filter(follows)]
                table = table.filter(pc.invert(follows))
            if table.num_rows:
                yield table.sort_by("image_id")


def _without_masks(folder: str, file: dict[str, Any], schema: pa.Schema) -> pa.Table:
    columns = [name for name in schema.names if name not in ("file", "file_row")]
    table = read_columns(folder, file["path"], columns)
    table = table.append_column("file", pa.array([file["path"]] * table.num_rows))
    table = table.append_column("file_row", pa.array(range(table.num_rows), pa.int64()))
    return table.cast(schema)


def unreferenced(
    folder: str, files: Iterable[dict[str, Any]], newest_epoch: int | None = None
) -> list[storage.StoredFile]:
    """Parquet files in the folder of a table that holds ``files``, beside these.

    With ``newest_epoch``, only those of that epoch and older ones: a bare vacuum from a handle
    that is behind would delete what a newer driver has committed.
    """
    referenced = {file["path"] for file in files}
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
    """Delete what was written and never committed; returns the number of files."""
    strays = [
        *unreferenced(rows.uri, rows.files(), epoch),
        *unreferenced(stats.uri, stats.files(), epoch),
        *_left_behind(run_uri, epoch),
    ]
    storage.delete(file.uri for file in strays)
    return len(strays)


def _left_behind(run_uri: str, epoch: int) -> Iterator[storage.StoredFile]:
    """What killed processes left: probes of the output, and on a local disk half-written files."""
    for file in storage.list_files(run_uri):
        name = storage.name_of(file.uri)
        if _PROBE.fullmatch(name):
            yield file
        elif storage.is_local(run_uri) and (match := _TEMPORARY.fullmatch(name)):
            written_in = epoch_of(match[1])
            if written_in is None:  # of no epoch: run.json, lease.json, the manifest
                with suppress(FileNotFoundError):
                    age_s = time.time() - storage.local_path(file.uri).stat().st_mtime
                    if age_s > LEFT_BEHIND_S:
                        yield file
            elif written_in <= epoch:
                yield file
