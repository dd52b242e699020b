"""What the filters of the browse page offer: ranges with histograms, and the values of texts.

Two scans answer for any number of rows: one for the extremes, and one for a sample, of which the
histograms are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from segbatch.results.database import quoted_name
from segbatch.review.browse.measures import Measure
from segbatch.review.distribution import Ask, measure_distribution

FEW_VALUES = 12  # of a text, to be offered one by one
SAMPLE_ROWS = 20_000
OUTLIERS = 3  # a range that is so many times wider than that of 98 in 100 images is cut to theirs

# Reads a SELECT over the rows, which the statement calls `answer`, as a table.
Read = Callable[[str], pa.Table]


@dataclass(frozen=True)
class Range:
    """From where to where a slider goes, and the images between, in equal steps.

    ``is_cut`` says that a few images lie outside.
    """

    low: float
    high: float
    bins: Sequence[int]
    is_cut: bool


@dataclass(frozen=True)
class Facets:
    """``ranges`` by name of a measure; those that no image has, and texts that are no dates, are
    left out. ``values`` are those of texts that have few, with their numbers of images, the most
    frequent first.
    """

    ranges: Mapping[str, Range]
    values: Mapping[str, Sequence[tuple[str | None, int]]]


def find_facets(read: Read, measures: Sequence[Measure], texts: Sequence[str]) -> Facets:
    """The facets of the rows; ``texts`` are columns. Raises what ``read`` raises."""
    columns = {text: f"{quoted_name(text)}::VARCHAR" for text in texts}
    extremes = [
        f"min({m.expression}) AS low{i}, max({m.expression}) AS high{i},"
        f" count({m.expression}) AS num{i}"
        for i, m in enumerate(measures)
    ]
    counts = [
        f"approx_count_distinct({column}) AS distinct{i}, count({column}) AS num_texts{i}"
        for i, column in enumerate(columns.values())
    ]
    [found] = read(f"SELECT {', '.join(extremes + counts)} FROM answer").to_pylist()
    num_texts = {text: found[f"num_texts{i}"] for i, text in enumerate(texts)}

    values = {}
    for i, text in enumerate(texts):
        if found[f"distinct{i}"] <= 2 * FEW_VALUES:  # it is an estimate
            rows = read(
                f"SELECT {columns[text]} AS value, count(*) AS num FROM answer GROUP BY ALL"
                f" ORDER BY 2 DESC, 1 LIMIT {FEW_VALUES + 1}"
            ).to_pylist()
            if 1 < len(rows) <= FEW_VALUES:
                values[text] = [(row["value"], row["num"]) for row in rows]

    counted = ", ".join(f"{_counted(m)} AS m{i}" for i, m in enumerate(measures))
    sample = read(
        f"SELECT {counted} FROM answer USING SAMPLE reservoir({SAMPLE_ROWS} ROWS) REPEATABLE (1)"
    )
    ranges = {}
    with duckdb.connect() as con:
        con.from_arrow(sample).create("answer")
        for i, measure in enumerate(measures):
            low, high, num = (found[f"{key}{i}"] for key in ("low", "high", "num"))
            is_text = measure.group == "dates" and measure.label in num_texts
            if not num or (is_text and num < num_texts[measure.label]):
                continue
            if measure.group == "coverage":
                low = 0.0
            if low < high:
                ranges[measure.name] = _range(
                    lambda select: con.execute(select).fetchall(), f"m{i}", low, high
                )
    return Facets(ranges, values)


def _counted(measure: Measure) -> str:
    """The SQL of what the histogram counts: only images with the class."""
    expression = measure.expression
    return f"nullif({expression}, 0)" if measure.group == "coverage" else expression


def _range(ask: Ask, column: str, low: float, high: float) -> Range:
    found = measure_distribution(ask, column)
    if found is None:  # the sample has none of the few
        return Range(low, high, (), False)
    usual = found.high - found.low
    if 0 < OUTLIERS * usual < high - low:
        return Range(found.low, found.high, found.bins, True)
    whole = measure_distribution(ask, column, low, high)
    return Range(low, high, whole.bins if whole else (), False)
