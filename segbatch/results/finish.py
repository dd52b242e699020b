"""Finish: once every image has its row, the statistics without masks, and a clean folder.

``stats/`` is written a slice of the manifest at a time, so memory does not grow with the run, and
replaced by one commit. Then everything is deleted that no table refers to and that this driver or
an older one has written; files of a newer epoch belong to a driver that took over.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.results.schema import stats_schema
from segbatch.results.table import STATISTICS, Table, epoch_of
from segbatch.results.write import store

STATS_ROW_GROUP_ROWS = 131_072
LOW_CARDINALITY = ["status", "error", "message", "file"]


def write_stats(rows: Table, stats: Table, slices: Sequence[tuple[int, int]], epoch: int) -> None:
    """Replace ``stats/`` by the rows of ``rows/`` without masks, sorted by ``image_id``.

    ``slices`` are ``(first id, end id)`` of parts that fit in memory. Raises ``Fenced``,
    ``OSError``.
    """
    schema = stats_schema(rows.schema)
    files = rows.files()
    written = []
    with ThreadPoolExecutor(16) as threads:
        for start, stop in slices:
            inside = [f for f in files if f["first_id"] < stop and f["last_id"] >= start]
            parts = threads.map(lambda file: _without_masks(rows.uri, file, schema), inside)
            table = pa.concat_tables(parts)
            ids = table["image_id"]
            mine = pc.and_(pc.greater_equal(ids, start), pc.less(ids, stop))
            table = table.filter(mine).sort_by("image_id")
            written.append(
                store(
                    table,
                    stats.uri,
                    epoch,
                    STATISTICS,
                    compression_level=3,
                    row_group_size=STATS_ROW_GROUP_ROWS,
                    use_dictionary=LOW_CARDINALITY,
                )
            )
    stats.commit(written, mode="overwrite", note={"event": "stats", "rows": rows.version})


def _without_masks(folder: str, file: dict[str, Any], schema: pa.Schema) -> pa.Table:
    filesystem, path = storage.arrow_filesystem(storage.join(folder, file["path"]))
    columns = [name for name in schema.names if name not in ("file", "file_row")]
    table = pq.read_table(path, columns=columns, filesystem=filesystem)
    table = table.append_column("file", pa.array([file["path"]] * table.num_rows))
    table = table.append_column("file_row", pa.array(range(table.num_rows), pa.int64()))
    return table.cast(schema)


def unreferenced(table: Table, newest_epoch: int | None = None) -> list[storage.StoredFile]:
    """Parquet files in the table's folder that its version does not hold.

    With ``newest_epoch``, only those of that epoch and older ones: a bare vacuum from a handle
    that is behind would delete what a newer driver has committed.
    """
    referenced = {file["path"] for file in table.files()}
    found = []
    for file in storage.list_files(table.uri):
        name = storage.name_of(file.uri)
        if not name.endswith(".parquet") or "/_delta_log/" in file.uri or name in referenced:
            continue
        epoch = epoch_of(name)
        if newest_epoch is None or (epoch is not None and epoch <= newest_epoch):
            found.append(file)
    return found


def sweep(rows: Table, stats: Table, epoch: int) -> int:
    """Delete what was written and never committed; returns the number of files."""
    orphans = [*unreferenced(rows, epoch), *unreferenced(stats, epoch)]
    storage.delete(file.uri for file in orphans)
    return len(orphans)
