"""The classes on the report page: how much each covers, where it is, and how sure the model was."""

from __future__ import annotations

from dataclasses import dataclass

from segbatch.masks.classes import SegClass
from segbatch.results.database import quoted_name
from segbatch.results.runfolder import RunFolder
from segbatch.review.distribution import Ask, Distribution, measure_distribution


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


def class_facts(ask: Ask, run: RunFolder, *, with_confidence: bool) -> list[ClassFacts]:
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
