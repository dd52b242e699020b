"""The distribution of a number over the images of a run: a histogram, quartiles and extremes.

SQL computes it from the rows; what arrives here is small for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUM_BINS = 24
TAIL = 0.01  # share of the images on either side that may lie outside the histogram

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
