"""The manifest: the list of images, frozen once in the run's folder.

:func:`freeze` reads every source as a stream of record batches and writes Parquet files with
``image_id`` (the row number over all sources), ``uri`` and the user's own columns;
:func:`read_rows` reads one of these files. ``run.json`` lists the files with their SHA-256; a
folder that no ``run.json`` describes is an interrupted start, and is frozen again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.config.images import Source
from segbatch.errors import Damaged, SegbatchError
from segbatch.images.manifestfile import ManifestFile
from segbatch.images.sources import URI, stream_images
from segbatch.images.tables import in_memory_duckdb

ROWS_PER_FILE = 1_000_000  # a file is one slice of the run
ROWS_PER_GROUP = 65_536
# A file is made in memory; with wide user columns it ends at this size, before its rows are full.
_MAX_FILE_BYTES = 128 << 20
_FILE_NAME = re.compile(r"\d{5,}\.parquet")
IMAGE_ID = pa.field("image_id", pa.int64(), nullable=False)


@dataclass(frozen=True)
class FrozenManifest:
    """What :func:`freeze` wrote.

    ``duplicates``: rows minus different URIs. ``skipped``: see
    :class:`~segbatch.images.sources.ImageStream`.
    """

    rows: int
    duplicates: int
    files: list[ManifestFile]
    user_columns: list[pa.Field]
    skipped: dict[str, int]


def freeze(
    sources: Sequence[Source],
    folder: str,
    *,
    reserved: Collection[str],
    leave_out: str,
    confirm: Callable[[], None] = lambda: None,
) -> FrozenManifest:
    """Write the manifest of ``sources`` into ``folder``; files of an interrupted start are deleted.

    ``reserved`` and ``leave_out``: see :func:`~segbatch.images.sources.stream_images`. ``confirm``
    raises once another driver writes to ``folder``; it is called before each file is written, so
    that a driver that was suspended meanwhile leaves the other's files alone. Memory does not grow
    with the number of rows. Raises ``SourceError``, ``Incomplete`` if a source does not answer, and
    ``OSError`` if ``folder`` cannot be written.
    """
    old = [file.uri for file in storage.list_files(folder)]
    storage.delete([uri for uri in old if _FILE_NAME.fullmatch(storage.name_of(uri))])
    files: list[ManifestFile] = []
    try:
        with (
            stream_images(sources, reserved=reserved, leave_out=leave_out) as stream,
            in_memory_duckdb("256MB") as database,
        ):
            batches = _record_hashes(stream.batches, database)
            for file in _write_files(batches, stream.schema, folder, confirm):
                files.append(file)
            rows = sum(file.rows for file in files)
            return FrozenManifest(
                rows,
                rows - _count_hashes(database),
                files,
                user_columns(stream.schema),
                dict(stream.skipped),
            )
    except BaseException:
        with suppress(OSError, SegbatchError):  # the next start deletes what stays
            confirm()
            storage.delete([storage.join(folder, file.name) for file in files])
        raise


def _record_hashes(
    batches: Iterable[pa.RecordBatch], database: duckdb.DuckDBPyConnection
) -> Iterator[pa.RecordBatch]:
    """Pass ``batches`` on, and add 64 bits of each URI to a table that spills to disk."""
    database.execute("CREATE TABLE seen (hash UBIGINT)")
    for batch in batches:
        database.from_arrow(batch.select([URI.name])).project("hash(uri)").insert_into("seen")
        yield batch


def _count_hashes(database: duckdb.DuckDBPyConnection) -> int:
    """The number of different URIs that :func:`_record_hashes` has seen."""
    return int(database.execute("SELECT count(DISTINCT hash) FROM seen").fetchall()[0][0])


def _write_files(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: str, confirm: Callable[[], None]
) -> Iterator[ManifestFile]:
    """Number the rows and write them; each file is made in memory and stored in one piece."""
    schema = pa.schema([IMAGE_ID, *schema])
    # Nearly all URIs are different, so building a dictionary of them would waste time.
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
    """The rows of ``batches``, one row group at a time; a group ends where a full file ends."""
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


def read_rows(
    folder: str, file: ManifestFile, image_ids: Sequence[int] | npt.NDArray[Any] | None = None
) -> pa.Table:
    """The rows of one file of the manifest: all, or those of ``image_ids``, in that order.

    Raises :class:`~segbatch.errors.Damaged` if it is not the file that was frozen, ``OSError``, and
    ``IndexError`` for an id that is not in the file.
    """
    uri = storage.join(folder, file.name)
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise Damaged(uri, "it is not what was frozen")
    table = pq.read_table(pa.BufferReader(data))
    if image_ids is None:
        return table
    return table.take(pc.subtract(pa.array(image_ids, pa.int64()), file.first_id))


def user_columns(schema: pa.Schema) -> list[pa.Field]:
    """The user's own columns of a manifest file's schema."""
    return [field for field in schema if field.name not in (IMAGE_ID.name, URI.name)]
