"""The images of a run grouped by one of the user's columns, for the report page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segbatch.masks.classes import SegClass
from segbatch.results.buildings import VIEW
from segbatch.results.database import quoted_name, without_zones
from segbatch.results.query import sql
from segbatch.results.runfolder import RunFolder
from segbatch.review.report.classes import ClassFacts

NUM_GROUPS = 30
GROUP_CLASSES = 8  # columns in the table of groups


@dataclass(frozen=True)
class Groups:
    """Images grouped by ``column``.

    ``rows`` are the value, the number of images, that of failed ones, and one list with the
    coverages of ``classes`` in all pixels of the group, followed by ``formulas`` over these.
    ``more_classes``, ``num_more`` (groups) and ``num_more_images`` are left out of the table.
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
        """The largest value of each class and formula, which has the longest bar; never 0."""
        columns = zip(*(values for *_, values in self.rows), strict=True)
        return [max([abs(value) for value in column if value] or [1.0]) for column in columns]


def group_images(
    run: RunFolder, column: str, classes: Sequence[ClassFacts], formulas: Sequence[str]
) -> Groups:
    """The largest groups of images by ``column``, one of the user's."""
    shown = [facts for facts in classes if facts.num_images]
    covering = [facts.seg_class for facts in shown[:GROUP_CLASSES]]
    job_has = run.info.job.get("formulas", {})  # those of the job can be computed for a group
    computed = [name for name in formulas if name in job_has]
    values = [f"coverage.{quoted_name(c.field)}" for c in covering]
    values += [f"formulas.{quoted_name(name)}" for name in computed]
    groups = sql(
        [run],
        f"SELECT building, images + failed, failed, [{', '.join(values)}]::DOUBLE[],"
        " count(*) OVER (), sum(images + failed) OVER ()"
        f" FROM {VIEW}({quoted_name(column)})"
        f" ORDER BY images + failed DESC, building LIMIT {NUM_GROUPS}",
    )
    found = without_zones(groups).fetchall()
    rows = [row[:4] for row in found]
    num_groups, num_images = found[0][4:] if found else (0, 0)
    return Groups(
        column=column,
        classes=covering,
        formulas=computed,
        rows=rows,
        more_classes=[facts.seg_class.name for facts in shown[GROUP_CLASSES:]],
        num_more=num_groups - len(rows),
        num_more_images=int(num_images) - sum(row[1] for row in rows),
    )
