"""The manifest: the list of images, frozen once in the run's folder.

:func:`freeze` reads every source as a stream of record batches and writes Parquet files with
``image_id`` (the row number over all sources), ``uri`` and the user's own columns. Which files
there are, with their SHA-256, goes into ``run.json``; a folder without that is a torn beginning
and starts over.

DuckDB reads CSV and JSON lines, evaluates ``where`` and counts duplicates. Parquet is read by
pyarrow, so that its types arrive as they were written.
"""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.images import columns
from segbatch.images.frozen import (
    ROWS_PER_FILE,
    ROWS_PER_GROUP,
    URI,
    ManifestFile,
    read,
    user_columns,
    write,
)
from segbatch.images.parquet import parquet_table
from segbatch.images.sources import (
    in_glob,
    in_inventory,
    in_prefix,
    local_copy,
    manifest_files,
    reading,
    shown,
)
from segbatch.job import Inventory, Manifest, Prefix, Source

__all__ = ["ROWS_PER_FILE", "Frozen", "ManifestFile", "freeze", "read", "user_columns"]

Table = tuple[list[pa.Field], Iterator[pa.RecordBatch]]

# A CSV column has the first of these types that every value is written as, else it is a string.
# Numbers with leading zeros or a plus (postal codes, telephone numbers) and numbers with more
# digits than the type holds stay strings, because converting them would lose something.
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = "[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_WHOLE = "(0|[1-9][0-9]{0,14})"
_CSV_TYPES = {
    "BIGINT": "-?(0|[1-9][0-9]*)",
    "DOUBLE": f"-?({_WHOLE}|{_WHOLE}?[.][0-9]+)([eE][-+]?[0-9]+)?|(?i:nan|-?inf(inity)?)",
    "BOOLEAN": "(?i:true|false)",
    "DATE": _DATE,
    "TIMESTAMP": f"{_DATE}[ T]{_TIME}",
    "TIMESTAMPTZ": f"{_DATE}[ T]{_TIME} ?(Z|[-+][0-9]{{2}}(:?[0-9]{{2}})?)",
}
# Types that DuckDB sees in JSON and that would not travel, and what is taken instead: the text.
_JSON_VALUES = {
    "TIME": "CAST({0} AS VARCHAR)",
    "UUID": "CAST({0} AS VARCHAR)",
    '"NULL"': "CAST({0} AS VARCHAR)",
    "JSON": "({0} ->> '$')",
}


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
class _Rows:
    """One source: its user columns, and batches of ``uri`` and these."""

    name: str
    user_columns: list[pa.Field]
    batches: Iterator[pa.RecordBatch]


def freeze(
    sources: Sequence[Source], folder: str, *, reserved: Collection[str], leave_out: str
) -> Frozen:
    """Write the manifest of ``sources`` into ``folder``; what lies there is deleted first.

    ``reserved`` are the names that a user's column must not have in any case, ``leave_out`` is
    the run's own folder. Memory does not grow with the number of rows. Raises ``SourceError``,
    ``Incomplete`` if a source does not answer, and ``OSError`` if ``folder`` cannot be written.
    """
    storage.delete([file.uri for file in storage.list_files(folder)])
    with tempfile.TemporaryDirectory(prefix="segbatch-") as scratch:
        skipped: Counter[str] = Counter()
        tables = [_rows_of(source, reserved, leave_out, skipped, scratch) for source in sources]
        found = [(table.name, table.user_columns) for table in tables]
        columns.check_spelling(found)
        users = columns.settled(columns.union(found))
        schema = pa.schema([URI, *users])
        batches = (columns.conform(batch, schema) for table in tables for batch in table.batches)
        files: list[ManifestFile] = []
        try:
            with _database("256MB") as database:
                for file in write(_remembered(batches, database), schema, folder):
                    files.append(file)
                rows = sum(file["rows"] for file in files)
                return Frozen(rows, rows - _different(database), files, users, dict(skipped))
        except BaseException:
            with suppress(OSError):  # what stays is a torn beginning
                storage.delete([storage.join(folder, file["name"]) for file in files])
            raise


