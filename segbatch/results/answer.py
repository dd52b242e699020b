"""Writes the answer to a query as a table for reading, or as CSV, JSON or Parquet."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import duckdb
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from segbatch import storage
from segbatch.console import say
from segbatch.errors import InputError
from segbatch.results.database import quoted_name, quoted_text, select_from, without_zones
from segbatch.results.jsonvalues import json_columns
from segbatch.results.query import query_failure
from segbatch.results.workbook import require_excel, write_workbook

AnswerFormat = Literal["table", "csv", "json", "parquet", "xlsx"]

EXTENSIONS: dict[str, AnswerFormat] = {
    ".parquet": "parquet", ".csv": "csv", ".json": "json", ".xlsx": "xlsx",
}  # fmt: skip

# Limits of a table on a terminal; in a pipe and in a file nothing is cut.
SHOWN_ROWS = 40
CELL_WIDTH = 60
UNLIMITED = 1_000_000

# Significant digits. Shares are in single precision; a double may be a coordinate of the user's
# (centimetres on the earth), and a whole one an id.
SINGLE_DIGITS = 4
DOUBLE_DIGITS = 10
WHOLE_DIGITS = 15

# Control characters: a terminal would act on those in an object's name.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_answer(
    relation: duckdb.DuckDBPyRelation,
    format: AnswerFormat = "table",
    out: str | None = None,
    *,
    shown_rows: int = SHOWN_ROWS,
) -> None:
    """Write the rows of ``relation`` to standard output, or to the URI ``out``.

    A table on standard output shows the first ``shown_rows`` rows and their total number. Files and
    the other formats have all rows: CSV with a header, JSON as one array of objects, Parquet, a
    workbook of Excel. Table, CSV and workbook have one column for each field of a struct
    (``coverage_window``), and sizes in place of bytes. JSON has bytes in base64, and null for
    numbers that are not finite, also inside of lists and structs; a workbook has empty cells.

    Raises :class:`~segbatch.errors.InputError` if the SQL fails on a value or ``out`` cannot be
    written, ``Incomplete`` if a file can no longer be read or storage does not answer.
    """
    if format in ("parquet", "xlsx") and out is None:
        raise InputError(f"--format {format} needs a file: -o answer.{format}")
    if format == "xlsx":
        require_excel()
    try:
        relation = select_from(relation, "FROM answer")  # numbers columns with the same name
        if format == "table":
            _write_table(relation, out, shown_rows)
        else:
            rows = _write_file(relation, format, out)
            if out is not None:
                say(f"{rows:,} row{'s' if rows != 1 else ''} → {out}")
    except duckdb.Error as error:
        raise query_failure(error) from error


def format_of(out: str, asked: AnswerFormat | None = None) -> AnswerFormat:
    """The format that a file's extension stands for; ``asked`` if the extension says nothing.

    Raises :class:`~segbatch.errors.InputError` if ``asked`` is another format than the extension
    says, and if neither says one.
    """
    extension = PurePosixPath(storage.name_of(out)).suffix.lower()
    by_name = EXTENSIONS.get(extension)
    if by_name is None and asked is None:
        raise InputError(f"{out}: the extension must be one of {', '.join(EXTENSIONS)}")
    if by_name is not None and asked not in (None, by_name):
        raise InputError(f"{out}: the extension says {by_name}, and --format says {asked}")
    format = by_name or asked
    assert format is not None
    return format


def _write_file(relation: duckdb.DuckDBPyRelation, format: AnswerFormat, out: str | None) -> int:
    """Returns the number of rows."""
    target = storage.local_path(out) if out is not None and storage.is_local(out) else None
    if target:
        with storage.translate_errors("cannot write", InputError):
            target.parent.mkdir(parents=True, exist_ok=True)
    # Next to a local target, so that it can be renamed to the target.
    with tempfile.TemporaryDirectory(
        prefix=".segbatch-", dir=target.parent if target else None
    ) as folder:
        result = Path(folder, "result")
        if format == "xlsx":
            flat = select_from(relation, f"SELECT {_flat_columns(relation)} FROM answer")
            rows = write_workbook(flat, result)
        else:
            rows = _copy(relation, format, result)
        if out is not None:
            with storage.translate_errors("cannot write", InputError):
                storage.upload(result, out)
        else:
            with result.open("rb") as data:  # CSV and JSON are UTF-8, whatever the terminal is
                sys.stdout.flush()
                shutil.copyfileobj(data, sys.stdout.buffer)
    return rows


def _copy(relation: duckdb.DuckDBPyRelation, format: AnswerFormat, file: Path) -> int:
    """Write a file by DuckDB's COPY; returns the number of rows."""
    columns, options = {
        "csv": (_flat_columns, "FORMAT csv, HEADER"),
        "json": (_json_columns, "FORMAT json, ARRAY true"),
        "parquet": (_all_columns, "FORMAT parquet, COMPRESSION zstd"),
    }[format]
    select = f"SELECT {columns(relation)} FROM answer"
    copied = relation.query("answer", f"COPY ({select}) TO {quoted_text(str(file))} ({options})")
    return int(copied.fetchall()[0][0]) if copied is not None else 0


