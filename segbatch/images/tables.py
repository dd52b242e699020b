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
from segbatch.errors import Incomplete, SourceError
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
IMAGE_BUFFER_BYTES = 4 << 20  # of a column of images at a time: each is a request to object storage
_ROWS_SEARCHED = 1000  # for the first value of a binary column
_ROWS_AT_ONCE = 16  # of them
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
    return _digits(text), _digits(f"CAST(try_cast({text} AS DOUBLE) AS VARCHAR)")


def _digits(number: str) -> str:
    mantissa = f"regexp_replace(regexp_replace({number}, '[eE].*$', ''), '[-+.]', '', 'g')"
    return f"trim(ltrim({mantissa}, '0'), '0')"


def _all_digits(json_text: str) -> str:
    """SQL: the significant digits of every number in a JSON text, sorted."""
    without_strings = rf"""regexp_replace({json_text}, '"([^"\\]|\\.)*"', '', 'g')"""
    numbers = f"regexp_extract_all({without_strings}, '-?[0-9][-+.0-9eE]*')"
    return f"list_sort(list_transform({numbers}, lambda number: {_digits('number')}))"


class TableStream(NamedTuple):
    """The columns of a table, with types that results can hold, and its rows, to be read once.

    ``images`` names the columns that hold images; they are left out.
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
    kind = kinds.pop()
    originals = {}  # of copies, which errors must not name
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        files = [local_copy(name, scratch)]
        name = originals[files[0]] = without_query(name)
    with _naming(originals):
        if kind != "parquet":
            readable = [_for_duckdb(file, scratch) for file in files]
            pairs = zip(readable, files, strict=True)
            originals |= {copy: originals.get(file, file) for copy, file in pairs}
            files = readable
        table = _READERS[kind](name, files, base)

    def batches() -> Iterator[pa.RecordBatch]:
        with _naming(originals):
            yield from table.batches

    return table._replace(batches=batches())


@contextmanager
def _naming(originals: Mapping[str, str]) -> Iterator[None]:
    """Name the ``originals`` of copies in errors."""
    try:
        yield
    except (SourceError, Incomplete) as error:
        text = str(error)
        for copy, original in originals.items():
            text = text.replace(copy, original)
        raise type(error)(text) from error.__cause__


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


class ImageColumns(NamedTuple):
    """The columns of a table that hold images, by the first values of its first file.

    ``single`` hold an image a row, ``nested`` hold images in lists or structs. ``unnamed`` are
    those of ``single`` that the URI of a row without ``&column=`` may mean: their first value, or
    their type, says that they hold images. URIs of existing runs depend on it.
    """

    single: list[str]
    nested: list[str]
    unnamed: list[str]

    @property
    def all(self) -> list[str]:
        """The names of all columns that hold images."""
        return [*self.single, *self.nested]


class ParquetTable(NamedTuple):
    """The files of a table, with the Hive partitions that their paths name.

    ``fields`` are the columns of all files, with types that results can hold, without those of
    images; ``keys`` are those of partitions. ``group_rows`` are the rows of the largest row group
    of each file.
    """

    files: list[tuple[str, Mapping[str, str | None]]]
    fields: list[pa.Field]
    keys: list[pa.Field]
    images: ImageColumns
    group_rows: list[int]

    def batches(self) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The rows, to be read once: a file, the number of a row in it, and rows from there on."""
        left_out = set(self.images.all)
        for file, values in self.files:
            first = 0
            with reading_source(file), open_parquet(file) as table:
                wanted = [name for name in table.schema_arrow.names if name not in left_out]
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
    with reading_source(files[0]), open_parquet(files[0], IMAGE_BUFFER_BYTES) as table:
        images = image_columns(table)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        found = pool.map(partial(_footer, images=images.all), files)
        fields = columns.union(own_fields(zip(files, found, strict=True)))
    # Spark and DuckDB can write a partition's value into the file as well; the file's has a type.
    own = {field.name: field for field in fields}
    keys = [own.get(key.name, key) for key in keys]
    fields = [*fields, *(key for key in keys if key.name not in own)]
    return ParquetTable(list(zip(files, partitions, strict=True)), fields, keys, images, group_rows)


def _open_parquet(name: str, files: list[str], base: str) -> TableStream:
    table = parquet_table(files, base)
    return TableStream(table.fields, (batch for _, _, batch in table.batches()), table.images.all)


def image_columns(table: pq.ParquetFile) -> ImageColumns:
    """The columns that hold images: ``struct<bytes, path>`` as Hugging Face writes it, and binary
    columns whose first value is an image.
    """
    found = ImageColumns([], [], [])
    for field in table.schema_arrow:
        is_struct = _is_image_struct(field.type)
        row = None if is_struct else _row_of_first_image(table, field)
        if is_struct or (row is not None and _is_binary(field.type)):
            found.single.append(field.name)
            if row in (None, 0) and "binary_view" not in str(field.type):
                found.unnamed.append(field.name)
        elif row is not None or _has_image_struct(field.type):
            found.nested.append(field.name)
    return found


def _row_of_first_image(table: pq.ParquetFile, field: pa.Field) -> int | None:
    """The row of the first value of a column of binaries or of lists of them; ``None`` if there is
    none in the first rows, or it is no image.
    """
    inner = field.type.value_type if hasattr(field.type, "value_field") else field.type
    if not _is_binary(inner):
        return None
    first = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[field.name]):
        for row, value in enumerate(batch.column(field.name).to_pylist(), first):
            if value:
                return row if _is_image(value[0] if isinstance(value, list) else value) else None
        first += batch.num_rows
        if first >= _ROWS_SEARCHED:
            break
    return None