def _database(memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills to the local disk and never downloads an extension."""
    return duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


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
    database = _database("1GB")
    for setting in ("enable_external_access", "python_enable_replacements"):
        database.execute(f"SET {setting} = false")
    database.execute("SET lock_configuration = true")

    def fulfilling(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        numbered = batch.append_column(row, pa.array(_everything(batch)))
        try:
            expression = duckdb.SQLExpression(where)
            rows = database.from_arrow(numbered).filter(expression).project(row).to_arrow_table()
        except duckdb.Error as error:
            raise SourceError(f"{name}: where: {where}: {_first_lines(error)}") from error
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


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise SourceError(f"{name}: {_first_lines(error)}") from error


def _first_lines(error: Exception) -> str:
    """DuckDB's message without its advice, which speaks of settings that we do not have."""
    return storage.one_line(Exception(re.split(r"\s*\n\s*\n|\nPossible|\nLINE 1", str(error))[0]))


def _stream(
    name: str, database: duckdb.DuckDBPyConnection, sql: str, options: dict[str, Any]
) -> Iterator[pa.RecordBatch]:
    with _parsing(name):
        yield from database.sql(sql, params=options).to_arrow_reader(ROWS_PER_GROUP)


def _reader(file: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB that reads ``file`` and its like through fsspec: its wheel has no client for S3."""
    database = _database("2GB")
    if not storage.is_local(file):
        database.register_filesystem(storage.filesystem(file)[0])
    return database


def _csv_table(name: str, files: list[str], base: str) -> Table:
    """Two readings: one to find the types over all values, one to convert them."""
    header, delimiter = _csv_header(files[0])
    for file in files[1:]:
        if _csv_header(file) != (header, delimiter):
            raise SourceError(f"{file}: has another header than {files[0]}")
    # Numbered, because DuckDB would rename columns that differ in upper and lower case only.
    numbered = [f"c{number}" for number in range(len(header))]
    source = (
        " FROM read_csv($files, columns=$columns, delim=$delim, auto_detect=false, header=true,"
        " quote='\"', escape='\"', comment='')"
    )
    options = {
        "files": files,
        "columns": dict.fromkeys(numbered, "VARCHAR"),
        "delim": delimiter,
    }
    database = _reader(files[0])
    with _parsing(name):
        types = _csv_types(database, numbered, source, options)
        values = ", ".join(
            f"CAST({column} AS {type_}) AS {column}" for column, type_ in types.items()
        )
        sql = f"SELECT {values}{source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = [
        field.with_name(column)
        for field, column in zip(columns.travelling_fields(schema, name), header, strict=True)
    ]
    stream = _stream(name, database, sql, options)
    return fields, (batch.rename_columns(header) for batch in stream)


def _csv_types(
    database: duckdb.DuckDBPyConnection, names: Sequence[str], source: str, options: dict[str, Any]
) -> dict[str, str]:
    """For each column the first of ``_CSV_TYPES`` that all its values have, else ``VARCHAR``.

    A glance at the first rows leaves little to test on all of them.
    """
    left = [(name, type_) for name in names for type_ in _CSV_TYPES]
    for rows, without_values in (
        (f" FROM (SELECT *{source} LIMIT 1000)", "true"),
        (source, "false"),
    ):
        if not left:
            break
        tests = ", ".join(
            f"coalesce(bool_and(regexp_full_match(trim({name}), '{_CSV_TYPES[type_]}') AND"
            f" try_cast({name} AS {type_}) IS NOT NULL) FILTER (WHERE {name} IS NOT NULL),"
            f" {without_values})"
            for name, type_ in left
        )
        answers = database.sql(f"SELECT {tests}{rows}", params=options).fetchall()[0]
        left = [pair for pair, holds in zip(left, answers, strict=True) if holds]
    return dict.fromkeys(names, "VARCHAR") | dict(reversed(left))


def _csv_header(file: str) -> tuple[list[str], str]:
    """The names in the first line, and the delimiter that stands most often between them.

    A line without any is one column, in which commas and semicolons are part of the URIs.
    """
    fs, path = storage.filesystem(file)
    unpack = gzip.open if file.lower().endswith(".gz") else nullcontext
    with reading(file), fs.open(path, "rb") as raw, unpack(raw) as plain:
        line = plain.readline().decode("utf-8-sig")
    delimiter = max(",;\t|", key=line.count)
    if delimiter not in line:
        delimiter = "\x1f"
    names = next(csv.reader([line], delimiter=delimiter)) or [""]
    return [name.strip() or f"column{n}" for n, name in enumerate(names)], delimiter


def _json_table(name: str, files: list[str], base: str) -> Table:
    source = (
        "FROM read_json($files, format='newline_delimited', union_by_name=true, sample_size=-1,"
        " map_inference_threshold=-1)"
    )
    options = {"files": files}
    database = _reader(files[0])
    with _parsing(name):
        _check_keys(name, database, files)
        found = database.sql(f"SELECT * {source}", params=options)
        values = ", ".join(
            _JSON_VALUES.get(str(type_), "{0}").format(_quoted(column)) + f" AS {_quoted(column)}"
            for column, type_ in zip(found.columns, found.types, strict=True)
        )
        sql = f"SELECT {values} {source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    return columns.travelling_fields(schema, name), _stream(name, database, sql, options)


def _check_keys(name: str, database: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """DuckDB renames a key that differs from another in case only; nobody would find it again."""
    keys = database.sql(
        "SELECT DISTINCT unnest(json_keys(json)) AS key FROM read_ndjson_objects($files)"
        " ORDER BY key",
        params={"files": files},
    ).fetchall()
    spelled: dict[str, str] = {}
    for (key,) in keys:
        other = spelled.setdefault(key.lower(), key)
        if other != key:
            raise SourceError(
                f"{name}: the keys {other} and {key} differ in upper and lower case only: give"
                " one of them another name in the file"
            )


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _parquet_table(name: str, files: list[str], base: str) -> Table:
    return parquet_table(files, base, ROWS_PER_GROUP)


_READERS = {"parquet": _parquet_table, "csv": _csv_table, "json": _json_table}
