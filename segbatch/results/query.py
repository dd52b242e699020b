"""Queries over runs: the views of one or several runs in DuckDB, and the SQL that is allowed.

A finished run is read from ``stats/``, an unfinished one from ``rows/``. In both cases the Delta
table lists the files, and DuckDB reads these Parquet files directly. Each run contributes one
SELECT to each view. The SELECTs of several runs are united by column names, so that runs with
different classes can be compared: columns that a run does not have are NULL.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import duckdb
import pyarrow as pa

from segbatch import storage
from segbatch.errors import Incomplete, InputError, SegbatchError
from segbatch.results import buildings
from segbatch.results.database import (
    open_database,
    quoted_name,
    quoted_text,
    register_filesystems,
    scan,
)
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK, rows_schema
from segbatch.results.table import kind_in_name

# Columns for programs, which say where a mask is; masks have a view of their own.
HIDDEN_COLUMNS = frozenset({"mask", "file", "file_row"})

# Columns that a failed row does not have.
RESULT_COLUMNS = HIDDEN_COLUMNS | {
    "status", "mask_width", "mask_height", "pixels", "coverage", "confidence", "uncertainty",
    "formulas", "components", "boxes",
}  # fmt: skip

VIEWS = ("images", "masks", "wide", "failures", "classes", "runs", buildings.VIEW)

RUNS = """
CREATE TABLE runs (
    run VARCHAR, uri VARCHAR, status VARCHAR, model VARCHAR, model_sha256 VARCHAR,
    images BIGINT,  -- of the manifest
    duplicates BIGINT, created TIMESTAMP, updated TIMESTAMP  -- UTC
)"""

# The beginning of an EXPLAIN, and the end of a statement.
EXPLAIN = re.compile(
    r"\A(?:\s|--[^\n]*\n)*EXPLAIN\b(?:\s+ANALYZE\b|\s*\(\s*(?:ANALYZE|FORMAT)\b[^()]*\))?", re.I
)
END = re.compile(r";[\s;]*(?:--[^\n]*(?:\n\s*|\Z))*\Z")

TRACEBACK = "Traceback (most recent call last)"
REMOTE = re.compile(r"'([A-Za-z][\w+.-]*://)")

# Functions that take a text and run it as SQL.
RUN_TEXT = (b"query", b"query_table", b"json_execute_serialized_sql")
TAKES = "query takes one SELECT, DESCRIBE, SHOW or EXPLAIN and writes nothing"


def sql(runs: Sequence[RunFolder], query: str) -> duckdb.DuckDBPyRelation:
    """The answer to one SELECT, DESCRIBE, SHOW or EXPLAIN over the views of ``runs``.

    The relation is computed when it is read. Raises :class:`~segbatch.errors.InputError` for wrong
    SQL and for SQL that writes, ``OSError`` if storage fails.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise InputError("the query is not valid UTF-8 text") from error
    con = open_database()

    def columns_of(view: str) -> list[str]:
        return con.table(view).columns

    try:
        buildings.refuse_text(query)
        body = _single_statement(con, query)
    except duckdb.Error as error:
        raise sql_error(columns_of, runs, query, error) from error
    register_filesystems(con, [*(run.uri for run in runs), *re.findall(REMOTE, query)])
    try:
        _create_views(con, runs, query)
    except duckdb.Error as error:
        raise query_failure(error) from error
    try:
        con.execute("SET lock_configuration = true")  # some functions switch on logs in files
        _refuse_writing(con, body)
        return con.sql(query)
    except duckdb.Error as error:
        raise sql_error(columns_of, runs, query, error) from error


