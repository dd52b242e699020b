"""Writes rows of results as complete Parquet files, which no reader sees until they are committed.

This is the step *write*, and the only one that workers do: each file goes under a unique name into
the folder of the Delta table ``rows/``, and an account of it to the driver, which commits it
(:mod:`segbatch.results.ledger`). Rows that failed for a transient reason are only reported, so that
a later pass does them again; the last pass writes them as well.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.results.lease import WorkerLease
from segbatch.results.schema import OK, TRANSIENT_ERRORS
from segbatch.results.table import DataFile, file_name

ROW_GROUP_ROWS = 500  # one mask by id costs one row group: 10 ms, 3 to 5 MB


@dataclass(frozen=True)
class Account:
    """A write task's report to the driver on images of one ``kind`` and the file that holds them.

    ``kind`` is ``ok`` or the images' error. ``file`` is ``None`` for images that are left to a
    later pass. The first account of a task also has ``seconds``, by stage and over all images of
    the task, and ``counted`` (``rows``, ``read_bytes``, ``batches``). Accounts travel as JSON:
    their Arrow type would change with their content.
    """

    kind: str
    image_ids: list[int]
    message: str = ""
    file: DataFile | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Account:
        values = json.loads(text)
        file = values.pop("file")
        return cls(**values, file=None if file is None else DataFile(**file))


@dataclass(frozen=True)
class Writing:
    """The destination and the owner of written rows. ``schema`` is that of ``rows/``."""

    worker_lease: WorkerLease
    epoch: int
    schema: pa.Schema
    last_pass: bool

    @property
    def folder(self) -> str:
        return storage.join(self.worker_lease.run_uri, "rows")


def write_rows(rows: pa.Table, writing: Writing) -> list[Account]:
    """Write one file for each kind of ``rows``, and account for every row.

    Raises :class:`~segbatch.errors.Fenced` if the lease names another driver, ``OSError`` if
    storage fails.
    """
    writing.worker_lease.check()
    kinds = pc.fill_null(rows["error"], OK)
    accounts: list[Account] = []
    for kind in pc.unique(kinds).to_pylist():
        chosen = rows.filter(pc.equal(kinds, kind)).sort_by("image_id")
        file = None
        if kind != storage.REFUSED_CREDENTIALS and (
            kind not in TRANSIENT_ERRORS or writing.last_pass
        ):
            file = write_file(chosen, writing.folder, writing.epoch, kind)
        message = chosen["message"][0].as_py() or ""
        accounts.append(Account(kind, chosen["image_id"].to_pylist(), message, file))
    return accounts


def write_file(rows: pa.Table, folder: str, epoch: int, kind: str) -> DataFile:
    """Write ``rows`` of one kind, sorted by ``image_id``, as one file of ``rows/``."""
    return write_parquet(
        rows,
        folder,
        epoch,
        kind,
        compression_level=1,
        row_group_size=ROW_GROUP_ROWS,
        write_statistics=["image_id", "status"],
        # Masks and statistics hardly repeat: a dictionary costs time and saves nothing.
        use_dictionary=["status", "error", "message"],
    )


def write_parquet(rows: pa.Table, folder: str, epoch: int, kind: str, **options: Any) -> DataFile:
    """Write ``rows``, sorted by ``image_id``, as one complete file of the table in ``folder``."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, **options)
    data = sink.getvalue()
    name = file_name(epoch, kind)
    storage.write_bytes(storage.join(folder, name), data)
    return DataFile(
        name=name,
        size=len(data),
        rows=rows.num_rows,
        first_id=rows["image_id"][0].as_py(),
        last_id=rows["image_id"][-1].as_py(),
        kind=kind,
        sha256=hashlib.sha256(data).hexdigest(),
    )
