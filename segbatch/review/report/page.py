"""The report: one HTML page that shows a run's facts, its distributions, and images to look at.

SQL counts everything from the rows, so that only small results arrive here for any number of rows.
The page is one file with its pictures inside; it loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import duckdb

from segbatch import storage
from segbatch.errors import Damaged, InputError, UnreadableMask
from segbatch.results.buildings import find_column
from segbatch.results.database import quoted_name
from segbatch.results.prices import Prices, read_prices
from segbatch.results.query import query_failure, sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK
from segbatch.review.distribution import Ask, measure_distribution
from segbatch.review.map.sheet import tiles_origin
from segbatch.review.report.classes import class_facts
from segbatch.review.report.comparison import summarize_diff
from segbatch.review.report.gallery import MAX_CLASSES, choose_images, draw_thumbnails
from segbatch.review.report.groups import group_images
from segbatch.review.report.overview import overview
from segbatch.review.report.pairs import draw_pairs
from segbatch.review.report.places import places
from segbatch.review.report.template import report_template

NUM_EXAMPLES = 3  # for each kind of failure


def write_report(
    run: RunFolder,
    path: str,
    *,
    by: str | None = None,
    against: RunFolder | None = None,
    prices: str | None = None,
    tiles: str | None = None,
) -> int:
    """Write the page of a run, finished or not, to ``path``, any URI; returns its size in bytes.

    ``by`` is one of the user's columns. ``against`` is a run over the same images; all masks of
    both are compared. ``prices`` is a price table, any URI, for the cost. ``tiles`` is the address
    of tiles for the map, ``https://…/{z}/{x}/{y}.png``, from which the page then requests them. The
    page names images that cannot be fetched any more, and damaged masks.

    Raises :class:`~segbatch.errors.InputError` for a column that does not exist, what
    :func:`~segbatch.results.diff.diff` raises except for damage, and ``OSError`` if storage fails.
    """
    table = read_prices(prices)
    origin = tiles_origin(tiles)
    try:
        page = _page(run, by, against, table, tiles=tiles, origin=origin).encode()
    except duckdb.Error as error:
        raise query_failure(error) from error
    with storage.translate_errors("cannot write", InputError):
        storage.write_bytes(path, page)
    return len(page)


def _page(
    run: RunFolder,
    by: str | None,
    against: RunFolder | None,
    prices: Prices,
    *,
    tiles: str | None,
    origin: str,
) -> str:
    images = sql([run], "SELECT * FROM images")
    fields = {
        name: [field for field, _ in kind.children]
        for name, kind in zip(images.columns, images.types, strict=True)
        if name in ("confidence", "formulas")
    }
    formulas = fields.get("formulas", [])
    has_uncertainty = "uncertainty" in images.columns
    column = None if by is None else find_column("--by", by, images.columns)

    def ask(select: str) -> list[tuple[Any, ...]]:
        return cast(duckdb.DuckDBPyRelation, images.query("answer", select)).fetchall()

    [(num_ok, num_failed)] = ask(
        f"SELECT count(*) FILTER (status = '{OK}'), count(*) FILTER (status = '{FAILED}')"
        " FROM answer"
    )
    classes = class_facts(ask, run, with_confidence="confidence" in fields) if num_ok else []
    means = {facts.seg_class: facts.mean for facts in classes}
    gallery = list(choose_images(ask, run, means, by_uncertainty=has_uncertainty)) if num_ok else []
    comparison, not_compared = None, None
    if against is not None:
        try:
            comparison = summarize_diff(against, run)
        except (Damaged, UnreadableMask) as error:
            not_compared = str(error)
    cards = {card.image_id: card.uri for section in gallery for card in section.cards}
    return report_template().render(
        run=run,
        overview=overview(run, prices),
        total=run.info.manifest.rows,
        num_ok=num_ok,
        num_failed=num_failed,
        failures=_failures(ask),
        classes=classes,
        uncertainty=measure_distribution(ask, "uncertainty", 0.0, 1.0) if has_uncertainty else None,
        formulas=[
            (name, _formula(run, name), measure_distribution(ask, f"formulas.{quoted_name(name)}"))
            for name in formulas
        ],
        groups=None if column is None else group_images(run, column, classes, formulas),
        map=places(ask, images, classes, tiles),
        tiles_origin=origin,
        gallery=gallery,
        without_extremes=[facts.seg_class.name for facts in classes[MAX_CLASSES:] if facts.mean],
        against=against,
        comparison=comparison,
        pairs=[] if comparison is None else draw_pairs(comparison),
        not_compared=not_compared,
        thumbnails=draw_thumbnails(run, cards),
        now=datetime.now(UTC),
    )


def _failures(ask: Ask) -> list[tuple[str, int, list[dict[str, str]]]]:
    """Kind, number and examples (``uri``, ``message``) of failures, the most frequent first."""
    return ask(
        "SELECT error, count(*), arg_min({uri: uri, message: message}, image_id,"
        f" {NUM_EXAMPLES}) FROM answer WHERE status = '{FAILED}'"
        " GROUP BY error ORDER BY count(*) DESC, error"
    )


def _formula(run: RunFolder, name: str) -> str:
    """The text of a formula in the job file; empty if the job does not say."""
    formulas: Mapping[str, str] = run.info.job.get("formulas", {})
    return formulas.get(name, "")
