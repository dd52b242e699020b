"""Distribution: how one number lies over the images of a run, measured where its rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
