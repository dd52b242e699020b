"""Tables as manifests: Parquet, CSV and JSON lines as streams of record batches.

pyarrow reads Parquet, so that its types stay as they were written. DuckDB reads CSV and JSON lines.
Values stay the user's: the same table gives the same rows in all three formats. Text becomes a
number only where every value of the column is a plain decimal number that prints back the same.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segbatch import storage
from segbatch.config.images import MANIFEST_SUFFIXES, has_wildcard, is_glob
from segbatch.errors import SourceError
from segbatch.images import columns
from segbatch.images.listing import (
    listed_spelling,
    local_copy,
    match_user_files,
    reading_source,
    split_glob,
)
from segbatch.storage.text import decode_text, encoding_of
from segbatch.storage.uris import without_query

_HEAD_BYTES = 65_536
_NONE = "\x1f"  # the delimiter of a file with one column
_FOOTERS_AT_ONCE = 16
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

# A CSV column has the first of these types from which every value prints back the same, else it is
# text: leading zeros, a plus, exponents, dates and times stay as they are written.
_WHOLE = "-?(0|[1-9][0-9]*)"
_CSV_TYPES = {
    "BIGINT": (
        f"regexp_full_match({{0}}, '{_WHOLE}') AND {{0}} <> '-0'"
        " AND try_cast({0} AS BIGINT) IS NOT NULL"
    ),
    "DOUBLE": (
        f"regexp_full_match({{0}}, '{_WHOLE}([.]0|[.][0-9]*[1-9])?') AND {{0}} <> '-0'"
        " AND {digits} = {double_digits}"
    ),
    "BOOLEAN": "{0} IN ('true', 'false')",
}


def _keeps_digits(text: str) -> tuple[str, str]:
    """SQL: the significant digits of a number as it is written, and as a double prints them."""

    def digits(number: str) -> str:
        mantissa = f"regexp_replace(regexp_replace({number}, '[eE].*$', ''), '[-+.]', '', 'g')"
        return f"trim(ltrim({mantissa}, '0'), '0')"

    return digits(text), digits(f"CAST(try_cast({text} AS DOUBLE) AS VARCHAR)")


class TableStream(NamedTuple):
    """The columns of a table, with types that results can hold, and its rows, to be read once.

    ``images`` names the columns that hold whole images; they are not read.
    """

    fields: list[pa.Field]
    batches: Iterator[pa.RecordBatch]
    images: Sequence[str] = ()


def open_table(name: str, scratch: str) -> TableStream:
    """The table that ``manifest:`` names: one file, a glob, or a folder of Parquet files.

    ``scratch`` is a local folder that lives as long as the batches. Raises ``SourceError``, and
    ``Incomplete`` if storage does not answer, also while the batches are read.
    """
    with reading_source(name):
        files, base = find_files(name)
    if not files:
        raise SourceError(
            f"{name}: no such file, no folder with .parquet files, and no glob that matches any"
        )
    kinds = {_kind_of(file) for file in files}
    if len(kinds) > 1:
        raise SourceError(f"{name}: files of several kinds: {', '.join(sorted(kinds))}")
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        files = [local_copy(name, scratch)]
    kind = kinds.pop()
    if kind != "parquet":
        files = [_for_duckdb(file, scratch) for file in files]
    return _READERS[kind](name, files, base)


def find_files(name: str) -> tuple[list[str], str]:
    """The files of a table in their order, and the folder below which partitions begin.

    A folder stands for its Parquet files, except hidden ones (``_…``, ``.…``). Raises
    ``SourceError`` for a Delta table.
    """
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        return [name], name.rpartition("/")[0]
    if is_glob(name):
        base = split_glob(name)[0]
        _refuse_delta(name, storage.list_files(storage.join(base, "_delta_log")))
        return [file.uri for file in match_user_files(name)], base
    base = listed_spelling(name)
    listed = list(storage.list_files(base))
    if not listed and storage.exists(base):
        return [base], base.rpartition("/")[0]
    _refuse_delta(name, (file for file in listed if "/_delta_log/" in file.uri))
    return [file.uri for file in listed if _is_visible_parquet(file.uri.removeprefix(base))], base


def _refuse_delta(name: str, log: Iterator[storage.StoredFile]) -> None:
    if next(log, None):
        raise SourceError(
            f"{name}: is a Delta table (it has a _delta_log), whose folder also holds removed rows:"
            " write its current rows to a Parquet file and name that"
        )


def _is_visible_parquet(path: str) -> bool:
    is_hidden = any(part.startswith(("_", ".")) for part in path.split("/"))
    return path.lower().endswith(".parquet") and not is_hidden


def _kind_of(file: str) -> str:
    """The key in ``_READERS``."""
    path = without_query(file).lower()
    if path.endswith(".parquet"):
        return "parquet"
    if path.endswith((".csv", ".csv.gz")):
        return "csv"
    if path.endswith(MANIFEST_SUFFIXES):
        return "json"
    suffixes = ", ".join(MANIFEST_SUFFIXES)
    raise SourceError(f"{without_query(file)}: not a manifest: must end in {suffixes}")


# ------------------------------------------------------------------------------------------ Parquet


class ParquetTable(NamedTuple):
    """The files of a table, with the Hive partitions that their paths name.

    ``fields`` are the columns of all files, with types that results can hold, without ``images``;
    ``keys`` are those of partitions. ``group_rows`` are the rows of the largest row group of each
    file.
    """

    files: list[tuple[str, Mapping[str, str | None]]]
    fields: list[pa.Field]
    keys: list[pa.Field]
    images: list[str]
    group_rows: list[int]

    def batches(self) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The rows, to be read once: a file, the number of a row in it, and rows from there on."""
        for file, values in self.files:
            first = 0
            with reading_source(file), open_parquet(file) as table:
                wanted = [name for name in table.schema_arrow.names if name not in self.images]
                missing = [key for key in self.keys if key.name not in wanted]
                for group in range(table.num_row_groups):
                    for batch in table.iter_batches(
                        columns.BATCH_ROWS, row_groups=[group], columns=wanted
                    ):
                        for key in missing:
                            value = pa.scalar(values.get(key.name)).cast(key.type)
                            batch = batch.append_column(key, pa.repeat(value, batch.num_rows))  # noqa: PLW2901
                        yield file, first, batch
                        first += batch.num_rows


