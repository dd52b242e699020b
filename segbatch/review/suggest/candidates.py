"""Ranks the images of a run as candidates for labelling, the best first.

There are a few times as many candidates as images wanted, for any number of rows, because each of
them is read afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import duckdb

from segbatch.errors import InputError
from segbatch.results.database import quoted_name, quoted_text
from segbatch.results.diff import diff
from segbatch.results.query import query_failure, sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK
from segbatch.storage.uris import without_query

FACTOR = 10  # candidates for each wanted image; Zhdanov (2019) takes 10 to 50
# A ranking by score takes at most one of four rows, but at least two for each wanted image.
ROWS_PER_CANDIDATE = 4
MIN_FACTOR = 2
PRESENT = 0.002  # share of an image from which on it shows a class

# Those of a run that a candidate has; a run may have no confidence and no uncertainty.
COLUMNS = (
    "image_id", "uri", "status", "error", "width", "height", "coverage", "confidence", "uncertainty"
)  # fmt: skip

# Images that cannot be labelled; one that crashed a worker would crash a labelling tool, too.
UNLABELLABLE = ("truncated", "undecodable", "unsupported", "too_large", "crashed")


@dataclass(frozen=True)
class Candidate:
    """A row of the run; a higher ``score`` is better.

    ``coverage`` is by class id, 0 to 1; ``size`` is width and height of the upright image. Both are
    ``None`` if the image failed. ``confidence`` is by the field of the class, 0 to 1; empty if the
    run has none.
    """

    image_id: int
    uri: str
    score: float
    reason: str
    uncertainty: float | None
    coverage: Sequence[float] | None
    size: tuple[int, int] | None
    confidence: Mapping[str, float | None]


@dataclass(frozen=True)
class Wanted:
    """What a ranking ranks: the images that meet ``scope``, SQL on the columns of a candidate.

    ``against`` is the other run, for disagreement; ``most`` the number of rows that are enough.
    """

    scope: str
    against: RunFolder | None
    most: int


def find_candidates(
    run: RunFolder,
    *,
    by: str,
    count: int,
    against: RunFolder | None,
    among: Collection[str] | None,
    without: Mapping[str, str],
) -> tuple[list[Candidate], Counter[str]]:
    """The candidates for ``count`` images, each URI once, and the numbers left out, by reason.

    ``by`` is a key of :data:`RANKINGS`; ``against`` the other run for ``disagreement``. ``among``
    limits the choice to these URIs; ``without`` are URIs that are not taken, with the reason.

    Raises :class:`~segbatch.errors.InputError` if the run lacks what the ranking needs, and what
    :func:`~segbatch.results.diff.diff` raises.
    """
    if by not in RANKINGS:
        raise InputError(f"--by {by}: must be one of {', '.join(RANKINGS)}")
    if (against is None) == (by == "disagreement"):
        raise InputError("--by disagreement and --against RUN_B go together; give both or neither")
    uris = ", ".join(map(quoted_text, sorted(among or ())))
    scope = "true" if among is None else f"uri IN ({uris})"
    passed_over = len(without) + run.info.manifest.duplicates  # rows that may be no candidates
    limit = FACTOR * count
    try:
        wanted = Wanted(scope, against, ROWS_PER_CANDIDATE * limit + passed_over)
        ranking = RANKINGS[by](run, wanted)
        left_out = _left_out(run, by, scope, among)
        if ranking.reason:
            [(rows,)] = sql([run], f"SELECT count(*) FROM ({ranking.select})").fetchall()
            limit = min(limit, max(MIN_FACTOR * count, rows // ROWS_PER_CANDIDATE))
        relation = sql(
            [run],
            f"{ranking.select} ORDER BY score DESC, md5(uri), image_id LIMIT {limit + passed_over}",
        )
        found: dict[str, Candidate] = {}
        for values in relation.fetchall():
            row = dict(zip(relation.columns, values, strict=True))
            if row["uri"] in without:
                left_out[without[row["uri"]]] += 1
            elif len(found) < limit:
                found.setdefault(row["uri"], _candidate(row, ranking.reason or by))
        return list(found.values()), left_out
    except duckdb.Error as error:
        raise query_failure(error) from error


def _candidate(row: Mapping[str, Any], reason: str) -> Candidate:
    coverage = row["coverage"]
    return Candidate(
        image_id=row["image_id"],
        uri=row["uri"],
        score=row["score"],
        reason=f"failed: {row['error']}" if row["error"] else reason.format(row["score"]),
        uncertainty=row.get("uncertainty"),
        coverage=None if coverage is None else list(coverage.values()),
        size=(row["width"], row["height"]) if coverage is not None else None,
        confidence=row.get("confidence") or {},
    )


def _left_out(run: RunFolder, by: str, scope: str, among: Collection[str] | None) -> Counter[str]:
    """Images that were asked for but cannot be candidates, by reason.

    Raises :class:`~segbatch.errors.InputError` if none of them is in the run.
    """
    left_out: Counter[str] = Counter()
    if among is not None:
        [(there,)] = sql([run], f"SELECT count(DISTINCT uri) FROM images WHERE {scope}").fetchall()
        first = sql([run], "SELECT uri FROM images ORDER BY image_id LIMIT 1").fetchall()
        if first and not there:
            asked, known = without_query(next(iter(among))), without_query(first[0][0])
            raise InputError(
                f"--images: none of the list is in {run.uri}: it says {asked}, and the run {known}"
            )
        left_out["not in the run"] = len(among) - there
    if by == "failures" or among is not None:
        errors = sql([run], f"SELECT error, count(*) FROM failures WHERE {scope} GROUP BY error")
        for error, number in errors.fetchall():
            if by != "failures":
                left_out[f"failed in the run, {error}: see --by failures"] = number
            elif error in UNLABELLABLE:
                left_out[f"failed in the run, {error}: cannot be labelled"] = number
    return +left_out


# --------------------------------------------------------------------------------------- rankings


class Ranking(NamedTuple):
    """``select`` gives rows of the run with their ``score``.

    ``reason`` formats a score for the list; empty if the scores are all equal.
    """

    select: str
    reason: str


def _images(run: RunFolder) -> str:
    """SQL: the images with the columns of a candidate, and with none of the user's: one of these
    may be called ``score``.
    """
    there = sql([run], "FROM images LIMIT 0").columns
    return f"(SELECT {', '.join(name for name in COLUMNS if name in there)} FROM images)"


def _by_uncertainty(run: RunFolder, wanted: Wanted) -> Ranking:
    if "uncertainty" not in sql([run], "FROM images LIMIT 0").columns:
        raise InputError(
            f"{run.uri}: has no uncertainty; run the job with stats: [confidence], or choose"
            " --by rare or --by diverse"
        )
    [(num,)] = sql([run], "SELECT count(uncertainty) FROM images").fetchall()
    if not num:
        raise InputError(
            f"{run.uri}: has no uncertainty, because its model gives class ids alone: choose --by"
            " rare or --by diverse"
        )
    which = f"uncertainty IS NOT NULL AND {wanted.scope}"
    select = f"SELECT *, uncertainty AS score FROM {_images(run)} WHERE {which}"
    return Ranking(select, "uncertainty {:.3f}")


def _by_rarity(run: RunFolder, wanted: Wanted) -> Ranking:
    """Each class that an image shows counts as much as few images of the run show it; the score is
    divided by that of an image with all classes.
    """
    shown = [f"(coverage.{quoted_name(c.field)} >= {PRESENT})" for c in run.classes]
    counts = ", ".join(f"count(*) FILTER ({shows})" for shows in shown)
    [numbers] = sql([run], f"SELECT {counts} FROM images WHERE status = '{OK}'").fetchall()
    weights = [1 / number if number else 0.0 for number in numbers]
    whole = sum(weights) or 1.0
    score = " + ".join(
        f"{weight / whole} * {shows}::INTEGER" for weight, shows in zip(weights, shown, strict=True)
    )
    which = f"status = '{OK}' AND {wanted.scope}"
    return Ranking(f"SELECT *, {score} AS score FROM {_images(run)} WHERE {which}", "rarity {:.3f}")


def _by_disagreement(run: RunFolder, wanted: Wanted) -> Ranking:
    assert wanted.against is not None
    pairs = cast(
        duckdb.DuckDBPyRelation,
        diff(run, wanted.against).images.query(
            "answer",
            "SELECT image_id_a, coalesce(disagreement, coverage_distance) AS score FROM answer"
            f" WHERE score > 0 AND {wanted.scope} ORDER BY score DESC, image_id_a"
            f" LIMIT {wanted.most}",
        ),
    ).fetchall()
    values = ", ".join(f"({image_id}, {score})" for image_id, score in pairs or [(-1, 0)])
    scores = f"(VALUES {values}) AS scores (image_id, score)"
    select = f"SELECT * FROM {_images(run)} JOIN {scores} USING (image_id)"
    return Ranking(select, "disagreement {:.3f}")


def _by_failure(run: RunFolder, wanted: Wanted) -> Ranking:
    kinds = ", ".join(map(quoted_text, UNLABELLABLE))
    which = f"status = '{FAILED}' AND error NOT IN ({kinds}) AND {wanted.scope}"
    return Ranking(f"SELECT *, 0 AS score FROM {_images(run)} WHERE {which}", "")


def _for_diversity(run: RunFolder, wanted: Wanted) -> Ranking:
    which = f"status = '{OK}' AND {wanted.scope}"
    return Ranking(f"SELECT *, 0 AS score FROM {_images(run)} WHERE {which}", "")


RANKINGS: dict[str, Callable[[RunFolder, Wanted], Ranking]] = {
    "uncertainty": _by_uncertainty,
    "rare": _by_rarity,
    "disagreement": _by_disagreement,
    "failures": _by_failure,
    "diverse": _for_diversity,
}
