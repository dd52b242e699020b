"""The report: one HTML page that shows a run's facts, its distributions, and images to look at.

SQL counts everything from the rows, so that only small results arrive here for any number of rows.
The page is one file with its pictures inside; it loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, cast

import duckdb
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from segbatch import masks, storage
from segbatch.config.images import location_of, parse_source
from segbatch.errors import Damaged, InputError, UnreadableMask
from segbatch.masks.classes import SegClass
from segbatch.results import cost
from segbatch.results.database import quoted_name
from segbatch.results.points import coordinates_in
from segbatch.results.prices import Prices, read_prices
from segbatch.results.query import query_failure, sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK, RESERVED_COLUMNS
from segbatch.review.map.sheet import SAMPLE, SCRIPTS, STYLE, map_file, tiles_origin
from segbatch.review.report.gallery import (
    MAX_CLASSES,
    Section,
    Thumbnails,
    choose_images,
    draw_thumbnails,
)
from segbatch.review.report.numbers import (
    Ask,
    DiffSummary,
    Distribution,
    measure_distribution,
    summarize_diff,
)

NUM_EXAMPLES = 3  # for each kind of failure
NUM_GROUPS = 30
GROUP_CLASSES = 8  # columns in the table of groups
MAP_CLASSES = 20  # to choose from on the map


@dataclass(frozen=True)
class ClassFacts:
    """One class in a run: the images that have it, and its mean coverage over all images.

    The distributions are over the images that have the class.
    """

    seg_class: SegClass
    num_images: int
    mean: float
    coverage: Distribution | None
    confidence: Distribution | None


@dataclass(frozen=True)
class Groups:
    """Images grouped by ``column``.

    ``rows`` are the value, the number of images, that of failed ones, and one list with the mean
    coverages of ``classes`` followed by the means of ``formulas``. ``more_classes``, ``num_more``
    (groups) and ``num_more_images`` are left out of the table.
    """

    column: str
    classes: Sequence[SegClass]
    formulas: Sequence[str]
    rows: Sequence[tuple[Any, int, int, Sequence[float | None]]]
    more_classes: Sequence[str]
    num_more: int
    num_more_images: int


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
    column = None if by is None else _find_column(by, images.columns)

    def ask(select: str) -> list[tuple[Any, ...]]:
        return cast(duckdb.DuckDBPyRelation, images.query("answer", select)).fetchall()

    [(num_ok, num_failed)] = ask(
        f"SELECT count(*) FILTER (status = '{OK}'), count(*) FILTER (status = '{FAILED}')"
        " FROM answer"
    )
    classes = _classes(ask, run, with_confidence="confidence" in fields) if num_ok else []
    means = {facts.seg_class: facts.mean for facts in classes}
    gallery = list(choose_images(ask, run, means, by_uncertainty=has_uncertainty)) if num_ok else []
    comparison, not_compared = None, None
    if against is not None:
        try:
            comparison = summarize_diff(against, run)
        except (Damaged, UnreadableMask) as error:
            not_compared = str(error)
    thumbnails, thumbnails_before = _thumbnails(run, gallery, comparison)
    return _template().render(
        run=run,
        overview=_overview(run, prices),
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
        groups=None if column is None else _groups(ask, column, classes, formulas),
        map=_map(ask, images, classes, tiles),
        tiles_origin=origin,
        gallery=gallery,
        without_extremes=[facts.seg_class.name for facts in classes[MAX_CLASSES:] if facts.mean],
        against=against,
        comparison=comparison,
        not_compared=not_compared,
        thumbnails=thumbnails,
        thumbnails_before=thumbnails_before,
        now=datetime.now(UTC),
    )


def _find_column(name: str, columns: Sequence[str]) -> str:
    """The user's column of this name, in any case."""
    own = {column.lower(): column for column in columns if column not in RESERVED_COLUMNS}
    if name.lower() in own:
        return own[name.lower()]
    if not own:
        raise InputError(f"--by {name}: the run has no columns of yours; they come from a manifest")
    close = get_close_matches(name.lower(), own, n=1)
    hint = f"did you mean {own[close[0]]}?" if close else f"there are {', '.join(own.values())}"
    raise InputError(f"--by {name}: the run has no column {name} of yours; {hint}")


# ------------------------------------------------------------------------------ what it shows


def _overview(run: RunFolder, prices: Prices) -> dict[str, str]:
    """The facts at the top of the page, from ``run.json``; unknown ones are left out."""
    info, model = run.info, run.info.model
    pace = info.images_per_second
    seconds = sum(start.wall_s for start in info.starts)
    network = " · ".join(filter(None, (model.arch, model.backbone)))
    facts = {
        "run": run.uri,
        "model": f"{model.uri} ({network})" if network else model.uri,
        "images": ", ".join(_sources(info.job.get("images", []))),
        "started": _time(info.created),
        "ended": _time(info.finished) if info.finished else "",
        "took": f"{_duration(seconds)}, {pace:,.3g} images per second" if pace else "",
        **cost.cost_facts(info.starts, prices, cost.object_storage_use(run)),
        "engine": f"{info.engine or 'torch'} {info.precision}" if info.precision else "",
        "why it ended early": info.reason or "",
    }
    return {name: value for name, value in facts.items() if value}


def _sources(images: Any) -> list[str]:
    """The locations under the job's ``images`` key; those of a job that is no longer valid as they
    are written.
    """
    entries = images if isinstance(images, list) else [images]
    with suppress(ValueError):
        return [location_of(parse_source(entry)) for entry in entries]
    return [str(entry) for entry in entries]


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _failures(ask: Ask) -> list[tuple[str, int, list[dict[str, str]]]]:
    """Kind, number and examples (``uri``, ``message``) of failures, the most frequent first."""
    return ask(
        "SELECT error, count(*), arg_min({uri: uri, message: message}, image_id,"
        f" {NUM_EXAMPLES}) FROM answer WHERE status = '{FAILED}'"
        " GROUP BY error ORDER BY count(*) DESC, error"
    )