def parquet_table(files: list[str], base: str) -> ParquetTable:
    """One file, or many with Hive partitions.

    Folders named ``key=value`` between ``base`` and a file become columns: integers if every
    value is one and none has a leading zero, else strings.

    The files are read one by one and not as one dataset, because a dataset takes its columns from
    the first file alone, drops those of the others, and reads ahead without a bound on memory.
    """
    group_rows: list[int] = []

    def own_fields(footers: Iterable[tuple[str, tuple[list[pa.Field], int]]]) -> Iterator[Any]:
        for file, (own, rows) in footers:
            group_rows.append(rows)
            yield file, own

    partitions = [_partitions_in(file.removeprefix(base)) for file in files]
    keys = _partition_fields(partitions)
    with reading_source(files[0]), open_parquet(files[0]) as table:
        images = image_columns(table)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        found = pool.map(partial(_footer, images=images), files)
        fields = columns.union(own_fields(zip(files, found, strict=True)))
    # Spark and DuckDB can write a partition's value into the file as well; the file's has a type.
    own = {field.name: field for field in fields}
    keys = [own.get(key.name, key) for key in keys]
    fields = [*fields, *(key for key in keys if key.name not in own)]
    return ParquetTable(list(zip(files, partitions, strict=True)), fields, keys, images, group_rows)


def _open_parquet(name: str, files: list[str], base: str) -> TableStream:
    table = parquet_table(files, base)
    return TableStream(table.fields, (batch for _, _, batch in table.batches()), table.images)


def image_columns(table: pq.ParquetFile) -> list[str]:
    """The columns that hold images: ``struct<bytes, path>`` as Hugging Face writes it, and binary
    columns whose first value is an image.
    """
    schema: pa.Schema = table.schema_arrow
    binary = [field.name for field in schema if _is_binary(field.type)]
    first = next(table.iter_batches(1, columns=binary), None) if binary else None
    heads = {name: first.column(name)[0].as_py() for name in binary} if first is not None else {}
    return [
        field.name
        for field in schema
        if _is_image_struct(field.type) or _is_image(heads.get(field.name))
    ]


