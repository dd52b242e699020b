"""The images of a run grouped by one of the user's columns, for the report page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from segbatch.errors import InputError
from segbatch.masks.classes import SegClass
from segbatch.results.database import quoted_name
from segbatch.results.schema import FAILED, RESERVED_COLUMNS
from segbatch.review.distribution import Ask
from segbatch.review.report.classes import ClassFacts

NUM_GROUPS = 30
GROUP_CLASSES = 8  # columns in the table of groups


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

    @property
    def largest(self) -> Sequence[float]:
        """The largest mean of each class and formula, as which its bar is longest; never 0."""
        columns = zip(*(means for *_, means in self.rows), strict=True)
        return [max([abs(mean) for mean in column if mean] or [1.0]) for column in columns]


def find_column(name: str, columns: Sequence[str]) -> str:
    """The user's column of this name, in any case."""
    own = {column.lower(): column for column in columns if column not in RESERVED_COLUMNS}
    if name.lower() in own:
        return own[name.lower()]
    if not own:
        raise InputError(f"--by {name}: the run has no columns of yours; they come from a manifest")
    close = get_close_matches(name.lower(), own, n=1)
    hint = f"did you mean {own[close[0]]}?" if close else f"there are {', '.join(own.values())}"
    raise InputError(f"--by {name}: the run has no column {name} of yours; {hint}")


def group_images(
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
