"""The frozen manifest's files: written as a whole or not at all, read back one at a time.

A file holds at most a million rows, because it is one slice of the run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged

ROWS_PER_FILE = 1_000_000
FROZEN_NAME = re.compile(r"\d{5,}\.parquet")
ROWS_PER_GROUP = 65_536
# A file is made in memory; with wide user columns it ends at this size, before its rows are full.
_MAX_FILE_BYTES = 128 << 20

IMAGE_ID = pa.field("image_id", pa.int64(), nullable=False)
URI = pa.field("uri", pa.string(), nullable=False)


class ManifestFile(TypedDict):
    """One frozen file, as it stands in ``run.json``; ``size`` is in bytes."""

    name: str
    rows: int
    first_id: int
    sha256: str
    size: int


def read(
    folder: str, file: ManifestFile, image_ids: Sequence[int] | npt.NDArray[Any] | None = None
) -> pa.Table:
    """The rows of one frozen file: all, or those of ``image_ids``, in that order.

    Raises :class:`~segbatch.errors.Damaged` if it is not what was frozen, ``OSError``, and
    ``IndexError`` for an id that is not in the file.
    """
    uri = storage.join(folder, file["name"])
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise Damaged(uri, "it is not what was frozen")
    table = pq.read_table(pa.BufferReader(data))
    if image_ids is None:
        return table
    return table.take(pc.subtract(pa.array(image_ids, pa.int64()), file["first_id"]))


def user_columns(schema: pa.Schema) -> list[pa.Field]:
    """The user's own columns of a frozen file's schema."""
    return [field for field in schema if field.name not in (IMAGE_ID.name, URI.name)]


def write(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: str, confirm: Callable[[], None]
) -> Iterator[ManifestFile]:
    """Write numbered rows; a file is made in memory and stored as a whole or not at all.

    ``confirm`` raises once the folder is another's to write to; it is asked before each file.
    """
    schema = pa.schema([IMAGE_ID, *schema])
    # URIs are all different: looking for a dictionary in them is time lost.
    dictionaries = [field.name for field in user_columns(schema)]
    groups = _row_groups(batches)
    first_id = number = 0
    for group in groups:
        rows, sink = 0, pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink, schema, compression="zstd", use_dictionary=dictionaries or False
        ) as writer:
            for part in chain([group], groups):
                ids = pa.array(np.arange(part.num_rows, dtype=np.int64) + first_id + rows)
                writer.write_table(pa.Table.from_arrays([ids, *part.columns], schema=schema))
                rows += part.num_rows
                if (first_id + rows) % ROWS_PER_FILE == 0 or sink.tell() >= _MAX_FILE_BYTES:
                    break
        data = sink.getvalue().to_pybytes()
        name = f"{number:05d}.parquet"
        confirm()
        storage.write_bytes(storage.join(folder, name), data)
        yield ManifestFile(
            name=name,
            rows=rows,
            first_id=first_id,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
        )
        first_id, number = first_id + rows, number + 1


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of ``batches``, a row group at a time; none crosses a multiple of a file's rows."""
    pending: list[pa.RecordBatch] = []
    done = waiting = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            wanted = min(ROWS_PER_GROUP, ROWS_PER_FILE - done % ROWS_PER_FILE)
            piece = batch.slice(start, wanted - waiting)
            pending.append(piece)
            start, waiting = start + piece.num_rows, waiting + piece.num_rows
            if waiting == wanted:
                yield pa.Table.from_batches(pending)
                pending, done, waiting = [], done + waiting, 0
    if pending:
        yield pa.Table.from_batches(pending)