def _is_image(data: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(data or b"")).close()
    except Exception:  # Pillow raises almost anything for what is no image
        return False
    return True


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_image_struct(type_: pa.DataType) -> bool:
    if not pa.types.is_struct(type_):
        return False
    return {field.name for field in type_ if _is_binary(field.type)} == {"bytes"}


def _partitions_in(path: str) -> dict[str, str | None]:
    found = dict(re.findall(r"/([^/=]+)=([^/]*)(?=/)", path))
    return {k: None if v == _NULL_PARTITION else unquote(v) for k, v in found.items()}


def _partition_fields(partitions: Sequence[Mapping[str, str | None]]) -> list[pa.Field]:
    values: dict[str, set[str]] = {}
    for partition in partitions:
        for key, value in partition.items():
            values.setdefault(key, set()).update([] if value is None else [value])
    return [
        pa.field(
            key,
            pa.int64()
            if found and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value) for value in found)
            else pa.string(),
        )
        for key, found in values.items()
    ]


def _footer(file: str, images: Sequence[str]) -> tuple[list[pa.Field], int]:
    """The columns of a file without ``images``, and the rows of its largest row group."""
    with reading_source(file), open_parquet(file) as table:
        schema: pa.Schema = table.schema_arrow
        groups = range(table.num_row_groups)
        rows = max((table.metadata.row_group(group).num_rows for group in groups), default=0)
    schema = pa.schema([field for field in schema if field.name not in images])
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SourceError(f"{file}: has two columns named exactly {', '.join(twice)}")
    return columns.result_fields(schema, file), rows


@contextmanager
def open_parquet(file: str, buffer_bytes: int = 0) -> Iterator[pq.ParquetFile]:
    """A Parquet file on any storage.

    Columns are fetched as a whole; with ``buffer_bytes`` in pieces of that size, as far as they
    are read.
    """
    filesystem, path = storage.arrow_filesystem(file)
    whole = not buffer_bytes and not storage.is_local(file)
    with (
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream, pre_buffer=whole, buffer_size=buffer_bytes) as table,
    ):
        yield table


# ---------------------------------------------------------------------------------------------- CSV


def _open_csv(name: str, files: list[str], base: str) -> TableStream:
    """Reads the files twice: once to find the types over all values, once to convert them."""
    header = _csv_header(files[0])
    for file in files[1:]:
        if _csv_header(file) != header:
            raise SourceError(f"{file}: has another header than {files[0]}")
    # Numbered, because DuckDB would rename columns that differ in upper and lower case only.
    numbered = [f"c{number}" for number in range(len(header.names))]
    source = (
        " FROM read_csv($files, columns=$columns, delim=$delim, auto_detect=false, header=true,"
        " quote='\"', escape='\"', comment='', skip=$skip)"
    )
    options = {
        "files": files,
        "columns": dict.fromkeys(numbered, "VARCHAR"),
        "delim": header.delimiter,
        "skip": header.skip,
    }
    database = _database_for(files)
    with _parsing(name):
        types = _csv_types(database, numbered, source, options)
        values = ", ".join(
            f"CAST({column} AS {type_}) AS {column}" for column, type_ in types.items()
        )
        sql = f"SELECT {values}{source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = [
        field.with_name(column)
        for field, column in zip(columns.result_fields(schema, name), header.names, strict=True)
    ]
    batches = _query_batches(name, database, sql, options)
    return TableStream(fields, (batch.rename_columns(header.names) for batch in batches))


class CsvHeader(NamedTuple):
    """The names in a CSV file's header, its delimiter, and the lines before the header."""

    names: list[str]
    delimiter: str
    skip: int


def _csv_header(file: str) -> CsvHeader:
    """The header of a file. Its delimiter is what Excel's line ``sep=;`` says, else the one of four
    characters that gives the most names.

    A line without any is one column, in which commas and semicolons are part of the URIs.
    """
    with _opened(file) as plain:
        first = decode_text(plain.readline(), file, SourceError)
        excel = re.fullmatch(r'"?sep=(.)"?\n?', first)
        line = decode_text(plain.readline(), file, SourceError) if excel else first
    delimiters = excel[1] if excel else ",;\t|"
    names, delimiter = max(
        ((next(csv.reader([line], delimiter=d), []), d) for d in delimiters),
        key=lambda found: len(found[0]),
    )
    if len(names) < 2:
        names, delimiter = next(csv.reader([line], delimiter=_NONE), []) or [""], _NONE
    names = [name.strip() or f"column{n}" for n, name in enumerate(names)]
    return CsvHeader(names, delimiter, skip=1 if excel else 0)