def _single_statement(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """The only statement of ``query``, without EXPLAIN and semicolon; others are refused."""
    statements = con.extract_statements(query)
    if len(statements) != 1:
        raise InputError(f"{TAKES}: these are {len(statements)} statements")
    kind = statements[0].type
    kinds = duckdb.StatementType
    if kind not in (kinds.SELECT, kinds.EXPLAIN, kinds.MULTI):
        raise InputError(f"{TAKES}: this is {kind.name}")
    # MULTI is a PIVOT: DuckDB runs its source at once to find the columns. And a text may be any
    # statement. _refuse_writing would be too late for both.
    copies = kind == kinds.MULTI and ("copy", True) in _words(query)
    if copies or runs_text_as_sql(query):
        raise InputError(f"{TAKES}: this is more than that")
    return EXPLAIN.sub("", END.sub("", query))


def runs_text_as_sql(query: str) -> bool:
    """Whether ``query`` names a function that runs a text as SQL."""
    text = query.encode()  # offsets count bytes
    starts = [start for start, _ in duckdb.tokenize(query)]
    words = (re.match(rb'"?(\w+)', text[start:]) for start in starts)
    return any(word is not None and word[1].lower() in RUN_TEXT for word in words)


def _refuse_writing(con: duckdb.DuckDBPyConnection, body: str) -> None:
    """Refuse COPY or INSERT after EXPLAIN or in a WITH: a subquery cannot contain them."""
    try:
        con.sql(f"FROM (\n{body}\n)")
    except duckdb.ParserException as error:
        raise InputError(f"{TAKES}: this is more than that") from error
    except duckdb.BinderException as error:
        if "must be at the top level" in str(error):
            raise InputError(f"{TAKES}: its WITH writes") from error
        raise


# ---------------------------------------------------------------------------------------- views


def _create_views(con: duckdb.DuckDBPyConnection, runs: Sequence[RunFolder], query: str) -> None:
    """Create ``images`` and the views that ``query`` names, or all views if it names none.

    Creating all of them takes as long as filtering millions of rows, and longer with more classes.
    """
    names = _names(runs)
    named = {view for view in VIEWS if view in query.lower()}
    wanted = {"images", *named} if named else VIEWS
    views: defaultdict[str, list[str]] = defaultdict(list)
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for view, select in _selects(con, run, name, number, with_masks="masks" in named):
            if view in wanted:
                views[view].append(select)
    if grouped := views.pop(buildings.VIEW, None):
        con.execute(buildings.create_buildings(grouped))
    for view, selects in views.items():
        con.execute(f"CREATE VIEW {view} AS " + "\nUNION ALL BY NAME\n".join(selects))
    if "runs" not in wanted:
        return
    con.execute(RUNS)
    for run, name in zip(runs, names, strict=True):
        values = _describe(run, name)
        con.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(values))})", values)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The last part of each run's path, or the whole URI where two are equal."""
    count = Counter(run.name for run in runs)
    return [run.name if count[run.name] == 1 else run.uri for run in runs]


def _selects(
    con: duckdb.DuckDBPyConnection, run: RunFolder, name: str, number: int, *, with_masks: bool
) -> Iterator[tuple[str, str]]:
    """The views to which one run contributes, each with the run's SELECT.

    ``masks`` is empty unless ``with_masks``.
    """
    stats = run.table("stats") if run.finished else None
    rows = None if stats and not with_masks else run.table("rows")
    row_files = rows.files() if rows else []
    folder = storage.join(run.uri, "rows")
    row_schema = rows.schema if rows else rows_schema(run.classes)
    schema = stats.schema if stats else row_schema
    masks = scan(con, f"rows_{number}", folder, row_files, row_schema)
    if stats:
        source = failed = scan(con, f"stats_{number}", stats.uri, stats.files(), schema)
    else:
        source = masks
        failed_files = [file for file in row_files if kind_in_name(file.name) != OK]
        failed = scan(con, f"failed_{number}", folder, failed_files, schema)

    begin = f"SELECT {quoted_text(name)} AS run"
    images = [field for field in schema if field.name not in HIDDEN_COLUMNS]
    described = [quoted_name(field.name) for field in images if field.name not in RESULT_COLUMNS]
    yield "images", f"{begin}, {', '.join(quoted_name(f.name) for f in images)} FROM {source}"
    yield "masks", f"{begin}, image_id, uri, mask FROM {masks}"
    yield "wide", f"{begin}, {', '.join(_flat(images))} FROM {source}"
    yield (
        buildings.VIEW,
        buildings.select_buildings(
            name, source, run.classes, run.info.job.get("formulas", {}), schema.names
        ),
    )
    yield "failures", f"{begin}, {', '.join(described)} FROM {failed} WHERE status = '{FAILED}'"
    # One SELECT for each class and not one UNNEST: a query for one class reads only its columns.
    for c in run.classes:
        field = quoted_name(c.field)
        confidence = f"confidence.{field}" if "confidence" in schema.names else "NULL::FLOAT"
        yield (
            "classes",
            f"{begin}, image_id, uri, {quoted_text(c.name)} AS class, {c.id} AS class_id,"
            f" pixels.{field} AS pixels, coverage.{field} AS coverage, {confidence} AS confidence"
            f" FROM {source} WHERE status = '{OK}'",
        )


def _flat(fields: Sequence[pa.Field]) -> list[str]:
    """Columns of ``wide``: ``coverage.window AS coverage_window`` and so on.

    Formulas keep their own names; boxes are left out.
    """
    columns: dict[str, str] = {}  # by name in lower case: SQL ignores case
    for field in fields:
        if field.name == "boxes":
            continue
        column = quoted_name(field.name)
        prefix = "" if field.name == "formulas" else f"{field.name}_"
        parts = {field.name: column}
        if pa.types.is_struct(field.type):
            parts = {
                f"{prefix}{part.name}": f"{column}.{quoted_name(part.name)}" for part in field.type
            }
        for name, expression in parts.items():
            alias = name
            while alias.lower() in columns:  # a user's column has the name of one of these
                alias += "_"
            columns[alias.lower()] = f"{expression} AS {quoted_name(alias)}"
    return list(columns.values())


