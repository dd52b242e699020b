"""The numbers on the report page: the distribution of one value, and the changes between two runs.

SQL computes them from the rows; what arrives here is small for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb

from segbatch.results.diff import diff
from segbatch.results.runfolder import RunFolder

NUM_BINS = 24
TAIL = 0.01  # share of the images on either side that may lie outside the histogram

NUM_CHANGED = 6  # images
NUM_CONFUSIONS = 10
MOST_CHANGED = f"""
SELECT uri, image_id_a, image_id_b, disagreement, coverage_distance FROM answer
WHERE disagreement > 0 OR coverage_distance > 0
ORDER BY disagreement DESC NULLS LAST, coverage_distance DESC, uri LIMIT {NUM_CHANGED}"""

# Runs a SELECT over the rows of a run, which the statement calls `answer`.
Ask = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Distribution:
    """The distribution of a value over the ``num`` images that have it.

    ``bins`` count the images in equal steps from ``low`` to ``high``; values outside of these are
    counted in the first and the last bin.
    """

    num: int
    mean: float
    minimum: float
    maximum: float
    quartiles: tuple[float, float, float]
    low: float
    high: float
    bins: tuple[int, ...]

    @property
    def median(self) -> float:
        return self.quartiles[1]

    def position(self, value: float) -> float:
        """The position of a value between ``low`` and ``high``, 0 to 1."""
        return min(max((value - self.low) / ((self.high - self.low) or 1.0), 0.0), 1.0)


def measure_distribution(
    ask: Ask, value: str, low: float | None = None, high: float | None = None
) -> Distribution | None:
    """The distribution of an SQL expression; ``None`` if no image has a value.

    ``low`` and ``high`` bound the histogram. They default to the 1st and the 99th percentile, so
    that one outlier does not press all other images into one bin.
    """
    values = f"(SELECT ({value})::DOUBLE AS v FROM answer)"
    [(num, mean, minimum, maximum, tails, quartiles)] = ask(
        "SELECT count(v), avg(v), min(v), max(v),"
        f" quantile_disc(v, [{TAIL}, {1 - TAIL}]), quantile_cont(v, [0.25, 0.5, 0.75])"
        f" FROM {values}"
    )
    if not num:
        return None
    low = tails[0] if low is None else low
    high = tails[1] if high is None else high
    width = (high - low) or 1.0
    counts: dict[int, int] = dict(
        ask(
            f"SELECT least(greatest(floor((v - {low!r}) / {width!r} * {NUM_BINS}), 0),"
            f" {NUM_BINS - 1})::INTEGER AS bin, count(*) FROM {values} WHERE v IS NOT NULL"
            " GROUP BY bin"
        )
    )
    bins = tuple(counts.get(number, 0) for number in range(NUM_BINS))
    return Distribution(num, mean, minimum, maximum, tuple(quartiles), low, high, bins)


@dataclass(frozen=True)
class ChangedImage:
    """An image whose result differs between the runs; shares from 0 to 1."""

    uri: str
    id_before: int
    id_after: int
    disagreement: float | None  # of the pixels, if both runs have a mask
    coverage_distance: float


@dataclass(frozen=True)
class DiffSummary:
    """What the page shows of a :class:`~segbatch.results.diff.Diff` whose run A is ``before``.

    ``facts`` and ``notes`` are the diff's. ``coverage`` rows are class, mean before, mean after,
    change; ``confusions`` rows are class before, class after, pixels, share, most pixels first.
    """

    before: RunFolder
    facts: dict[str, Any]
    notes: Sequence[str]
    coverage: Sequence[tuple[str, float | None, float | None, float | None]]
    confusions: Sequence[tuple[str, str, int, float]]
    changes: Sequence[ChangedImage]


def summarize_diff(before: RunFolder, after: RunFolder) -> DiffSummary:
    """Compare ``after`` with ``before``, as ``segbatch diff`` does; reads every mask of both runs.

    Raises what :func:`~segbatch.results.diff.diff` raises.
    """
    found = diff(before, after)
    changed = cast(duckdb.DuckDBPyRelation, found.images.query("answer", MOST_CHANGED))
    return DiffSummary(
        before=before,
        facts=found.facts,
        notes=found.notes(),
        coverage=found.coverage.fetchall(),
        confusions=found.changed_pixels(NUM_CONFUSIONS).fetchall(),
        changes=[ChangedImage(*row) for row in changed.fetchall()],
    )