def _csv_types(
    database: duckdb.DuckDBPyConnection, names: Sequence[str], source: str, options: dict[str, Any]
) -> dict[str, str]:
    """For each column the first of ``_CSV_TYPES`` that all its values have, else ``VARCHAR``.

    The first rows already rule out most types, so that few are tested on all rows.
    """
    left = [(name, type_) for name in names for type_ in _CSV_TYPES]
    for rows, without_values in (
        (f" FROM (SELECT *{source} LIMIT 1000)", "true"),
        (source, "false"),
    ):
        if not left:
            break
        tests = ", ".join(
            f"coalesce(bool_and({_csv_test(name, type_)}) FILTER (WHERE {name} IS NOT NULL),"
            f" {without_values})"
            for name, type_ in left
        )
        answers = database.sql(f"SELECT {tests}{rows}", params=options).fetchall()[0]
        left = [pair for pair, holds in zip(left, answers, strict=True) if holds]
    return dict.fromkeys(names, "VARCHAR") | dict(reversed(left))


def _csv_test(name: str, type_: str) -> str:
    digits, double_digits = _keeps_digits(name)
    return _CSV_TYPES[type_].format(name, digits=digits, double_digits=double_digits)


# --------------------------------------------------------------------------------------- JSON lines


def open_json_lines(name: str, files: list[str], base: str = "") -> TableStream:
    """Files of JSON objects, one a line, as one table; ``name`` is for messages.

    Reads the files twice: once to find which kinds of JSON values each key has, once for these.

    Strings stay strings, also those that look like numbers or dates. A key with values of several
    kinds, and one with numbers that no double holds, becomes their text.
    """
    options: dict[str, Any] = {"files": files}
    database = _database_for(files)
    with _parsing(name):
        _check_keys(name, database, files)
        structure = database.sql(
            "SELECT json_group_structure(json) FROM read_ndjson_objects($files)", params=options
        ).fetchall()[0][0]
        kinds = json.loads(structure or "{}")
        if not isinstance(kinds, dict):
            raise SourceError(f"{name}: its lines must be JSON objects, each in one line")
        types = {key: _sql_type(kind) for key, kind in kinds.items()}
        types |= _json_numbers(database, types, options)
        source = "FROM read_json($files, format='newline_delimited', columns=$columns)"
        options["columns"] = types
        values = ", ".join(
            f"({_quoted(key)} ->> '$') AS {_quoted(key)}" if type_ == "JSON" else _quoted(key)
            for key, type_ in types.items()
        )
        sql = f"SELECT {values} {source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = columns.result_fields(schema, name)
    return TableStream(fields, _query_batches(name, database, sql, options))


def _sql_type(kind: Any) -> str:
    """The SQL type for a kind of JSON values, as ``json_group_structure`` names it."""
    if isinstance(kind, dict):
        inner = ", ".join(f"{_quoted(key)} {_sql_type(value)}" for key, value in kind.items())
        return f"STRUCT({inner})" if kind else "JSON"
    if isinstance(kind, list):
        return f"{_sql_type(kind[0])}[]"
    return {"NULL": "VARCHAR", "UBIGINT": "BIGINT", "HUGEINT": "BIGINT"}.get(kind, str(kind))


def _json_numbers(
    database: duckdb.DuckDBPyConnection, types: Mapping[str, str], options: dict[str, Any]
) -> dict[str, str]:
    """``JSON`` for each key whose numbers would lose digits in its type."""
    numbers = [key for key, type_ in types.items() if type_ in ("BIGINT", "DOUBLE")]
    if not numbers:
        return {}
    raw = {key: f"json_extract_string(json, {_pointer(key)})" for key in numbers}
    tests = []
    for key in numbers:
        fits = f"try_cast({raw[key]} AS BIGINT) IS NOT NULL"
        if types[key] == "DOUBLE":
            digits, double_digits = _keeps_digits(raw[key])
            fits = f"{digits} = {double_digits} OR NOT isfinite(try_cast({raw[key]} AS DOUBLE))"
        tests.append(f"coalesce(bool_and({fits}) FILTER (WHERE {raw[key]} IS NOT NULL), true)")
    sql = f"SELECT {', '.join(tests)} FROM read_ndjson_objects($files)"
    answers = database.sql(sql, params=options).fetchall()[0]
    return {key: "JSON" for key, fits in zip(numbers, answers, strict=True) if not fits}


