"""Tables as manifests: Parquet, CSV and JSON lines as streams of record batches.

pyarrow reads Parquet, so that its types stay as they were written. DuckDB reads CSV and JSON lines,
and finds the types that people mean.
"""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.config.images import MANIFEST_SUFFIXES
from segbatch.errors import SourceError
from segbatch.images import columns
from segbatch.images.listing import (
    has_wildcard,
    list_matches,
    listed_spelling,
    local_copy,
    reading_source,
    split_glob,
)
from segbatch.storage.uris import without_query

_FOOTERS_AT_ONCE = 16
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

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

# Types that DuckDB detects in JSON but that the results cannot hold: the text is taken instead.
_JSON_VALUES = {
    "TIME": "CAST({0} AS VARCHAR)",
    "UUID": "CAST({0} AS VARCHAR)",
    '"NULL"': "CAST({0} AS VARCHAR)",
    "JSON": "({0} ->> '$')",
}


class TableStream(NamedTuple):
    """The columns of a table, with types that results can hold, and its rows, to be read once."""

    fields: list[pa.Field]
    batches: Iterator[pa.RecordBatch]


def open_table(name: str, scratch: str) -> TableStream:
    """The table that ``manifest:`` names: one file, a glob, or a folder of Parquet files.

    ``scratch`` is a local folder that lives as long as the batches. Raises ``SourceError``, and
    ``Incomplete`` if storage does not answer, also while the batches are read.
    """
    with reading_source(name):
        files, base = _find_files(name)
    if not files:
        raise SourceError(
            f"{name}: no such file, no folder with .parquet files, and no glob that matches any"
        )
    kinds = {_kind_of(file) for file in files}
    if len(kinds) > 1:
        raise SourceError(f"{name}: files of several kinds: {', '.join(sorted(kinds))}")
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        files = [local_copy(name, scratch)]
    return _READERS[kinds.pop()](name, files, base)


def _find_files(name: str) -> tuple[list[str], str]:
    """The files of a table in their order, and the folder below which partitions begin.

    A folder stands for its Parquet files, except hidden ones (``_…``, ``.…``). Raises
    ``SourceError`` for a Delta table.
    """
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        return [name], name.rpartition("/")[0]
    if has_wildcard(name):
        base = split_glob(name)[0]
        _refuse_delta(name, storage.list_files(storage.join(base, "_delta_log")))
        return [file.uri for file in list_matches(name)], base
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


def _open_parquet(name: str, files: list[str], base: str) -> TableStream:
    """The columns of all files together; one file, or many with Hive partitions.

    Folders named ``key=value`` between ``base`` and a file become columns: integers if every
    value is one and none has a leading zero, else strings.

    The files are read one by one and not as one dataset, because a dataset takes its columns from
    the first file alone, drops those of the others, and reads ahead without a bound on memory.
    """
    partitions = [_partitions_in(file.removeprefix(base)) for file in files]
    keys = _partition_fields(partitions)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        fields = columns.union(zip(files, pool.map(_parquet_fields, files), strict=True))
    fields = columns.union([(base, fields), (f"{base} (folder names)", keys)])
    return TableStream(fields, _parquet_batches(list(zip(files, partitions, strict=True)), keys))


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


def _parquet_fields(file: str) -> list[pa.Field]:
    with reading_source(file), _parquet_file(file) as table:
        schema: pa.Schema = table.schema_arrow
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SourceError(f"{file}: has two columns named exactly {', '.join(twice)}")
    return columns.result_fields(schema, file)


def _parquet_batches(
    files: Sequence[tuple[str, Mapping[str, str | None]]], keys: list[pa.Field]
) -> Iterator[pa.RecordBatch]:
    for file, values in files:
        with reading_source(file), _parquet_file(file) as table:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(columns.BATCH_ROWS, row_groups=[group]):
                    for key in keys:
                        value = pa.scalar(values.get(key.name)).cast(key.type)
                        batch = batch.append_column(key, pa.repeat(value, batch.num_rows))  # noqa: PLW2901
                    yield batch


