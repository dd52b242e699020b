"""The manifest: the list of images, frozen once in the run's folder.

:func:`freeze` reads every source as a stream of record batches and writes Parquet files with
``image_id`` (the row number over all sources), ``uri``, the user's own columns and, for parts of
objects, their places;
:func:`read_rows` reads one of these files. ``run.json`` lists the files with their SHA-256; a
folder that no ``run.json`` describes is an interrupted start, and is frozen again. When a source
has grown, :func:`extend` freezes its new images behind the old ones, which keep their ids.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.config.images import Source, Video, location_of
from segbatch.errors import Damaged, SegbatchError, SourceError
from segbatch.images.columns import BATCH_ROWS, conform
from segbatch.images.manifestfile import ManifestFile
from segbatch.images.parts import part_kind
from segbatch.images.place import PLACE, Part, Place
from segbatch.images.sources import URI, ImageStream, stream_images
from segbatch.images.tables import in_memory_duckdb, open_parquet
from segbatch.storage import hub

ROWS_PER_FILE = 1_000_000  # a file is one slice of the run
ROWS_PER_GROUP = 65_536
# A file is made in memory; with wide user columns it ends at this size, before its rows are full.
_MAX_FILE_BYTES = 128 << 20
_FILE_NAME = re.compile(r"\d{5,}\.parquet")
IMAGE_ID = pa.field("image_id", pa.int64(), nullable=False)


@dataclass(frozen=True)
class FrozenManifest:
    """The frozen list of images, as ``run.json`` describes it.

    ``duplicates``: rows minus different URIs. ``skipped``: see
    :class:`~segbatch.images.sources.ImageStream`. After an extension: ``gone`` is the number of
    old rows that the sources no longer have, ``left_out`` names columns that the old rows do not
    have.
    """

    rows: int
    duplicates: int
    files: list[ManifestFile]
    user_columns: list[pa.Field]
    skipped: dict[str, int]
    gone: int = 0
    left_out: tuple[str, ...] = ()


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
    _delete_others(folder, [])
    with (
        stream_images(sources, reserved=reserved, leave_out=leave_out) as stream,
        in_memory_duckdb("256MB") as database,
    ):
        batches = _record_hashes(stream.batches, database)
        files = _write_files(batches, stream.schema, folder, [], confirm)
        rows = _next_id(files)
        return FrozenManifest(
            rows,
            rows - _count_hashes(database),
            files,
            user_columns(stream.schema),
            dict(stream.skipped),
        )


def extend(
    sources: Sequence[Source],
    folder: str,
    frozen: Sequence[ManifestFile],
    *,
    reserved: Collection[str],
    leave_out: str,
    confirm: Callable[[], None] = lambda: None,
) -> FrozenManifest:
    """Write the rows of ``sources`` that the ``frozen`` files do not have, behind them.

    A row is new if its URI occurs more often in ``sources`` up to that row than in ``frozen``. New
    rows get the columns of the old ones: null where a source has no such column. The result
    describes old and new files; without new rows its files are ``frozen``. Files of an interrupted
    extension are deleted. The other parameters, memory and errors are those of :func:`freeze`;
    raises ``SourceError`` if a value does not fit the type of its column, or a source is on the
    Hugging Face Hub, and :class:`~segbatch.errors.Damaged` if a frozen file was changed.
    """
    for place in filter(hub.is_on_hub, map(location_of, sources)):
        raise SourceError(
            f"{place}: the run has its images as they were at one commit: for those of another one"
            " choose a new output"
        )
    _delete_others(folder, frozen)
    with (
        tempfile.TemporaryDirectory(prefix="segbatch-") as scratch,
        stream_images(sources, reserved=reserved, leave_out=leave_out) as stream,
        in_memory_duckdb("1GB") as database,
    ):
        listing = Path(scratch, "listing.arrow")
        _record_listing(stream, listing, database)
        database.execute("CREATE TABLE frozen (uri VARCHAR)")
        old_columns: list[pa.Field] = []
        for file in frozen:
            table = read_rows(folder, file)
            old_columns = user_columns(table.schema)  # all files have the same
            database.from_arrow(table.select([URI.name])).insert_into("frozen")
        schema = pa.schema([URI, *old_columns, *stream.place_fields])
        new = _conformed(_rows_at(listing, _new_positions(database)), schema)
        files = _write_files(new, schema, folder, frozen, confirm)
        rows = _next_id(files)
        different, gone = database.sql(_COUNT_EXTENDED).fetchall()[0]
        known = {field.name for field in old_columns}
        left_out = [f.name for f in user_columns(stream.schema) if f.name not in known]
        return FrozenManifest(
            rows,
            rows - different,
            files,
            old_columns,
            dict(stream.skipped),
            gone,
            tuple(left_out),
        )


@dataclass(frozen=True)
class ImageCount:
    """The number of rows of a job's sources; a lower bound where ``whole`` is false."""

    rows: int
    whole: bool


