"""Compares two runs over the same images: coverages by class, and masks pixel by pixel.

Images are joined on their URIs, as :mod:`~segbatch.results.pairing` says. Classes are the same if
their fields are the same, as in the views of a query; the two models may number them differently.

DuckDB joins the rows, and spills to disk what does not fit into its memory limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from time import monotonic
from typing import Any

import duckdb
import numpy as np

from segbatch.console import Bar
from segbatch.errors import RunError
from segbatch.masks.classes import Classes
from segbatch.masks.html import table_html
from segbatch.results.database import (
    open_database,
    quoted_name,
    quoted_text,
    register_filesystems,
    scan_run,
    select_from,
)
from segbatch.results.disagreement import Counts, Pair, compare_masks
from segbatch.results.pairing import PAIRED, coverage_distance, coverage_of, numbered
from segbatch.results.query import query_failure
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK

MEMORY = "1GB"
FETCHED_ROWS = 10_000  # from DuckDB at a time
VOID = "void"  # the name for pixels of no class

PAIRS = """
CREATE TABLE pairs AS
SELECT
    coalesce(a.uri, b.uri) AS uri, a.image_id AS image_id_a, b.image_id AS image_id_b,
    a.status AS status_a, b.status AS status_b, a.error AS error_a, b.error AS error_b,
    a.file AS file_a, b.file AS file_b, a.coverage AS coverage_a, b.coverage AS coverage_b