@contextmanager
def _parquet_file(file: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = storage.arrow_filesystem(file)
    with (
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream, pre_buffer=not storage.is_local(file)) as table,
    ):
        yield table


# ---------------------------------------------------------------------------------------------- CSV


def _open_csv(name: str, files: list[str], base: str) -> TableStream:
    """Reads the files twice: once to find the types over all values, once to convert them."""
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
    database = _database_for(files[0])
    with _parsing(name):
        types = _csv_types(database, numbered, source, options)
        values = ", ".join(
            f"CAST({column} AS {type_}) AS {column}" for column, type_ in types.items()
        )
        sql = f"SELECT {values}{source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = [
        field.with_name(column)
        for field, column in zip(columns.result_fields(schema, name), header, strict=True)
    ]
    batches = _query_batches(name, database, sql, options)
    return TableStream(fields, (batch.rename_columns(header) for batch in batches))


def _csv_header(file: str) -> tuple[list[str], str]:
    """The names in the first line, and the delimiter: the most frequent of four characters.

    A line without any is one column, in which commas and semicolons are part of the URIs.
    """
    fs, path = storage.filesystem(file)
    unpack = gzip.open if file.lower().endswith(".gz") else nullcontext
    with reading_source(file), fs.open(path, "rb") as raw, unpack(raw) as plain:
        line = plain.readline().decode("utf-8-sig")
    delimiter = max(",;\t|", key=line.count)
    if delimiter not in line:
        delimiter = "\x1f"
    names = next(csv.reader([line], delimiter=delimiter)) or [""]
    return [name.strip() or f"column{n}" for n, name in enumerate(names)], delimiter


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
            f"coalesce(bool_and(regexp_full_match(trim({name}), '{_CSV_TYPES[type_]}') AND"
            f" try_cast({name} AS {type_}) IS NOT NULL) FILTER (WHERE {name} IS NOT NULL),"
            f" {without_values})"
            for name, type_ in left
        )
        answers = database.sql(f"SELECT {tests}{rows}", params=options).fetchall()[0]
        left = [pair for pair, holds in zip(left, answers, strict=True) if holds]
    return dict.fromkeys(names, "VARCHAR") | dict(reversed(left))


# --------------------------------------------------------------------------------------- JSON lines


def _open_json(name: str, files: list[str], base: str) -> TableStream:
    source = (
        "FROM read_json($files, format='newline_delimited', union_by_name=true, sample_size=-1,"
        " map_inference_threshold=-1)"
    )
    options = {"files": files}
    database = _database_for(files[0])
    with _parsing(name):
        _check_keys(name, database, files)
        found = database.sql(f"SELECT * {source}", params=options)
        values = ", ".join(
            _JSON_VALUES.get(str(type_), "{0}").format(_quoted(column)) + f" AS {_quoted(column)}"
            for column, type_ in zip(found.columns, found.types, strict=True)
        )
        sql = f"SELECT {values} {source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = columns.result_fields(schema, name)
    return TableStream(fields, _query_batches(name, database, sql, options))


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
    "json": _open_json,
}


# ------------------------------------------------------------------------------------------- DuckDB


def in_memory_duckdb(memory_limit: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills to the local disk and never downloads an extension."""
    return duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


def _database_for(file: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB that reads ``file``, and others in the same storage, through fsspec: DuckDB's wheel
    has no S3 client.
    """
    database = in_memory_duckdb("2GB")
    if not storage.is_local(file):
        database.register_filesystem(storage.filesystem(file)[0])
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
        raise SourceError(f"{name}: {first_lines(error)}") from error


def first_lines(error: Exception) -> str:
    """DuckDB's message without its advice, which mentions settings that users cannot change."""
    return storage.one_line(Exception(re.split(r"\s*\n\s*\n|\nPossible|\nLINE 1", str(error))[0]))