def _all_columns(relation: duckdb.DuckDBPyRelation) -> str:
    return "*"


def _json_columns(relation: duckdb.DuckDBPyRelation) -> str:
    return ", ".join(f"{value} AS {name}" for value, name in json_columns(relation))


def _flat_columns(relation: duckdb.DuckDBPyRelation) -> str:
    return ", ".join(
        f"{expression} AS {quoted_name(alias)}"
        for name, kind in zip(relation.columns, relation.types, strict=True)
        for alias, expression in _parts(name, quoted_name(name), kind)
    )


def _parts(alias: str, expression: str, kind: Any) -> Iterator[tuple[str, str]]:
    """Names and SQL expressions of the columns that a column, which may be a struct, becomes."""
    if kind.id == "struct":
        for field, inner in kind.children:
            yield from _parts(f"{alias}_{field}", f"{expression}.{quoted_name(field)}", inner)
    elif kind.id == "blob":
        yield alias, f"octet_length({expression}) || ' bytes'"
    elif kind.id in ("list", "array", "map"):
        yield alias, f"to_json({expression})::VARCHAR"
    else:
        yield alias, expression


def _write_table(relation: duckdb.DuckDBPyRelation, out: str | None, shown_rows: int) -> None:
    if out is None:
        console = Console() if sys.stdout.isatty() else Console(width=UNLIMITED)
        _print_table(relation, console, shown_rows)
    else:
        text = io.StringIO()
        _print_table(relation, Console(file=text, width=UNLIMITED), UNLIMITED)
        storage.write_bytes(out, text.getvalue().encode())


def _print_table(
    relation: duckdb.DuckDBPyRelation, console: Console, shown_rows: int = SHOWN_ROWS
) -> None:
    """Print the first rows; on a terminal, columns that do not fit are listed by name below."""
    if relation.columns == ["explain_key", "explain_value"]:
        for _, plan in relation.fetchall():
            console.print(Text(plan), soft_wrap=True)
        return
    flat = select_from(
        relation, f"SELECT {_flat_columns(relation)} FROM answer LIMIT {shown_rows + 1}"
    )
    rows = without_zones(flat).fetchall()
    limit = CELL_WIDTH if console.is_terminal else UNLIMITED
    columns = [
        [name, *(_cell(row[index], limit, digits) for row in rows[:shown_rows])]
        for index, (name, digits) in enumerate(zip(flat.columns, _digits(flat), strict=True))
    ]
    ends = accumulate(2 + max(map(cell_len, column)) for column in columns)
    num_fitting = max(1, sum(end <= console.width for end in ends))

    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for (name, *_), kind in zip(columns[:num_fitting], flat.types, strict=False):
        right = kind.id not in ("varchar", "boolean", "enum")
        table.add_column(
            Text(_cell(name, UNLIMITED)), justify="right" if right else "left", no_wrap=True
        )
    for cells in list(zip(*columns[:num_fitting], strict=True))[1:]:
        table.add_row(*map(Text, cells))
    console.print(table)

    lines = [f"{len(rows)} row{'s' if len(rows) != 1 else ''}"]
    if len(rows) > shown_rows:
        [(count,)] = select_from(relation, "SELECT count(*) FROM answer").fetchall()
        lines = [f"{count:,} rows, the first {shown_rows} shown; --format csv writes all"]
    if num_fitting < len(columns):
        hidden = ", ".join(flat.columns[num_fitting:])
        lines.append(f"not shown (--format csv has all columns): {hidden}")
    console.print(Text("\n".join(lines)))


def _digits(relation: duckdb.DuckDBPyRelation) -> list[int]:
    """The significant digits to print of each column's numbers, unless they are whole."""
    return [SINGLE_DIGITS if kind.id == "float" else DOUBLE_DIGITS for kind in relation.types]


def _cell(value: object, limit: int, digits: int = DOUBLE_DIGITS) -> str:
    """A value on one line; a long value is cut in the middle, since URIs differ at the end."""
    if value is None:
        return "–"
    if isinstance(value, float):
        text = f"{value:.{WHOLE_DIGITS if value.is_integer() else digits}g}"
    else:
        text = " ".join(str(value).split())
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(text) > limit:
        return f"{text[: limit // 3]}…{text[-(limit - limit // 3 - 1) :]}"
    return text
