"""Query: the views of one or several runs in DuckDB, what may be asked of them, and one mask.

A run that is finished is read from ``stats/``, any other from ``rows/``; in both the Delta table
says which files there are, and DuckDB reads their Parquet by itself. Each run gives one SELECT a
view, and several are united by name, so that runs of other classes can be compared: what one does
not have is NULL.

Remote files go through fsspec, since the DuckDB wheel speaks no S3.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Incomplete, InputError, RunError
from segbatch.results.run import Run, open_run
from segbatch.results.schema import FAILED, OK, rows_schema
from segbatch.results.table import kind_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Format = Literal["table", "csv", "json", "parquet"]

TABLE_ROWS = 40
CELL_WIDTH = 60

# Where a mask is, is for programs; the mask itself has a view of its own.
HIDDEN = frozenset({"mask", "file", "file_row"})

# What a failed row does not have.
RESULTS = HIDDEN | {
    "status", "mask_width", "mask_height", "pixels", "coverage", "confidence", "uncertainty",
    "formulas", "components", "boxes",
}  # fmt: skip

RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("model", pa.string()),
        ("model_sha256", pa.string()),
        ("images", pa.int64()),
        ("duplicates", pa.int64()),
        ("created", pa.timestamp("us")),  # UTC
        ("updated", pa.timestamp("us")),  # UTC
    ]
)

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,  # a download from a query would be a surprise
    "autoload_known_extensions": False,
    "enable_progress_bar": False,
    "python_enable_replacements": False,  # FROM x is never a variable of this program
    "temp_directory": str(Path(tempfile.gettempdir(), "segbatch-query")),  # not in the user's
}


# ------------------------------------------------------------------------------------ questions


def sql(runs: Sequence[Run], query: str) -> duckdb.DuckDBPyRelation:
    """The answer to one SELECT, DESCRIBE, SHOW or EXPLAIN over the views of ``runs``.

    Nothing is read before the relation is. Raises :class:`~segbatch.errors.InputError` for wrong
    SQL and for whatever writes, ``OSError`` if storage fails.
    """
    con = duckdb.connect(config=SETTINGS)
    try:
        body = _readable(con, query)
        _register_filesystems(con, runs, query)
        _create_views(con, runs, with_masks="mask" in query.lower())
        con.execute("SET lock_configuration = true")  # functions could switch on logging to files
        # A COPY or INSERT may hide in a WITH, but none can be part of a subquery.
        con.sql(f"FROM (\n{body}\n)")
        return con.sql(query)
    except duckdb.Error as error:
        raise InputError(_wrong_sql(con, runs, query, error)) from error


def _readable(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """The one SELECT in ``query``, without EXPLAIN, comments around it and semicolon."""
    statements = con.extract_statements(query)
    if len(statements) != 1:
        raise InputError(f"query takes one statement, not {len(statements)}")
    kind = statements[0].type
    if kind not in (
        duckdb.StatementType.SELECT,
        duckdb.StatementType.EXPLAIN,
        duckdb.StatementType.MULTI,  # PIVOT
    ):
        raise InputError(f"query takes SELECT, DESCRIBE, SHOW or EXPLAIN, not {kind.name}")
    text = query.encode()  # the offsets are of bytes
    words = [
        (offset, token)
        for offset, token in duckdb.tokenize(query)
        if token != duckdb.token_type.comment
    ]
    while text[words[-1][0] :].startswith(b";"):
        words.pop()
    ...