def _describe(run: RunFolder, name: str) -> list[Any]:
    """The row of a run in the table ``runs``."""
    model, manifest = run.info.model, run.info.manifest
    times = [datetime.fromtimestamp(t, UTC) for t in (run.info.created, run.info.updated)]
    return [
        *(name, run.uri, run.status, model.uri, model.sha256),
        *(manifest.rows, manifest.duplicates),
        *(time.replace(tzinfo=None) for time in times),
    ]


# --------------------------------------------------------------------------------------- errors


def sql_error(
    columns_of: Callable[[str], list[str]],
    runs: Sequence[RunFolder],
    query: str,
    error: duckdb.Error,
) -> InputError:
    """The error to raise for wrong SQL in ``query``; it suggests the column probably meant.

    ``columns_of`` returns the columns of a view.
    """
    text = str(error)
    fields = {field for run in runs for field in run.classes.fields}
    if near := re.search(r'syntax error at or near "(.+?)"', text):
        for keyword in _bare_keywords(query, near[1]):
            if keyword in fields:
                return InputError(
                    f"{_line(error)}: {keyword} is an SQL keyword; coverage.{keyword} works"
                    " anywhere, a name after AS must be another"
                )
    if missing := re.search(r'column "(.+?)" not found|find key "(.+?)" in struct', text):
        name = missing[1] or missing[2]
        close = _close_columns(columns_of, name, fields, wide="wide" in query.lower())
        if buildings.VIEW in query.lower():
            images = columns_of("images")
            close = [column for column in close if column not in images]
            if not close:
                own = ", ".join(buildings.own_columns(images)) or "none"
                return InputError(
                    f"no column {name}: {buildings.VIEW} groups by columns of yours ({own}), and"
                    f" has {buildings.COLUMNS}"
                )
        if close:
            return InputError(f"no column {name}; did you mean {' or '.join(close)}?")
        if quoted_name(name) in query:
            return InputError(
                f"no column {name}; a text stands in single quotes: {quoted_text(name)}"
            )
    if f"Table with name {buildings.VIEW} does not exist" in text:
        return InputError(
            f"{buildings.VIEW} needs a column of yours to group by, such as"
            f" {buildings.VIEW}(building_id)"
        )
    return InputError(_line(error))


def _bare_keywords(query: str, near: str) -> Iterator[str]:
    """The SQL keywords in ``query`` at or just before the word ``near``, except after a dot."""
    words = [("", False), *_words(query), ("", False)]
    for (before, _), (word, is_keyword), (after, _) in zip(
        words, words[1:], words[2:], strict=False
    ):
        if is_keyword and before != "." and near.lower() in (word, after):
            yield word


def _words(query: str) -> list[tuple[str, bool]]:
    """The words of ``query`` in lower case, each with whether it is an SQL keyword."""
    text = query.encode()  # offsets count bytes
    tokens = duckdb.tokenize(query)
    ends = [*(offset for offset, _ in tokens[1:]), len(text)]
    return [
        (text[start:end].decode().strip().lower(), kind == duckdb.token_type.keyword)
        for (start, kind), end in zip(tokens, ends, strict=True)
    ]


def _close_columns(
    columns_of: Callable[[str], list[str]], name: str, fields: set[str], *, wide: bool
) -> list[str]:
    """Columns with names similar to ``name``; for a class, its coverage."""
    view, separator = ("wide", "_") if wide else ("images", ".")
    known = {field: f"coverage{separator}{field}" for field in sorted(fields)}
    known |= {column: column for column in (*known.values(), *columns_of(view))}
    close = get_close_matches(name.lower(), known, n=3, cutoff=0.7)
    return list(dict.fromkeys(known[match] for match in close))


def query_failure(error: duckdb.Error) -> SegbatchError:
    """What to raise if DuckDB failed while reading: a file cannot be read, or the SQL is wrong."""
    if isinstance(error, duckdb.IOException) or TRACEBACK in str(error):
        return Incomplete(f"{_line(error)} (if the run was just being finished, ask again)")
    return InputError(_line(error))


def _line(error: duckdb.Error) -> str:
    """The first line of DuckDB's message, and its second line if that is a suggestion.

    If fsspec raised the error, the message is a traceback: then its last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if TRACEBACK in lines[0]:
        return lines[-1][:300]
    return " ".join([lines[0], *(x for x in lines[1:2] if x.startswith("Did you mean"))])[:300]