FROM ({a}) AS a FULL JOIN ({b}) AS b ON {paired}"""

TABLES = """
CREATE TABLE compared (image_id_a BIGINT, disagreement DOUBLE, resized BOOLEAN);
CREATE TABLE coverage (class VARCHAR, coverage_a DOUBLE, coverage_b DOUBLE, change DOUBLE);
CREATE TABLE confusion (class_a VARCHAR, class_b VARCHAR, pixels BIGINT, share DOUBLE)"""

BOTH_OK = f"(status_a = '{OK}' AND status_b = '{OK}')"

COUNTS = {
    "ok_in_both": BOTH_OK,
    "failed_in_a": f"status_a = '{FAILED}' AND status_b = '{OK}'",
    "failed_in_b": f"status_a = '{OK}' AND status_b = '{FAILED}'",
    "failed_in_both": f"status_a = '{FAILED}' AND status_b = '{FAILED}'",
    "only_in_a": "status_b IS NULL",
    "only_in_b": "status_a IS NULL",
}


@dataclass(frozen=True)
class Diff:
    """How run B differs from run A. The relations are DuckDB's, computed when they are read.

    ``facts``: the runs and models compared, and the number of images of each kind.

    ``images``: a row for each pair of images, and for each image without a counterpart. ``uri``;
    ``image_id``, ``status`` and ``error``, each with ``_a`` and ``_b``, null if the image is not in
    that run; ``disagreement``, the share of pixels with another class, 0 to 1, null if one of the
    masks is missing; ``resized``, whether the smaller mask was resized to the grid of the larger
    by nearest neighbour; ``coverage_distance``, the total variation distance of the coverages
    (half the sum of all absolute changes), 0 to 1, which for masks on one grid is at most the
    disagreement; ``change``, a struct of the coverage in B minus that in A by class, null if one of
    the runs does not have the class.

    ``coverage``: means over the images that are ok in both runs, by class: ``class, coverage_a,
    coverage_b, change``.

    ``confusion``: pixels of all compared masks, by their class in A and in B, most pixels first:
    ``class_a, class_b, pixels``, and ``share`` of the pixels that are ``class_a`` in A.
    """

    facts: dict[str, Any]
    images: duckdb.DuckDBPyRelation
    coverage: duckdb.DuckDBPyRelation
    confusion: duckdb.DuckDBPyRelation

    def __repr__(self) -> str:
        return f"Diff({self.facts['run_a']} → {self.facts['run_b']}: {self._summary})"

    def _repr_html_(self) -> str:
        """For notebooks: how much differs, and the mean coverage of each class in both runs."""
        runs = f"{escape(self.facts['run_a'])} → {escape(self.facts['run_b'])}"
        rows = [
            [escape(name), *("–" if value is None else f"{value:.2%}" for value in values)]
            for name, *values in self.coverage.fetchall()
        ]
        table = table_html(rows, ["class", "before", "after", "change"])
        return f"<p><b>{runs}</b> {escape(self._summary)}</p>{table}"

    @property
    def _summary(self) -> str:
        images = f"{self.facts['ok_in_both']:,} images are ok in both"
        share = self.facts["disagreement"]
        return images if share is None else f"{images}, on average {share:.2%} of an image differs"

    def most_changed(
        self, limit: int = 20, columns: str = "uri, disagreement, coverage_distance, change"
    ) -> duckdb.DuckDBPyRelation:
        """Images with the largest disagreement or, without masks, coverage distance."""
        return select_from(
            self.images,
            f"SELECT {columns} FROM answer WHERE disagreement > 0 OR coverage_distance > 0"
            f" ORDER BY disagreement DESC NULLS LAST, coverage_distance DESC, uri LIMIT {limit}",
        )

    def one_sided(self, limit: int = 20) -> duckdb.DuckDBPyRelation:
        """Images that are in only one of the runs, or failed in only one of them."""
        return select_from(
            self.images,
            "SELECT uri, status_a, status_b, coalesce(error_a, error_b) AS error FROM answer"
            " WHERE status_a IS DISTINCT FROM status_b"
            f" ORDER BY image_id_a NULLS LAST, image_id_b LIMIT {limit}",
        )

    def changed_pixels(self, limit: int = 20) -> duckdb.DuckDBPyRelation:
        """The part of ``confusion`` in which the classes differ."""
        query = f"SELECT * FROM answer WHERE class_a <> class_b LIMIT {limit}"
        return select_from(self.confusion, query)

    def notes(self) -> list[str]:
        """Limitations of the disagreement, one line each."""
        lines = {
            "without_mask": "have no mask in one of the runs: their disagreement is null",
            "resized": "have masks of two sizes: the smaller was resized to the larger by nearest"
            " neighbour",
        }
        return [
            f"{self.facts[key]:,} images {line}" for key, line in lines.items() if self.facts[key]
        ]

    def tables(self, limit: int = 20) -> dict[str, duckdb.DuckDBPyRelation]:
        """The tables to print, by title; empty ones are left out."""
        tables = {
            "Coverage, mean over the images that are ok in both": _single(self.coverage),
            "Pixels whose class changed": _single(self.changed_pixels(limit)),
            "Images that changed most": _single(self.most_changed(limit)),
            "Images in one run only, or failed in one only": self.one_sided(limit),
        }
        return {title: rows for title, rows in tables.items() if rows.limit(1).fetchall()}

    def to_json(self, limit: int = 20) -> dict[str, Any]:
        """Everything, but at most ``limit`` images of each kind."""
        return {
            **self.facts,
            "coverage": _records(self.coverage),
            "confusion": _records(self.confusion),
            "most_changed": _records(self.most_changed(limit)),
            "one_sided": _records(self.one_sided(limit)),
        }


def diff(a: RunFolder, b: RunFolder) -> Diff:
    """Compare the committed rows of two runs, finished or not.

    Memory does not grow with the number of images. Raises :class:`~segbatch.errors.RunError` if
    no image is in both runs, :class:`~segbatch.errors.Damaged` for a damaged file, ``OSError`` if
    storage fails.
    """
    con = open_database()
    con.execute(f"SET memory_limit = '{MEMORY}'")
    register_filesystems(con, [a.uri, b.uri])
    try:
        con.execute(PAIRS.format(a=_rows(con, a, "a"), b=_rows(con, b, "b"), paired=PAIRED))
        _require_common_images(con, a, b)
        con.execute(TABLES)
        _compare(con, a, b)
        _fill_coverage(con, a.classes, b.classes)
        return Diff(
            facts=_facts(con, a, b),
            images=con.sql(_images(a.classes, b.classes)),
            coverage=con.table("coverage"),
            confusion=con.sql("FROM confusion ORDER BY pixels DESC"),
        )
    except duckdb.Error as error:
        raise query_failure(error) from error


def _rows(con: duckdb.DuckDBPyConnection, run: RunFolder, side: str) -> str:
    """The SELECT of a run's rows, numbered among rows with the same URI."""
    columns = "image_id, uri, status, error, coverage, parse_filename(file) AS file"
    return numbered(scan_run(con, f"source_{side}", run).view, columns)


def _require_common_images(con: duckdb.DuckDBPyConnection, a: RunFolder, b: RunFolder) -> None:
    """Refuse runs without a common URI: of other images, or of the same in another place."""
    [(common, only_a, only_b)] = con.execute(
        "SELECT count(*) FILTER (status_a IS NOT NULL AND status_b IS NOT NULL),"
        " min(uri) FILTER (status_b IS NULL), min(uri) FILTER (status_a IS NULL) FROM pairs"
    ).fetchall()
    if not common and only_a and only_b:
        raise RunError(
            f"{a.uri} and {b.uri} have no image in common: runs are joined on uri, which is"
            f" {only_a} in the first and {only_b} in the second"
        )


