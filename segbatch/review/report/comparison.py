"""Comparison: what of a run is different from another one, as far as a page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb

from segbatch.results.runfolder import Run

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

    before: Run
    facts: dict[str, Any]
    notes: Sequence[str]
    coverage: Sequence[tuple[str, float | None, float | None, float | None]]
    confusions: Sequence[tuple[str, str, int, float]]
    changes: Sequence[Change]


def compare(before: Run, after: Run) -> Comparison:
    """Hold ``after`` against ``before``, as ``segbatch diff`` does: it reads every mask of both.

    Raises what :meth:`Run.diff <segbatch.results.runfolder.Run.diff>` raises.
    """
    found = before.diff(after)
    changed = cast(duckdb.DuckDBPyRelation, found.images.query("answer", MOST_CHANGED))
    return Comparison(
        before=before,
        facts=found.facts,
        notes=found.notes(),
        coverage=found.coverage.fetchall(),
        confusions=found.changed_pixels(NUM_CONFUSIONS).fetchall(),
        changes=[Change(*row) for row in changed.fetchall()],
    )
