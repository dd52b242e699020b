"""Grid: which images of a run are shown, in which order, a page at a time.

The database knows one view, ``images``, over the same files that ``segbatch query`` reads. It may
open nothing but those, and of what a person types only one expression is taken, as a condition: so
whoever is let to the page reads this run and nothing else, and nobody writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import duckdb
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from segbatch import storage
from segbatch.errors import InputError, RunError
from segbatch.results.database import (
    open_database,
    quoted_name,
    quoted_text,
    register_filesystems,
    scan,
)
from segbatch.results.query import HIDDEN, RESULTS, runs_text, unreadable, wrong_sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import rows_schema

PAGE_IMAGES = 60
QUERY_S = 30.0  # of one question; a condition can ask for more than anybody waits for

FACTS = ("image_id", "uri", "status", "error", "message", "width", "height")
KIND = "coalesce(error, status)"

Group = Literal["coverage", "confidence", "uncertainty", "formulas", "columns"]
Bound = Annotated[float, Field(allow_inf_nan=False)] | None


class Wanted(BaseModel):
    """What the page asks for. ``ranges`` are of measures, ``texts`` parts of text columns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ranges: dict[str, tuple[Bound, Bound]] = {}
    """Lowest and highest value of a measure, both included."""
    kinds: list[str] | None = None
    """``ok``, or an error; ``null``: all."""
    texts: dict[str, str] = {}
    condition: str = ""
    """SQL, as after ``WHERE``."""
    sort: str = "image_id"
    descending: bool = False
    after: tuple[Bound, int] | None = None
    """Where the page before ended: its last value and ``image_id``."""


@dataclass(frozen=True)
class Measure:
    """A number that each image has or has not: ``name`` is unique, ``expression`` is SQL."""

    name: str
    group: Group
    label: str
    column: str

    @property
    def expression(self) -> str:
        """A finite double, or NULL: JSON has no number for anything else."""
        number = f"{self.column}::DOUBLE"
        return f"CASE WHEN isfinite({number}) THEN {number} END"

    def bound(self, value: float) -> str:
        """A limit of it in SQL; ours are single precision, and 0.2 is to be found by 0.2."""
        return _double(value) if self.group == "columns" else f"{_double(value)}::FLOAT"


