"""The manifest: the list of images, frozen once in the run's folder.

:func:`freeze` reads every source as a stream of record batches and writes Parquet files with
``image_id`` (the row number over all sources), ``uri`` and the user's own columns. Which files
there are, with their SHA-256, goes into ``run.json``; a folder without that is a torn beginning
and starts over.

DuckDB reads CSV and JSON lines, evaluates ``where`` and counts duplicates. Parquet is read by
pyarrow, so that its types arrive as they were written.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypedDict

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.config.images import Inventory, Manifest, Prefix, Source, Video
from segbatch.errors import Damaged, SegbatchError, SourceError
from segbatch.images import columns
from segbatch.images.listing import (
    in_glob,
    in_inventory,
    in_prefix,
    local_copy,
    manifest_files,
    one_or_many,
    reading,
)
from segbatch.images.tables import (
    ROWS_PER_GROUP,
    Table,
    csv_table,
    first_lines,
    json_table,
    open_database,
    parquet_table,
)
from segbatch.images.video import FRAME_COLUMNS, expand
from segbatch.storage.uris import shown

__all__ = [
    "ROWS_PER_FILE",
    "Frozen",
    "Listing",
    "ManifestFile",
    "freeze",
    "listed",
    "read",
    "user_columns",
]


@dataclass(frozen=True)
class Frozen:
    """What :func:`freeze` wrote.

    ``duplicates``: rows minus different URIs. ``skipped``: how many files below prefixes and in
    inventories are no images, by extension (lower case, with its dot; ``""`` for none).
    """

    rows: int
    duplicates: int
    files: list[ManifestFile]
    user_columns: list[pa.Field]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Listing:
    """The rows of all sources in their order, as they stream by: ``uri`` and the user's columns.

    ``skipped`` counts as in :class:`Frozen`, each source when it is through.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    skipped: Counter[str]


@dataclass(frozen=True)
class _Rows:
    """One source: its user columns, and batches of ``uri`` and these."""

    name: str
    user_columns: list[pa.Field]
    batches: Iterator[pa.RecordBatch]


def freeze(
    sources: Sequence[Source],
    folder: str,
    *,
    reserved: Collection[str],
    leave_out: str,
    confirm: Callable[[], None] = lambda: None,
) -> Frozen:
    """Write the manifest of ``sources`` into ``folder``; a torn beginning there is deleted first.

    ``reserved`` are the names that a user's column must not have in any case, ``leave_out`` is
    the run's own folder. ``confirm`` raises once another writes to ``folder``: a driver that slept
    meanwhile leaves its files alone. Memory does not grow with the number of rows. Raises
    ``SourceError``, ``Incomplete`` if a source does not answer, and ``OSError`` if ``folder``
    cannot be written.
    """
    torn = [file.uri for file in storage.list_files(folder)]
    storage.delete([uri for uri in torn if FROZEN_NAME.fullmatch(storage.name_of(uri))])
    with listed(sources, reserved=reserved, leave_out=leave_out) as listing:
        files: list[ManifestFile] = []
        try:
            with open_database("256MB") as database:
                batches = _remembered(listing.batches, database)
                for file in write(batches, listing.schema, folder, confirm):
                    files.append(file)
                rows = sum(file["rows"] for file in files)
                users = user_columns(listing.schema)
                duplicates = rows - _different(database)
                return Frozen(rows, duplicates, files, users, dict(listing.skipped))
        except BaseException:
            with suppress(OSError, SegbatchError):  # what stays is a torn beginning
                confirm()
                storage.delete([storage.join(folder, file["name"]) for file in files])
            raise


@contextmanager
def listed(
    sources: Sequence[Source], *, reserved: Collection[str], leave_out: str
) -> Iterator[Listing]:
    """The images of ``sources``, to be read once; raises as :func:`freeze`, also while reading."""
    with tempfile.TemporaryDirectory(prefix="segbatch-") as scratch:
        skipped: Counter[str] = Counter()
        tables = [_rows_of(source, reserved, leave_out, skipped, scratch) for source in sources]
        found = [(table.name, table.user_columns) for table in tables]
        columns.check_spelling(found)
        schema = pa.schema([URI, *columns.settled(columns.union(found))])
        batches = (columns.conform(batch, schema) for table in tables for batch in table.batches)
        yield Listing(schema, batches, skipped)


def _remembered(
    batches: Iterable[pa.RecordBatch], database: duckdb.DuckDBPyConnection
) -> Iterator[pa.RecordBatch]:
    """``batches`` as they are, while 64 bits of each URI go into a table that spills to disk."""
    database.execute("CREATE TABLE seen (hash UBIGINT)")
    for batch in batches:
        database.from_arrow(batch.select([URI.name])).project("hash(uri)").insert_into("seen")
        yield batch


def _different(database: duckdb.DuckDBPyConnection) -> int:
    return int(database.execute("SELECT count(DISTINCT hash) FROM seen").fetchall()[0][0])


# ------------------------------------------------------------------------------------------ sources