def count_images(sources: Sequence[Source], *, leave_out: str, limit_s: float) -> ImageCount:
    """Count the rows of ``sources`` for at most about ``limit_s`` seconds.

    Frames of videos are not counted: that would read every video. Raises ``SourceError``, and
    ``Incomplete`` if a source does not answer.
    """
    rows, deadline = 0, time.monotonic() + limit_s
    if any(isinstance(source, Video) for source in sources):
        return ImageCount(0, whole=False)
    with stream_images(sources, reserved=(), leave_out=leave_out, limit_s=limit_s) as stream:
        for batch in stream.batches:
            rows += batch.num_rows
            if stream.whole and time.monotonic() > deadline:
                return ImageCount(rows, whole=False)
        return ImageCount(rows, whole=stream.whole)


# The listed rows by position; a URI that was frozen three times is new from its fourth occurrence.
_NEW_POSITIONS = """
    SELECT position FROM (
        SELECT *, row_number() OVER (PARTITION BY uri ORDER BY position) AS occurrence FROM listed
    ) LEFT JOIN (SELECT uri, count(*) AS times FROM frozen GROUP BY uri) USING (uri)
    WHERE occurrence > coalesce(times, 0) ORDER BY position
"""
_COUNT_EXTENDED = """
    SELECT
        (SELECT count(*) FROM (SELECT uri FROM frozen UNION SELECT uri FROM listed)),
        (SELECT count(*) FROM frozen ANTI JOIN listed USING (uri))
"""


def _record_listing(
    stream: ImageStream, listing: Path, database: duckdb.DuckDBPyConnection
) -> None:
    """Write the rows of ``stream`` to a local file, and their URIs to the table ``listed``."""
    database.execute("CREATE TABLE listed (position BIGINT, uri VARCHAR)")
    position = 0
    with pa.OSFile(str(listing), "wb") as sink, pa.ipc.new_file(sink, stream.schema) as writer:
        for batch in stream.batches:
            writer.write_batch(batch)
            positions = pa.array(np.arange(batch.num_rows) + position)
            uris = pa.table([positions, batch.column(URI.name)], ["position", "uri"])
            database.from_arrow(uris).insert_into("listed")
            position += batch.num_rows


