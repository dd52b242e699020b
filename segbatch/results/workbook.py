"""Writes the answer to a query as an Excel workbook, with XlsxWriter."""

from __future__ import annotations

from datetime import date, time
from decimal import Decimal
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import duckdb

from segbatch.errors import InputError
from segbatch.results.database import without_zones

MAX_ROWS = 1_048_575  # of a sheet, under its header
MAX_TEXT = 32_767  # characters of a cell
MAX_DIGITS = 15  # of a cell's number, which is a double
FIRST_YEAR = 1900  # of a cell's date
CELL_TYPES = (int, Decimal, date, time)  # beside floats and texts; a datetime is a date

# Texts stay texts: one that begins with "=" would be a formula of whoever named an object.
OPTIONS = {
    "constant_memory": True,
    "strings_to_formulas": False,
    "strings_to_numbers": False,
    "strings_to_urls": False,
    "remove_timezone": True,
    "default_date_format": "yyyy-mm-dd hh:mm:ss",
}


def require_excel() -> None:
    """Raises :class:`~segbatch.errors.InputError` if XlsxWriter is not installed."""
    if find_spec("xlsxwriter") is None:
        raise InputError("Excel files need XlsxWriter: pip install 'segbatch[excel]'")


def write_workbook(relation: duckdb.DuckDBPyRelation, file: Path) -> int:
    """Write all rows of ``relation``, whose columns are no structs, to one sheet; returns how many.

    Numbers that are not finite become empty cells, integers and decimals of more than 15 digits
    and dates before 1900 become texts, texts end after 32,767 characters, and times are in UTC.
    DuckDB holds the rows, at most as many as a sheet takes. Raises
    :class:`~segbatch.errors.InputError` for more of them, and ``duckdb.Error``.
    """
    import xlsxwriter

    num_rows = 0
    with xlsxwriter.Workbook(str(file), OPTIONS) as workbook:
        sheet = workbook.add_worksheet("answer")
        sheet.freeze_panes(1, 0)
        sheet.write_row(0, 0, relation.columns, workbook.add_format({"bold": True}))
        # Not as Arrow, where an error of DuckDB would be an OSError.
        for row in without_zones(relation, "TIMESTAMP").limit(MAX_ROWS + 1).iter_rows():
            num_rows += 1
            if num_rows > MAX_ROWS:
                raise InputError(
                    f"an Excel sheet takes {MAX_ROWS:,} rows, and the answer has more: write .csv"
                    " or .parquet"
                )
            sheet.write_row(num_rows, 0, [_cell(value) for value in row])
        sheet.autofilter(0, 0, num_rows, len(relation.columns) - 1)
    return num_rows


def _cell(value: Any) -> Any:
    """What a cell can hold: values that it would change, and those of other types, as text."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or (isinstance(value, CELL_TYPES) and _is_exact(value)):
        return value
    return str(value)[:MAX_TEXT]


def _is_exact(value: int | Decimal | date | time) -> bool:
    """Whether a cell holds ``value`` as it is: with all its digits, in the calendar of Excel."""
    if isinstance(value, int | Decimal):
        digits = f"{Decimal(value).normalize():f}".replace(".", "").lstrip("-0")
        return len(digits) <= MAX_DIGITS
    return isinstance(value, time) or value.year >= FIRST_YEAR