def _compare(con: duckdb.DuckDBPyConnection, a: RunFolder, b: RunFolder) -> None:
    """Fill the tables ``compared`` and ``confusion``."""
    if any(run.info.job.get("masks") == "none" for run in (a, b)):
        return  # without masks in one run, those of the other need not be read
    [(total,)] = con.execute(f"SELECT count(*) FROM pairs WHERE {BOTH_OK}").fetchall()
    cursor = con.cursor()  # reads while the connection writes
    cursor.execute(
        f"SELECT file_a, image_id_a, file_b, image_id_b FROM pairs WHERE {BOTH_OK}"
        " ORDER BY file_a, file_b, image_id_a"
    )
    fetched: Iterator[list[Pair]] = iter(lambda: cursor.fetchmany(FETCHED_ROWS), [])
    pixels = np.zeros((len(a.classes) + 1, len(b.classes) + 1), np.int64)
    done, started = 0, monotonic()
    with Bar("diff", total) as bar:
        for found in compare_masks(a, b, chain.from_iterable(fetched)):
            _insert(con, "compared", found.image_ids, found.shares, found.resized)
            pixels += found.pixels
            done += found.num_pairs
            pace = f"{done / (monotonic() - started):.1f}"
            if bar.move(done, f"{pace} images/s"):
                bar.line(f"images={done}/{total} images_per_second={pace}", "event=diff ")
    _fill_confusion(con, a.classes, b.classes, pixels)


def _insert(con: duckdb.DuckDBPyConnection, table: str, *columns: Sequence[Any]) -> None:
    """Insert rows, given as columns."""
    con.execute(f"INSERT INTO {table} SELECT {', '.join(['unnest(?)'] * len(columns))}", columns)


def _facts(con: duckdb.DuckDBPyConnection, a: RunFolder, b: RunFolder) -> dict[str, Any]:
    aggregates = ", ".join(f"count(*) FILTER ({condition})" for condition in COUNTS.values())
    [row] = con.execute(f"SELECT {aggregates} FROM pairs").fetchall()
    counts = dict(zip(COUNTS, row, strict=True))
    [(compared, resized, identical, mean)] = con.execute(
        "SELECT count(*), count(*) FILTER (resized), count(*) FILTER (disagreement = 0),"
        " avg(disagreement) FROM compared"
    ).fetchall()
    return {
        **{f"run_{side}": run.uri for side, run in (("a", a), ("b", b))},
        **{f"status_{side}": run.status for side, run in (("a", a), ("b", b))},
        **{f"model_{side}": run.info.model.uri for side, run in (("a", a), ("b", b))},
        "same_model": a.info.model.sha256 == b.info.model.sha256,
        "classes_only_in_a": [c.name for c in a.classes if c.field not in b.classes.fields],
        "classes_only_in_b": [c.name for c in b.classes if c.field not in a.classes.fields],
        **counts,
        "without_mask": counts["ok_in_both"] - compared,
        "resized": resized,
        "identical": identical,
        "disagreement": None if mean is None else round(mean, 6),
    }


def _images(a: Classes, b: Classes) -> str:
    """The SELECT of :attr:`Diff.images`."""
    changes = []
    for field in _class_names(a, b):
        of_a, of_b = coverage_of(field, "coverage_a", a), coverage_of(field, "coverage_b", b)
        changes.append(f"{quoted_text(field)}: {of_b} - {of_a}")
    distance = coverage_distance("coverage_a", a, "coverage_b", b)
    return f"""
        SELECT
            uri, image_id_a, image_id_b, status_a, status_b, error_a, error_b,
            disagreement, resized,
            CASE WHEN {BOTH_OK} THEN {distance} END AS coverage_distance,
            CASE WHEN {BOTH_OK} THEN {{{", ".join(changes)}}} END AS change
        FROM pairs LEFT JOIN compared USING (image_id_a)
        ORDER BY image_id_a NULLS LAST, image_id_b"""


def _fill_coverage(con: duckdb.DuckDBPyConnection, a: Classes, b: Classes) -> None:
    for field, name in _class_names(a, b).items():
        of_a, of_b = coverage_of(field, "coverage_a", a), coverage_of(field, "coverage_b", b)
        con.execute(
            f"INSERT INTO coverage SELECT ?, avg({of_a}) AS of_a, avg({of_b}) AS of_b, of_b - of_a"
            f" FROM pairs WHERE {BOTH_OK}",
            [name],
        )


def _fill_confusion(con: duckdb.DuckDBPyConnection, a: Classes, b: Classes, pixels: Counts) -> None:
    names = _class_names(a, b)
    names_a, names_b = ([*(names[c.field] for c in classes), VOID] for classes in (a, b))
    rows, columns = np.nonzero(pixels)
    shares = pixels / pixels.sum(axis=1, keepdims=True).clip(1)
    _insert(
        con,
        "confusion",
        [names_a[row] for row in rows],
        [names_b[column] for column in columns],
        pixels[rows, columns].tolist(),
        shares[rows, columns].tolist(),
    )


def _class_names(a: Classes, b: Classes) -> dict[str, str]:
    """Field → name of the classes of both runs, those of A first; A's name for common classes."""
    names = {c.field: c.name for c in a}
    for c in b:
        names.setdefault(c.field, c.name)
    return names


def _single(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """``relation`` with doubles in single precision, of which a table prints four digits."""
    columns = [
        f"{quoted_name(name)}{'::FLOAT' if kind.id == 'double' else ''} AS {quoted_name(name)}"
        for name, kind in zip(relation.columns, relation.types, strict=True)
    ]
    return select_from(relation, f"SELECT {', '.join(columns)} FROM answer")


def _records(relation: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
