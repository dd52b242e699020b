"""The comparison on the report page: what `segbatch diff` finds, and the most changed images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segbatch.results.diff import diff
from segbatch.results.runfolder import RunFolder

NUM_CHANGED = 6  # images
NUM_CONFUSIONS = 10
CHANGED_IMAGE = "uri, image_id_a, image_id_b, disagreement, coverage_distance"


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
    """What the page shows of a :class:`~segbatch.results.diff.Diff` of two runs.

    ``facts`` and ``notes`` are the diff's. ``coverage`` rows are class, mean before, mean after,
    change; ``confusions`` rows are class before, class after, pixels, share, most pixels first.
    """

    before: RunFolder
    after: RunFolder
    facts: dict[str, Any]
    notes: Sequence[str]
    coverage: Sequence[tuple[str, float | None, float | None, float | None]]
    confusions: Sequence[tuple[str, str, int, float]]
    changes: Sequence[ChangedImage]

    @property
    def names(self) -> tuple[str, str]:
        """The names of the runs, before and after; their URIs if both have one name."""
        runs = self.before, self.after
        before, after = (run.name for run in runs)
        return (before, after) if before != after else (runs[0].uri, runs[1].uri)

    @property
    def colors(self) -> dict[str, str]:
        """The colour of each class by name; the later run's where both have the class."""
        return {c.name: c.hex for run in (self.before, self.after) for c in run.classes}

    @property
    def largest_share(self) -> float:
        return max(share for *_, share in self.confusions)

    @property
    def largest_change(self) -> float:
        """The largest change of a mean coverage, as which its bar is longest; never 0."""
        return max([abs(change) for *_, change in self.coverage if change] or [1.0])


def summarize_diff(before: RunFolder, after: RunFolder) -> DiffSummary:
    """Compare ``after`` with ``before``, as ``segbatch diff`` does; reads every mask of both runs.

    Raises what :func:`~segbatch.results.diff.diff` raises.
    """
    found = diff(before, after)
    changed = found.most_changed(NUM_CHANGED, CHANGED_IMAGE)
    return DiffSummary(
        before=before,
        after=after,
        facts=found.facts,
        notes=found.notes(),
        coverage=found.coverage.fetchall(),
        confusions=found.changed_pixels(NUM_CONFUSIONS).fetchall(),
        changes=[ChangedImage(*row) for row in changed.fetchall()],
    )