def _has_image_struct(type_: pa.DataType) -> bool:
    inner = [type_.field(number).type for number in range(type_.num_fields)]
    return any(_is_image_struct(one) or _has_image_struct(one) for one in inner)


def _is_image(data: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(data or b"")).close()
    except Exception:  # Pillow raises almost anything for what is no image
        return False
    return True


def _is_binary(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(type_) for is_kind in kinds)


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
    """Reads the files once to find the types over all values, and once to convert them."""
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
    delimiters, skip = ",;\t|", 0
    with _opened(file) as plain:
        for line in (decode_text(data, file, SourceError) for data in plain):
            if excel := re.fullmatch(r'"?sep=(.)"?\n?', line):
                delimiters = excel[1]
            elif line.strip():
                break
            skip += 1
        else:
            raise SourceError(f"{file}: has no rows")
    names, delimiter = max(
        ((next(csv.reader([line], delimiter=d), []), d) for d in delimiters),
        key=lambda found: len(found[0]),
    )
    if len(names) < 2:
        names, delimiter = next(csv.reader([line], delimiter=_NONE), []) or [""], _NONE
    names = [name.strip() or f"column{n}" for n, name in enumerate(names)]
    return CsvHeader(names, delimiter, skip)


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

    Reads the files four times: for the keys, for the kinds of JSON values that each has, for the
    digits of numbers, and for the values.

    Strings stay strings, also those that look like numbers or dates. A key becomes the JSON text of
    its values where these are of several kinds or have numbers that no double holds, and so does
    an object with keys that are empty or differ in case only.
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
        if not kinds:
            raise SourceError(f"{name}: has no rows")
        types = {key: _sql_type(kind) for key, kind in kinds.items()}
        types |= _json_numbers(database, types, options)
        source = "FROM read_json($files, format='newline_delimited', columns=$columns)"
        options["columns"] = types
        values = ", ".join(
            f"({quoted_name(key)} ->> '$') AS {quoted_name(key)}"
            if type_ == "JSON"
            else quoted_name(key)
            for key, type_ in types.items()
        )
        sql = f"SELECT {values} {source}"
        schema = database.sql(f"{sql} LIMIT 0", params=options).to_arrow_table().schema
    fields = columns.result_fields(schema, name)
    return TableStream(fields, _query_batches(name, database, sql, options))


def _sql_type(kind: Any) -> str:
    """The SQL type for a kind of JSON values, as ``json_group_structure`` names it."""
    if isinstance(kind, dict):
        if "" in kind or len({key.lower() for key in kind}) < len(kind):
            return "JSON"
        inner = ", ".join(f"{quoted_name(key)} {_sql_type(value)}" for key, value in kind.items())
        return f"STRUCT({inner})" if kind else "JSON"
    if isinstance(kind, list):
        return f"{_sql_type(kind[0])}[]"
    return {"NULL": "VARCHAR", "UBIGINT": "BIGINT", "HUGEINT": "BIGINT"}.get(kind, str(kind))


def _json_numbers(
    database: duckdb.DuckDBPyConnection, types: Mapping[str, str], options: dict[str, Any]
) -> dict[str, str]:
    """``JSON`` for each key whose numbers would lose digits in its type."""
    numbers = [key for key, type_ in types.items() if "BIGINT" in type_ or "DOUBLE" in type_]
    if not numbers:
        return {}
    raw = {key: f"json_extract_string(json, {_pointer(key)})" for key in numbers}
    tests = []
    for key in numbers:
        fits = f"try_cast({raw[key]} AS BIGINT) IS NOT NULL"
        if types[key] not in ("BIGINT", "DOUBLE"):
            value = f"try_cast(json_extract(json, {_pointer(key)}) AS {types[key]})"
            converted = f"CAST(to_json({value}) AS VARCHAR)"
            fits = f"coalesce({_all_digits(raw[key])} = {_all_digits(converted)}, false)"
        elif types[key] == "DOUBLE":
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
    """Refuse keys that are empty, and those that differ in case only: DuckDB would rename one of
    them without a word.
    """
    keys = database.sql(
        "SELECT DISTINCT unnest(json_keys(json)) AS key FROM read_ndjson_objects($files)"
        " ORDER BY key",
        params={"files": files},
    ).fetchall()
    spelled: dict[str, str] = {}
    for (key,) in keys:
        if not key:
            raise SourceError(f'{name}: the key "" is no name of a column: give it another one')
        other = spelled.setdefault(key.lower(), key)
        if other != key:
            raise SourceError(
                f"{name}: the keys {other} and {key} differ in upper and lower case only: give"
                " one of them another name in the file"
            )


def quoted_name(column: str) -> str:
    """``column`` as a name in SQL."""
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
    name for a glob. It refuses a CSV whose lines end in two ways.
    """
    with _opened(file) as plain:
        head = plain.read(_HEAD_BYTES)
    encoding = encoding_of(head)
    text = head.decode(encoding, "ignore")
    unquoted = re.sub('"[^"]*("|$)', "", text)  # a quoted value may have line ends of its own
    is_mixed = {"\r\n", "\n"} <= set(re.findall("\r?\n", unquoted))
    has_other_ends = is_mixed or ("\r" in text and "\n" not in text)
    is_utf8 = encoding == "utf-8" and not has_other_ends
    if is_utf8 and not has_wildcard(file):
        return file
    suffix = PurePosixPath(file.lower().removesuffix(".gz")).suffix
    handle, copy = tempfile.mkstemp(suffix=suffix, dir=scratch)
    with _opened(file) as plain, os.fdopen(handle, "wb") as target:
        if is_utf8:
            shutil.copyfileobj(plain, target)
        else:
            lines = io.TextIOWrapper(plain, encoding, newline=None if has_other_ends else "")
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