def _rows_of(
    source: Source,
    reserved: Collection[str],
    leave_out: str,
    skipped: Counter[str],
    scratch: str,
) -> _Rows:
    if isinstance(source, Manifest):
        return _manifest_rows(source, reserved, scratch)
    if isinstance(source, Prefix):
        return _listed(source.prefix, in_prefix(source, leave_out, skipped))
    if isinstance(source, Inventory):
        return _listed(source.inventory, in_inventory(source, leave_out, skipped))
    if isinstance(source, Video):
        videos = _rows_of(one_or_many(source.videos), reserved, leave_out, skipped, scratch)
        batches = (part for batch in videos.batches for part in expand(batch, source.every))
        return _Rows(videos.name, [*videos.user_columns, *FRAME_COLUMNS], batches)
    return _listed(source.glob, in_glob(source, leave_out))


def _listed(name: str, uris: Iterator[str]) -> _Rows:
    pages = iter(lambda: list(islice(uris, ROWS_PER_GROUP)), [])
    return _Rows(name, [], (pa.record_batch([pa.array(page)], ["uri"]) for page in pages))


def _manifest_rows(source: Manifest, reserved: Collection[str], scratch: str) -> _Rows:
    """A table with a column of URIs. Raises ``SourceError`` for what its columns tell already."""
    name = shown(source.manifest)
    fields, batches = _table(source.manifest, scratch)
    old = [field.name for field in fields]
    new = columns.renamed(old, source.rename, name)
    uri = columns.uri_index(fields, new, source.uri_column, name)
    users = [index for index in range(len(old)) if index != uri]
    columns.check_names([(old[i], new[i]) for i in users], reserved, source.rename, name)

    schema = pa.schema(columns.settled(fields))
    order = [uri, *users]
    names = [URI.name, *(new[index] for index in users)]
    wanted = _everything if source.where is None else _condition(name, source.where, schema)

    def rows() -> Iterator[pa.RecordBatch]:
        first = taken = 0
        for given in batches:
            with reading(name):
                batch = columns.conform(given, schema)
            chosen = wanted(batch)
            kept = batch if len(chosen) == batch.num_rows else batch.take(pa.array(chosen))
            empty = np.flatnonzero(pc.equal(pc.fill_null(kept.column(uri), ""), ""))
            if empty.size:
                value = kept.column(uri)[int(empty[0])].as_py()
                raise SourceError(_no_uri(source, old[uri], first + int(chosen[empty[0]]), value))
            first, taken = first + batch.num_rows, taken + kept.num_rows
            yield pa.record_batch([kept.column(index) for index in order], names)
        if not taken:
            raise SourceError(
                f"{name}: no row fulfils where: {source.where}"
                if first
                else f"{name}: there is no row in it"
            )

    return _Rows(name, [fields[i].with_name(new[i]) for i in users], rows())


def _no_uri(source: Manifest, column: str, row: int, value: str | None) -> str:
    quoted = column if re.fullmatch(r"[A-Za-z_]\w*", column) else f'"{column}"'
    condition = f"{quoted} IS NOT NULL" if value is None else f"{quoted} <> ''"
    if source.where is not None:
        condition = f"({source.where}) AND {condition}"
    return (
        f"{shown(source.manifest)}: row {row} (the first is 0) has no URI in column {column}:"
        f' leave such rows out with where: "{condition}"'
    )


# -------------------------------------------------------------------------------------------- where


def _everything(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    return np.arange(batch.num_rows)


def _condition(
    name: str, where: str, schema: pa.Schema
) -> Callable[[pa.RecordBatch], npt.NDArray[np.int64]]:
    """A function that gives the rows of a batch which fulfil ``where``, in their order.

    The condition sees one batch and nothing else: no file, no setting, no Python variable.
    Raises ``SourceError``, also from the function, if it is no condition on these columns.
    """
    # By row numbers and not by values: the values never pass through DuckDB's types.
    row = "__segbatch_row"
    database = open_database("1GB")
    for setting in ("enable_external_access", "python_enable_replacements"):
        database.execute(f"SET {setting} = false")
    database.execute("SET lock_configuration = true")

    def fulfilling(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        numbered = batch.append_column(row, pa.array(_everything(batch)))
        try:
            expression = duckdb.SQLExpression(where)
            rows = database.from_arrow(numbered).filter(expression).project(row).to_arrow_table()
        except duckdb.Error as error:
            raise SourceError(f"{name}: where: {where}: {first_lines(error)}") from error
        return np.sort(rows.column(row).to_numpy())

    fulfilling(pa.RecordBatch.from_pylist([], schema))
    return fulfilling


# ------------------------------------------------------------------------------------------- tables


def _table(name: str, scratch: str) -> Table:
    """The columns, as they travel, and the batches of what ``manifest:`` names.

    ``scratch`` is a local folder that lives as long as the batches.
    """
    files, base, kind = manifest_files(name)
    if storage.scheme_of(name) not in storage.HTTP_SCHEMES:
        return _READERS[kind](name, files, base)
    return _READERS[kind](name, [local_copy(name, scratch)], base)


def _parquet_table(name: str, files: list[str], base: str) -> Table:
    return parquet_table(files, base, ROWS_PER_GROUP)


_READERS = {"parquet": _parquet_table, "csv": csv_table, "json": json_table}


# The frozen manifest's files: written as a whole or not at all, read back one at a time.
#
# A file holds at most a million rows, because it is one slice of the run.


ROWS_PER_FILE = 1_000_000


FROZEN_NAME = re.compile(r"\d{5,}\.parquet")


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
