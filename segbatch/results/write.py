"""Write: rows of results → complete Parquet files, which nobody sees before they are committed.

A task writes under fresh names and tells the driver of each file in one small row, its account.
Rows that failed for a passing reason are only told, so that a later pass takes them up; in the
last pass they are written as well.
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
from segbatch.results.lease import Tenure
from segbatch.results.schema import OK, TRANSIENT_ERRORS
from segbatch.results.table import DataFile, file_name

ROW_GROUP_ROWS = 500  # one mask by id costs one row group: 10 ms, 3 to 5 MB
NEVER_WRITTEN = "credentials"  # everybody's fault: the driver stops the run


@dataclass(frozen=True)
class Account:
    """What a write task tells the driver: images of one ``kind``, and the file that holds them.

    ``file`` is ``None`` for images that are left to a later pass. ``seconds`` are those of each
    stage over all images that the task wrote, ``counted`` what it counted of them (``rows``,
    ``read_bytes``, ``batches``); both stand in the first of its accounts.
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
    """Where and for whom rows are written. ``schema`` is that of ``rows/``."""

    tenure: Tenure
    epoch: int
    schema: pa.Schema
    last_pass: bool

    @property
    def folder(self) -> str:
        return storage.join(self.tenure.run_uri, "rows")


def write(rows: pa.Table, writing: Writing) -> list[Account]:
    """Write ``rows`` to one file a kind, and account for every row.

    Raises :class:`~segbatch.errors.Fenced` if the lease names another driver, ``OSError`` if the
    storage failed.
    """
    writing.tenure.check()
    kinds = pc.fill_null(rows["error"], OK)
    accounts: list[Account] = []
    for kind in pc.unique(kinds).to_pylist():
        chosen = rows.filter(pc.equal(kinds, kind)).sort_by("image_id")
        later = kind in TRANSIENT_ERRORS and not writing.last_pass
        accounts.append(
            Account(
                kind=kind,
                image_ids=chosen["image_id"].to_pylist(),
                message=chosen["message"][0].as_py() or "",
                file=None
                if later or kind == NEVER_WRITTEN
                else write_file(chosen, writing.folder, writing.epoch, kind),
            )
        )
    return accounts


def write_file(rows: pa.Table, folder: str, epoch: int, kind: str) -> DataFile:
    """Write ``rows`` of one kind, sorted by ``image_id``, as one file of ``rows/``."""
    return store(
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


def store(rows: pa.Table, folder: str, epoch: int, kind: str, **options: Any) -> DataFile:
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
