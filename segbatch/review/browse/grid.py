"""The grid of the browse page: filters and sorts a run's images, a page at a time.

The database has one view, ``images``, over the files that ``segbatch query`` reads, and, next to
another run, a table of what changed. It can open no other files, and user input enters the SQL only
as literals and as one expression, the condition. So a visitor of the page can read this run and
what changed, nothing else, and cannot write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import duckdb
import pyarrow as pa

from segbatch.errors import InputError, RunError
from segbatch.results.database import (
    open_database,
    quoted_name,
    quoted_text,
    register_filesystems,
    scan_run,
    select_from,
)
from segbatch.results.points import coordinates_in
from segbatch.results.query import (
    HIDDEN_COLUMNS,
    RESULT_COLUMNS,
    query_failure,
    runs_text_as_sql,
    sql_error,
)
from segbatch.results.runfolder import RunFolder
from segbatch.review.browse.counterparts import COUNTERPARTS, COVERAGE_DISTANCE, create_counterparts
from segbatch.review.browse.facets import Facets, find_facets
from segbatch.review.browse.measures import Measure, double, is_number, measures_in
from segbatch.review.browse.query import GridQuery
from segbatch.review.map.sheet import SAMPLE

PAGE_IMAGES = 60
MAX_SAFE_INTEGER = 2**53 - 1  # of JavaScript
QUERY_S = 30.0  # limit for one query: a condition can be arbitrarily slow

FACTS = ("image_id", "uri", "status", "error", "message", "width", "height")
KIND = "coalesce(error, status)"
TEXTS = "texts."  # before the name of a text column by which images are sorted


class Grid:
    """Queries the images of a run as it is now; one query at a time, from any thread.

    Every method raises :class:`~segbatch.errors.InputError` for a wrong query and
    :class:`~segbatch.errors.Incomplete` or ``OSError`` if storage fails.
    """

    def __init__(self, run: RunFolder, against: RunFolder | None = None) -> None:
        self.run = run
        self.against = against
        self._facets: Facets | None = None
        self._lock = threading.Lock()
        self._database = con = open_database()
        register_filesystems(con, [run.uri])
        try:
            source, schema, folder = scan_run(con, "images", run)
            ours = {*HIDDEN_COLUMNS, *RESULT_COLUMNS, *FACTS}
            self._own_columns = [field for field in schema if field.name not in ours]
            measures = measures_in(schema, run.classes, self._own_columns)
            self.measures = {measure.name: measure for measure in measures}
            # Qualified: a column of the user's may be called as one of the counterparts' is.
            shown = ", ".join(
                f"ours.{quoted_name(field.name)}"
                for field in schema
                if field.name not in HIDDEN_COLUMNS
            )
            joined = ""
            if against is not None:
                create_counterparts(con, source, run, against)
                distance = self._add_distance(schema.names)
                shown = f"{shown}, others.{COVERAGE_DISTANCE} AS {quoted_name(distance)}"
                joined = f" LEFT JOIN {COUNTERPARTS} AS others USING (image_id)"
            con.execute(f"CREATE VIEW images AS SELECT {shown} FROM {source} AS ours{joined}")
            con.execute(f"SET allowed_directories = [{quoted_text(f'{folder}/')}]")
            con.execute("SET enable_external_access = false")
            con.execute("SET lock_configuration = true")
        except duckdb.Error as error:
            raise query_failure(error) from error
        self.own_columns = [field.name for field in self._own_columns]
        self.texts = ["uri", *(f.name for f in self._own_columns if not is_number(f.type))]
        self._images = con.table("images")
        self.coordinates = coordinates_in(self._images)

    def _add_distance(self, taken: Sequence[str]) -> str:
        """Add the measure of the distance from the other run; returns its column."""
        name, names = COVERAGE_DISTANCE, {column.lower() for column in taken}  # SQL ignores case
        while name in names:
            name += "_"
        self.measures[name] = Measure(name, "change", "change of coverage", quoted_name(name))
        return name

    def other_id(self, image_id: int) -> int | None:
        """The id of an image in the other run; ``None`` if it is not there."""
        if self.against is None:
            return None
        with self._exclusive():
            found = self._database.execute(
                f"SELECT other_id FROM {COUNTERPARTS} WHERE image_id = ?", [image_id]
            ).fetchall()
        return int(found[0][0]) if found else None

    def kinds(self) -> dict[str, int]:
        """The number of images of each kind: ``ok``, or their error."""
        with self._exclusive():
            rows = self._select(
                self._images,
                f"{KIND}, count(*)",  # by itself: an alias would be a user's column of its name
                f"GROUP BY {KIND} ORDER BY {KIND} != 'ok', {KIND}",
            )
        return dict(rows)

    def facets(self) -> Facets:
        """What the filters offer."""
        if self._facets is None:

            def read(select: str) -> pa.Table:
                with self._exclusive():
                    return select_from(self._images, select).to_arrow_table()

            texts = [name for name in self.texts if name != "uri"]
            self._facets = find_facets(read, list(self.measures.values()), texts)
        return self._facets

    def count(self, query: GridQuery) -> int:
        """The number of images that match."""
        with self._exclusive():
            [(count,)] = self._select(self._matching(query), "count(*)")
        return int(count)

    def page(self, query: GridQuery) -> list[dict[str, Any]]:
        """The next matching images after ``query.after``, at most ``PAGE_IMAGES``.

        Each has ``image_id, uri, kind, message`` and ``value``, the sort key: a number, or a text,
        also of an integer that JavaScript would round. Later pages take no
        longer than the first: they start behind the last value, without an offset.
        """
        value = self._sort_key(query.sort)
        direction, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
        later = "true"
        if query.after:
            last, image_id = query.after
            later = f"value IS NULL AND image_id {beyond} {image_id}"
            if last is not None:
                end = quoted_text(last) if isinstance(last, str) else double(last)
                later = (
                    f"value IS NULL OR value {beyond} {end}"
                    f" OR value = {end} AND image_id {beyond} {image_id}"
                )
        with self._exclusive():
            chosen = self._matching(query).project(
                f"image_id, uri, {KIND} AS kind, message, {value} AS value"
            )
            rows = self._select(
                chosen,
                "*",
                f"WHERE {later} ORDER BY value {direction} NULLS LAST, image_id {direction}"
                f" LIMIT {PAGE_IMAGES}",
            )
        names = ("image_id", "uri", "kind", "message", "value")
        return [_as_json(names, row) for row in rows]

    def points(self, query: GridQuery) -> list[dict[str, Any]]:
        """The matching images with coordinates, for a map: at most ``MAX_POINTS``, drawn at random.

        Each has ``image_id, uri, kind, message``, ``lon``, ``lat`` and ``value``, the sort key.
        """
        if self.coordinates is None:
            raise InputError("the run has no coordinates")
        value = self._sort_key(query.sort)
        latitude, longitude = self.coordinates
        with self._exclusive():
            chosen = self._matching(query).filter(self.coordinates.are_known)
            rows = self._select(
                chosen.project(
                    f"image_id, uri, {KIND} AS kind, message, {value} AS value,"
                    f" {longitude}::DOUBLE AS lon, {latitude}::DOUBLE AS lat"
                ),
                "*",
                SAMPLE,
            )
        names = ("image_id", "uri", "kind", "message", "value", "lon", "lat")
        return sorted((_as_json(names, row) for row in rows), key=lambda row: row["image_id"])

    def image(self, image_id: int) -> dict[str, Any]:
        """The facts of one image, its ``measures`` by name, and the user's ``columns`` as text.

        Raises ``RunError`` if the image has no row.
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
        """The URI of one image. Raises ``RunError`` if the image has no row."""
        return str(self._row(image_id, ["uri"])[0])

    def _row(self, image_id: int, columns: Sequence[str]) -> tuple[Any, ...]:
        with self._exclusive():
            rows = self._select(
                self._images, ", ".join(columns), f"WHERE image_id = {image_id} LIMIT 1"
            )
        if not rows:
            raise RunError(f"{self.run.uri}: image_id {image_id} has no row")
        return rows[0]

    def _measure(self, name: str) -> Measure:
        if name not in self.measures:
            raise InputError(f"no such number: {name}")
        return self.measures[name]

    def _sort_key(self, name: str) -> str:
        """SQL: the value that sorts by a measure or a text; NULL for ``image_id``."""
        if name == "image_id":
            return "NULL::DOUBLE"
        if name.startswith(TEXTS):
            return self._text(name.removeprefix(TEXTS))
        return self._measure(name).exact

    def _text(self, name: str) -> str:
        """SQL: a column as text."""
        if name not in self.texts:
            raise InputError(f"no such text: {name}")
        return f"{quoted_name(name)}::VARCHAR"

    def _matching(self, query: GridQuery) -> duckdb.DuckDBPyRelation:
        """The images that pass the filters and the condition."""
        conditions = []
        for name, bounds in query.ranges.items():
            measure = self._measure(name)
            for sign, bound in zip((">=", "<="), bounds, strict=True):
                if bound is not None:
                    conditions.append(f"{measure.exact} {sign} {measure.bound_literal(bound)}")
        if query.kinds is not None:
            kinds = ", ".join(["NULL", *map(quoted_text, query.kinds)])
            conditions.append(f"{KIND} IN ({kinds})")
        for name, part in query.texts.items():
            conditions.append(f"contains(lower({self._text(name)}), lower({quoted_text(part)}))")
        for name, values in query.values.items():
            texts = ", ".join(
                ["NULL", *(quoted_text(value) for value in values if value is not None)]
            )
            is_one = f"coalesce({self._text(name)} IN ({texts}), false)"
            conditions.append(
                f"({is_one} OR {self._text(name)} IS NULL)" if None in values else is_one
            )
        images = self._where(query.condition) if query.condition.strip() else self._images
        return images.filter(" AND ".join(conditions)) if conditions else images

    def _where(self, condition: str) -> duckdb.DuckDBPyRelation:
        """The images that fulfil an SQL condition that a visitor wrote."""
        if runs_text_as_sql(condition):
            raise InputError("a condition is one expression, and must not run text as SQL")
        try:
            # DuckDB takes one expression here, neither a second one nor a clause after it.
            return self._images.filter(f"(\n{condition}\n)")
        except (duckdb.ParserException, duckdb.BinderException) as error:
            columns = self._images.columns
            raise sql_error(lambda _: columns, [self.run], condition, error) from error

    def _select(
        self, images: duckdb.DuckDBPyRelation, columns: str, clauses: str = ""
    ) -> list[tuple[Any, ...]]:
        answer = images.query("chosen", f"SELECT {columns} FROM chosen {clauses}")
        return cast(duckdb.DuckDBPyRelation, answer).fetchall()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Exclusive use of the database, for at most ``QUERY_S``."""
        with self._lock:
            deadline = threading.Timer(QUERY_S, self._database.interrupt)
            deadline.start()
            try:
                yield
            except duckdb.InterruptException as error:
                raise InputError(f"no answer in {QUERY_S:.0f} s; simplify the query") from error
            except duckdb.Error as error:
                raise query_failure(error) from error
            finally:
                deadline.cancel()


def _as_json(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """A row by names; integers that JavaScript would round are texts."""
    exact = [str(v) if isinstance(v, int) and abs(v) > MAX_SAFE_INTEGER else v for v in row]
    return dict(zip(names, exact, strict=True))