def _pointer(key: str) -> str:
    """A JSON pointer to ``key`` as an SQL text."""
    path = key.replace("~", "~0").replace("/", "~1").replace("'", "''")
    return f"'/{path}'"


def _check_keys(name: str, database: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """Refuse keys that differ in case only: DuckDB would rename one of them without a word."""
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


_READERS: dict[str, Callable[[str, list[str], str], TableStream]] = {
    "parquet": _open_parquet,
    "csv": _open_csv,
    "json": open_json_lines,
}


# ----------------------------------------------------------------------------------- text encodings


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """The bytes of a text file, unpacked if its name says that it is packed."""
    fs, path = storage.filesystem(file)
    unpack = gzip.open if file.lower().endswith(".gz") else nullcontext
    with reading_source(file), fs.open(path, "rb") as raw, unpack(raw) as plain:
        yield cast(IO[bytes], plain)


def _for_duckdb(file: str, scratch: str) -> str:
    """``file``, or a copy in ``scratch`` if DuckDB would not read it as it is.

    The copy is in UTF-8 without a mark and with ``\\n``, and has a plain name: DuckDB takes every
    name for a glob.
    """
    with _opened(file) as plain:
        head = plain.read(_HEAD_BYTES)
    encoding = encoding_of(head)
    text = head.decode(encoding, "ignore")
    old_mac = "\r" in text and "\n" not in text
    is_utf8 = encoding == "utf-8" and not old_mac
    if is_utf8 and not has_wildcard(file):
        return file
    suffix = PurePosixPath(file.lower().removesuffix(".gz")).suffix
    handle, copy = tempfile.mkstemp(suffix=suffix, dir=scratch)
    with _opened(file) as plain, os.fdopen(handle, "wb") as target:
        if is_utf8:
            shutil.copyfileobj(plain, target)
        else:
            lines = io.TextIOWrapper(plain, encoding, newline=None if old_mac else "")
            target.writelines(line.encode() for line in lines)
    return copy


# ------------------------------------------------------------------------------------------- DuckDB


def in_memory_duckdb(memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills to the local disk and never downloads an extension."""
    database = duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    count_times_in_utc(database)
    return database


def count_times_in_utc(database: duckdb.DuckDBPyConnection) -> None:
    """Let a query over times give the same on each machine, whatever the machine's own zone is."""
    # Without ICU there is no such setting, and all times are in UTC.
    with suppress(duckdb.CatalogException):
        database.execute("SET TimeZone = 'UTC'")


def _database_for(files: Sequence[str]) -> duckdb.DuckDBPyConnection:
    """A DuckDB that reads ``files``, on disk or in one storage, through fsspec: DuckDB's wheel has
    no S3 client.
    """
    database = in_memory_duckdb("2GB")
    if remote := next((file for file in files if not storage.is_local(file)), None):
        database.register_filesystem(storage.filesystem(remote)[0])
    return database


def _query_batches(
    name: str, database: duckdb.DuckDBPyConnection, sql: str, options: dict[str, Any]
) -> Iterator[pa.RecordBatch]:
    with _parsing(name):
        yield from database.sql(sql, params=options).to_arrow_reader(columns.BATCH_ROWS)


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        why = first_lines(error)
        if "utf-8" in why.lower():
            line = re.search(r"Line: (\d+)", str(error))
            where = f"line {line[1]} is" if line else "is"
            why = f"{where} not UTF-8 text: save it as UTF-8"
        raise SourceError(f"{name}: {why}") from error


def first_lines(error: Exception) -> str:
    """DuckDB's message without its advice, which mentions settings that users cannot change."""
    return storage.one_line(Exception(re.split(r"\s*\n\s*\n|\nPossible|\nLINE 1", str(error))[0]))