def _new_positions(database: duckdb.DuckDBPyConnection) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of the new rows of the table ``listed``, ascending."""
    reader = database.sql(_NEW_POSITIONS).to_arrow_reader(BATCH_ROWS)
    return (batch.column(0).to_numpy() for batch in reader)


def _rows_at(listing: Path, positions: Iterator[npt.NDArray[np.int64]]) -> Iterator[pa.RecordBatch]:
    """The rows of the file ``listing`` at ascending ``positions``."""
    with pa.memory_map(str(listing)) as source, pa.ipc.open_file(source) as reader:
        waiting = np.empty(0, np.int64)
        first = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            end = first + batch.num_rows
            while not len(waiting) or waiting[-1] < end:
                more = next(positions, None)
                if more is None:
                    break
                waiting = np.concatenate([waiting, more])
            here, waiting = waiting[waiting < end], waiting[waiting >= end]
            if len(here):
                yield batch.take(pa.array(here - first))
            first = end


def _conformed(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """``batches`` with the columns of ``schema``. Raises ``SourceError`` for a value that does not
    fit.
    """
    for batch in batches:
        columns = []
        for field in schema:
            try:
                columns += conform(batch, pa.schema([field])).columns
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SourceError(
                    f"column {field.name} is {batch.schema.field(field.name).type} now, and"
                    f" {field.type} in the run: {storage.one_line(error)}: choose a new output"
                ) from error
        yield pa.record_batch(columns, schema=schema)


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
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    folder: str,
    frozen: Sequence[ManifestFile],
    confirm: Callable[[], None],
) -> list[ManifestFile]:
    """Number the rows, write them behind the ``frozen`` files, and return all files.

    The new files are deleted if that fails.
    """
    files = list(frozen)
    try:
        for data, rows in _encode_files(batches, schema, _next_id(frozen)):
            name = f"{len(files):05d}.parquet"
            confirm()
            storage.write_bytes(storage.join(folder, name), data)
            files.append(
                ManifestFile(
                    name=name,
                    rows=rows,
                    first_id=_next_id(files),
                    sha256=hashlib.sha256(data).hexdigest(),
                    size=len(data),
                )
            )
    except BaseException:
        with suppress(OSError, SegbatchError):  # the next start deletes what stays
            confirm()
            storage.delete([storage.join(folder, f.name) for f in files[len(frozen) :]])
        raise
    return files


def _next_id(files: Sequence[ManifestFile]) -> int:
    return files[-1].end_id if files else 0


def _delete_others(folder: str, frozen: Sequence[ManifestFile]) -> None:
    """Delete what an interrupted start left in ``folder``: other files than the ``frozen`` ones."""
    kept = {file.name for file in frozen}
    found = {storage.name_of(file.uri): file.uri for file in storage.list_files(folder)}
    storage.delete(
        [uri for name, uri in found.items() if _FILE_NAME.fullmatch(name) and name not in kept]
    )


def _encode_files(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, first_id: int
) -> Iterator[tuple[bytes, int]]:
    """Parquet files with the rows, numbered from ``first_id``, and the number of rows of each."""
    schema = pa.schema([IMAGE_ID, *schema])
    # Nearly all URIs are different, so building a dictionary of them would waste time.
    dictionaries = [field.name for field in user_columns(schema)]
    groups = _row_groups(batches)
    done = 0
    for group in groups:
        rows, sink = 0, pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink, schema, compression="zstd", use_dictionary=dictionaries or False
        ) as writer:
            for part in chain([group], groups):
                ids = pa.array(np.arange(part.num_rows, dtype=np.int64) + first_id + done + rows)
                writer.write_table(pa.Table.from_arrays([ids, *part.columns], schema=schema))
                rows += part.num_rows
                if (done + rows) % ROWS_PER_FILE == 0 or sink.tell() >= _MAX_FILE_BYTES:
                    break
        yield sink.getvalue().to_pybytes(), rows
        done += rows


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


def find_parts(
    folder: str, files: Sequence[ManifestFile], images: Sequence[tuple[int, str]]
) -> list[Part]:
    """The images of a run, given as ``(image_id, uri)``, with the places of those that are parts.

    Reads nothing if none of them is one. Raises ``OSError``.
    """
    starts = [file.first_id for file in files]
    parts = []
    for image_id, uri in images:
        place = None
        if part_kind(uri) is not None and files:
            file = files[bisect_right(starts, image_id) - 1]
            row = image_id - file.first_id
            places = _places_in(storage.join(folder, file.name), row // ROWS_PER_GROUP)
            place = places[row % ROWS_PER_GROUP].as_py() if places is not None else None
        parts.append(Part(uri, place and Place(**place)))
    return parts


@lru_cache(maxsize=8)
def _places_in(uri: str, row_group: int) -> pa.Array | None:
    """The places in a row group of a file of a manifest; ``None`` if it has none."""
    with open_parquet(uri) as table:
        if PLACE.name not in table.schema_arrow.names:
            return None
        return table.read_row_group(row_group, [PLACE.name]).column(0).combine_chunks()


def user_columns(schema: pa.Schema) -> list[pa.Field]:
    """The user's own columns of a manifest file's schema."""
    own = (IMAGE_ID.name, URI.name, PLACE.name)
    return [field for field in schema if field.name not in own]
