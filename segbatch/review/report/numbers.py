"""Distribution: how one number lies over the images of a run, measured where its rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb

from segbatch.results.diff import diff
from segbatch.results.runfolder import RunFolder

NUM_BINS = 24


TAIL = 0.01  # of the images on either side may lie outside of what is drawn


# Asks a SELECT of the rows of a run, which it calls `answer`.
Ask = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Distribution:
    """Of ``num`` images that have the number; those without it are left out.

    ``bins`` are the images in equal steps from ``low`` to ``high``; what lies outside is in the
    first and the last of them.
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
        """Where a value stands between ``low`` and ``high``, 0 to 1."""
        return min(max((value - self.low) / ((self.high - self.low) or 1.0), 0.0), 1.0)


def measure(
    ask: Ask, value: str, low: float | None = None, high: float | None = None
) -> Distribution | None:
    """The distribution of an SQL expression; ``None`` where no image has it.

    What is drawn reaches from ``low`` to ``high``, and where one is not given to the percentile
    at which the outermost hundredth of the images begins, so that one odd image does not press
    all others into one bin.
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
    bins = tuple(counts.get(bin_, 0) for bin_ in range(NUM_BINS))
    return Distribution(num, mean, minimum, maximum, tuple(quartiles), low, high, bins)


# Comparison: what of a run is different from another one, as far as a page shows it.


NUM_CHANGED = 6  # images


NUM_CONFUSIONS = 10


MOST_CHANGED = f"""
SELECT uri, image_id_a, image_id_b, disagreement, coverage_distance FROM answer
WHERE disagreement > 0 OR coverage_distance > 0
ORDER BY disagreement DESC NULLS LAST, coverage_distance DESC, uri LIMIT {NUM_CHANGED}"""


@dataclass(frozen=True)
class Change:
    """An image whose result is another one; shares from 0 to 1."""

    uri: str
    id_before: int
    id_after: int
    disagreement: float | None  # where both have a mask
    coverage_distance: float


@dataclass(frozen=True)
class Comparison:
    """``facts`` are those of :class:`~segbatch.results.diff.Diff`, whose run A is ``before``;
    ``coverage`` is class, mean before, mean after, change; ``confusions`` are class before,
    class after, pixels, share, the most pixels first.
    """

    before: RunFolder
    facts: dict[str, Any]
    notes: Sequence[str]
    coverage: Sequence[tuple[str, float | None, float | None, float | None]]
    confusions: Sequence[tuple[str, str, int, float]]
    changes: Sequence[Change]


def compare(before: RunFolder, after: RunFolder) -> Comparison:
    """Hold ``after`` against ``before``, as ``segbatch diff`` does: it reads every mask of both.

    Raises what :meth:`Run.diff <segbatch.run.Run.diff>` raises.
    """
    found = diff(before, after)
    changed = cast(duckdb.DuckDBPyRelation, found.images.query("answer", MOST_CHANGED))
    return Comparison(
        before=before,
        facts=found.facts,
        notes=found.notes(),
        coverage=found.coverage.fetchall(),
        confusions=found.changed_pixels(NUM_CONFUSIONS).fetchall(),
        changes=[Change(*row) for row in changed.fetchall()],
    )