class Grid:
    """The images of a run as it is now. One question at a time; any thread may ask.

    Every method raises :class:`~segbatch.errors.InputError` for what is asked wrongly and
    :class:`~segbatch.errors.Incomplete` or ``OSError`` if storage fails.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        table = run.table("stats" if run.finished else "rows")
        folder = storage.join(run.uri, "stats" if run.finished else "rows")
        schema = table.schema if table else rows_schema(run.classes)
        ours = {*HIDDEN, *RESULTS, *FACTS}
        self._own_columns = [field for field in schema if field.name not in ours]
        self.measures = {measure.name: measure for measure in self._measures(schema)}
        self.texts = ["uri", *(f.name for f in self._own_columns if not _is_number(f.type))]

        self._asking = threading.Lock()
        self._database = con = open_database()
        register_filesystems(con, [run.uri])
        shown = ", ".join(quoted_name(field.name) for field in schema if field.name not in HIDDEN)
        try:
            source = scan(con, "images", folder, table.files() if table else [], schema)
            con.execute(f"CREATE VIEW images AS SELECT {shown} FROM {source}")
            con.execute(f"SET allowed_directories = [{quoted_text(f'{folder}/')}]")
            con.execute("SET enable_external_access = false")
            con.execute("SET lock_configuration = true")
        except duckdb.Error as error:
            raise unreadable(error) from error
        self._images = con.table("images")

    def kinds(self) -> dict[str, int]:
        """How many images there are of each kind: ``ok``, or their error."""
        with self._turn():
            rows = self._ask(
                self._images,
                f"{KIND} AS kind, count(*)",
                "GROUP BY kind ORDER BY kind != 'ok', kind",
            )
        return dict(rows)

    def count(self, wanted: Wanted) -> int:
        """How many images are wanted."""
        with self._turn():
            [(count,)] = self._ask(self._chosen(wanted), "count(*)")
        return int(count)

    def page(self, wanted: Wanted) -> list[dict[str, Any]]:
        """The next images after ``wanted.after``, at most ``PAGE_IMAGES``.

        Each has ``image_id, uri, kind, message`` and ``value``, by which it is sorted. No page
        takes longer than the first: what was seen is left out by its value and not counted again.
        """
        value = "NULL::DOUBLE"
        if wanted.sort != "image_id":
            value = self._measure(wanted.sort).expression
        direction, beyond = ("DESC", "<") if wanted.descending else ("ASC", ">")
        later = "true"
        if wanted.after:
            last, image_id = wanted.after
            later = f"value IS NULL AND image_id {beyond} {image_id}"
            if last is not None:
                later = (
                    f"value IS NULL OR value {beyond} {_double(last)}"
                    f" OR value = {_double(last)} AND image_id {beyond} {image_id}"
                )
        with self._turn():
            chosen = self._chosen(wanted).project(
                f"image_id, uri, {KIND} AS kind, message, {value} AS value"
            )
            rows = self._ask(
                chosen,
                "*",
                f"WHERE {later} ORDER BY value {direction} NULLS LAST, image_id {direction}"
                f" LIMIT {PAGE_IMAGES}",
            )
        return [dict(zip(chosen.columns, row, strict=True)) for row in rows]

    def image(self, image_id: int) -> dict[str, Any]:
        """All that is known of one image: its facts, ``measures`` by name, and the user's
        ``columns`` as text. Raises ``RunError`` if it has no row.
        """
        measures = [m for m in self.measures.values() if m.group != "columns"]
        numbers = [measure.expression for measure in measures]
        names = [field.name for field in self._own_columns]
        texts = [f"{quoted_name(name)}::VARCHAR" for name in names]
        row = iter(self._row(image_id, [*FACTS, *numbers, *texts]))
        return {
            **{name: next(row) for name in FACTS},
            "measures": {measure.name: next(row) for measure in measures},
            "columns": {name: next(row) for name in names},
        }

    def uri(self, image_id: int) -> str:
        """The URI of one image. Raises ``RunError`` if it has no row."""
        return str(self._row(image_id, ["uri"])[0])

    def _row(self, image_id: int, columns: Sequence[str]) -> tuple[Any, ...]:
        with self._turn():
            rows = self._ask(
                self._images, ", ".join(columns), f"WHERE image_id = {image_id} LIMIT 1"
            )
        if not rows:
            raise RunError(f"{self.run.uri}: image_id {image_id} has no row")
        return rows[0]

    def _measures(self, schema: pa.Schema) -> Iterator[Measure]:
        per_class: tuple[Group, ...] = ("coverage", "confidence")
        for group in per_class:
            for c in self.run.classes if group in schema.names else []:
                column = f"{group}.{quoted_name(c.field)}"
                yield Measure(f"{group}.{c.field}", group, c.name, column)
        if "uncertainty" in schema.names:
            yield Measure("uncertainty", "uncertainty", "uncertainty", "uncertainty")
        for field in schema.field("formulas").type if "formulas" in schema.names else []:
            column = f"formulas.{quoted_name(field.name)}"
            yield Measure(f"formulas.{field.name}", "formulas", field.name, column)
        for field in self._own_columns:
            if _is_number(field.type):
                name = f"columns.{field.name}"
                yield Measure(name, "columns", field.name, quoted_name(field.name))

    def _measure(self, name: str) -> Measure:
        if name not in self.measures:
            raise InputError(f"no such number: {name}")
        return self.measures[name]

    def _chosen(self, wanted: Wanted) -> duckdb.DuckDBPyRelation:
        conditions = []
        for name, bounds in wanted.ranges.items():
            measure = self._measure(name)
            for sign, bound in zip((">=", "<="), bounds, strict=True):
                if bound is not None:
                    conditions.append(f"{measure.expression} {sign} {measure.bound(bound)}")
        if wanted.kinds is not None:
            kinds = ", ".join(["NULL", *map(quoted_text, wanted.kinds)])
            conditions.append(f"{KIND} IN ({kinds})")
        for name, part in wanted.texts.items():
            if name not in self.texts:
                raise InputError(f"no such text: {name}")
            text = f"lower({quoted_name(name)}::VARCHAR)"
            conditions.append(f"contains({text}, lower({quoted_text(part)}))")
        images = self._filtered(wanted.condition) if wanted.condition.strip() else self._images
        return images.filter(" AND ".join(conditions)) if conditions else images

    def _filtered(self, condition: str) -> duckdb.DuckDBPyRelation:
        if runs_text(condition):
            raise InputError("a condition is one expression, and runs no text as SQL")
        try:
            # Takes one expression, and neither a second one nor a clause behind it.
            return self._images.filter(f"(\n{condition}\n)")
        except (duckdb.ParserException, duckdb.BinderException) as error:
            columns = self._images.columns
            raise InputError(wrong_sql(lambda _: columns, [self.run], condition, error)) from error

    def _ask(
        self, images: duckdb.DuckDBPyRelation, columns: str, clauses: str = ""
    ) -> list[tuple[Any, ...]]:
        answer = images.query("chosen", f"SELECT {columns} FROM chosen {clauses}")
        return cast(duckdb.DuckDBPyRelation, answer).fetchall()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The database to oneself, for so long as anybody waits."""
        with self._asking:
            deadline = threading.Timer(QUERY_S, self._database.interrupt)
            deadline.start()
            try:
                yield
            except duckdb.InterruptException as error:
                raise InputError(f"no answer in {QUERY_S:.0f} s: ask for less") from error
            except duckdb.Error as error:
                raise unreadable(error) from error
            finally:
                deadline.cancel()


def _is_number(kind: pa.DataType) -> bool:
    of_numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(is_one(kind) for is_one in of_numbers)


def _double(value: float) -> str:
    return f"{quoted_text(repr(value))}::DOUBLE"  # a bare one is a decimal, and is rounded