def _classes(ask: Ask, run: RunFolder, *, with_confidence: bool) -> list[ClassFacts]:
    """The facts of each class, largest mean coverage first."""
    shares = [f"coverage.{quoted_name(c.field)}" for c in run.classes]
    aggregates = (f"coalesce(avg({s}), 0), count(*) FILTER ({s} > 0)" for s in shares)
    [row] = ask(f"SELECT {', '.join(aggregates)} FROM answer")
    found = [
        ClassFacts(
            seg_class=c,
            num_images=num,
            mean=mean,
            coverage=measure_distribution(ask, f"nullif({share}, 0)", 0.0) if num else None,
            confidence=measure_distribution(ask, f"confidence.{quoted_name(c.field)}", 0.0, 1.0)
            if num and with_confidence
            else None,
        )
        for c, share, mean, num in zip(run.classes, shares, row[::2], row[1::2], strict=True)
    ]
    return sorted(found, key=lambda facts: -facts.mean)


def _formula(run: RunFolder, name: str) -> str:
    """The text of a formula in the job file; empty if the job does not say."""
    formulas: Mapping[str, str] = run.info.job.get("formulas", {})
    return formulas.get(name, "")


def _groups(
    ask: Ask, column: str, classes: Sequence[ClassFacts], formulas: Sequence[str]
) -> Groups:
    """The largest groups of images by ``column``; means are over the ok images of a group."""
    shown = [facts for facts in classes if facts.num_images]
    covering = [facts.seg_class for facts in shown[:GROUP_CLASSES]]
    means = [f"coverage.{quoted_name(c.field)}" for c in covering]
    means += [f"formulas.{quoted_name(name)}" for name in formulas]
    group = quoted_name(column)
    rows = ask(
        f"SELECT {group}, count(*), count(*) FILTER (status = '{FAILED}'),"
        f" [{', '.join(f'avg({mean})' for mean in means)}]::DOUBLE[]"
        f" FROM answer GROUP BY {group} ORDER BY count(*) DESC, {group} LIMIT {NUM_GROUPS}"
    )
    [(num_groups, num_images)] = ask(
        f"SELECT count(*), sum(n) FROM (SELECT count(*) AS n FROM answer GROUP BY {group})"
    )
    return Groups(
        column=column,
        classes=covering,
        formulas=formulas,
        rows=rows,
        more_classes=[facts.seg_class.name for facts in shown[GROUP_CLASSES:]],
        num_more=num_groups - len(rows),
        num_more_images=(num_images or 0) - sum(row[1] for row in rows),
    )


def _map(
    ask: Ask,
    images: duckdb.DuckDBPyRelation,
    classes: Sequence[ClassFacts],
    tiles: str | None,
) -> dict[str, Any] | None:
    """The points of a map, of at most ``MAX_POINTS`` images, and the classes that colour them;
    ``None`` where no image has coordinates.
    """
    coordinates = coordinates_in(images)
    if coordinates is None or not classes:
        return None
    where = f"WHERE status = '{OK}' AND {coordinates.are_known}"
    [(total,)] = ask(f"SELECT count(*) FROM answer {where}")
    shown = [facts.seg_class for facts in classes if facts.mean][:MAP_CLASSES]
    shares = ", ".join(f"round(coverage.{quoted_name(c.field)}, 4)" for c in shown)
    longitude, latitude = quoted_name(coordinates.longitude), quoted_name(coordinates.latitude)
    points = ask(
        f"FROM (SELECT uri, {longitude}::DOUBLE, {latitude}::DOUBLE, [{shares}]::DOUBLE[]"
        f" FROM answer {where} ORDER BY image_id) {SAMPLE}"
    )
    if not points:
        return None
    return {
        "total": total,
        "points": points,
        "classes": [{"name": c.name, "color": _color(c)} for c in shown],
        "tiles": tiles,
        "scripts": [map_file(name).decode() for name in SCRIPTS],
        "style": map_file(STYLE).decode(),
    }


def _thumbnails(
    run: RunFolder, gallery: Sequence[Section], comparison: DiffSummary | None
) -> tuple[dict[int, Thumbnails], dict[int, Thumbnails]]:
    """The thumbnails of this run's images and of the other run's, by ``image_id``, each once."""
    after = {card.image_id: card.uri for section in gallery for card in section.cards}
    if comparison is None:
        return draw_thumbnails(run, after), {}
    after |= {change.id_after: change.uri for change in comparison.changes}
    before = {change.id_before: change.uri for change in comparison.changes}
    return draw_thumbnails(run, after), draw_thumbnails(comparison.before, before)


# ------------------------------------------------------------------------------ the template


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("segbatch.review.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        count=_count, percent=_percent, number=_number, points=_points, color=_color
    )
    return environment.get_template("report.html")


def _percent(share: float | None) -> str:
    """A share for reading; a small one that is not zero is not shown as 0%."""
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}"
    return masks.share(share)


def _points(change: float | None) -> str:
    """A change of a share, in percentage points."""
    if change is None:
        return "–"
    return f"{100 * change:+.1f}" if abs(change) >= 0.0005 else "0"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:#.3g}".rstrip(".")


def _count(num: int) -> str:
    return f"{num:,}"


def _color(seg_class: SegClass) -> str:
    return f"#{bytes(seg_class.color).hex()}"
