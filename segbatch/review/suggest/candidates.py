"""Candidates: the images of a run among which those to label are chosen, the most wanted first.

They are a few times as many as are wanted, however many rows the run has, because what comes after
looks at each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb

from segbatch.errors import InputError
from segbatch.results.database import quoted_text
from segbatch.results.diff import diff
from segbatch.results.query import sql, unreadable
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import FAILED, OK

FACTOR = 10  # candidates for each image that is wanted; Zhdanov (2019) takes 10 to 50
AT_LEAST = 2  # where the run is small, of which only the worst images count: one of WORST
WORST = 4

# What failed so cannot be labelled; and what crashed a worker would crash whoever looks at it.
UNLABELLABLE = ("truncated", "undecodable", "unsupported", "too_large", "crashed")


@dataclass(frozen=True)
class Candidate:
    """A row of the run. ``score``: the higher, the more it is wanted. ``coverage``: by class id,
    0 to 1, and ``size``, width and height of the upright image: ``None`` where the row failed.
    """

    image_id: int
    uri: str
    score: float
    reason: str
    uncertainty: float | None
    coverage: Sequence[float] | None
    size: tuple[int, int] | None


def find_candidates(
    run: RunFolder,
    *,
    by: str,
    count: int,
    against: RunFolder | None,
    among: Collection[str] | None,
    without: Mapping[str, str],
) -> tuple[list[Candidate], Counter[str]]:
    """The candidates for ``count`` images, each URI once, and how many were left out, by why.

    ``by``: a key of :data:`RANKINGS`. ``against``: the other run, of ``disagreement``. ``among``:
    URIs besides which none is taken. ``without``: why not, by the URIs that are not taken.

    Raises :class:`~segbatch.errors.InputError` where the run cannot say what is asked for, and
    what :func:`~segbatch.results.diff.diff` raises.
    """
    if by not in RANKINGS:
        raise InputError(f"--by {by}: must be one of {', '.join(RANKINGS)}")
    if (against is None) == (by == "disagreement"):
        raise InputError("--by disagreement and --against RUN_B go together: they need each other")
    scope = "true" if among is None else f"uri IN ({', '.join(map(quoted_text, sorted(among)))})"
    try:
        margin = len(without) + run.info["manifest"]["duplicates"]
        ranking, told = RANKINGS[by](run, scope, against, WORST * FACTOR * count + margin)
        left_out = _left_out(run, by, scope, among)
        [(rows,)] = sql([run], f"SELECT count(*) FROM ({ranking})").fetchall()
        limit = FACTOR * count
        if told:
            limit = min(limit, max(AT_LEAST * count, rows // WORST))
        relation = sql(
            [run], f"{ranking} ORDER BY score DESC, md5(uri), image_id LIMIT {limit + margin}"
        )
        found: dict[str, Candidate] = {}
        for values in relation.fetchall():
            row = dict(zip(relation.columns, values, strict=True))
            if row["uri"] in without:
                left_out[without[row["uri"]]] += 1
            elif len(found) < limit:
                found.setdefault(row["uri"], _candidate(row, told or by))
        return list(found.values()), left_out
    except duckdb.Error as error:
        raise unreadable(error) from error


def _candidate(row: Mapping[str, Any], told: str) -> Candidate:
    coverage = row["coverage"]
    return Candidate(
        image_id=row["image_id"],
        uri=row["uri"],
        score=row["score"],
        reason=f"failed: {row['error']}" if row["error"] else told.format(row["score"]),
        uncertainty=row.get("uncertainty"),
        coverage=None if coverage is None else list(coverage.values()),
        size=(row["width"], row["height"]) if coverage is not None else None,
    )


def _left_out(run: RunFolder, by: str, scope: str, among: Collection[str] | None) -> Counter[str]:
    """What is asked for and can be no candidate."""
    left_out: Counter[str] = Counter()
    if among is not None:
        [(there,)] = sql([run], f"SELECT count(DISTINCT uri) FROM images WHERE {scope}").fetchall()
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

# Each gives the SELECT of rows with their `score`, and how a score is told; nothing where scores
# say nothing. The last parameter is how many of the rows are asked for at most.
Ranking = tuple[str, str]


def _by_uncertainty(run: RunFolder, scope: str, _: RunFolder | None, __: int) -> Ranking:
    if "uncertainty" not in sql([run], "FROM images LIMIT 0").columns:
        raise InputError(
            f"{run.uri}: does not know how uncertain it is: run it with stats: [confidence], or"
            " choose --by diverse"
        )
    which = f"uncertainty IS NOT NULL AND {scope}"
    return f"SELECT *, uncertainty AS score FROM images WHERE {which}", "uncertainty {:.3f}"


def _by_disagreement(run: RunFolder, scope: str, against: RunFolder | None, most: int) -> Ranking:
    assert against is not None
    pairs = cast(
        duckdb.DuckDBPyRelation,
        diff(run, against).images.query(
            "answer",
            "SELECT image_id_a, coalesce(disagreement, coverage_distance) AS score FROM answer"
            f" WHERE score > 0 AND {scope} ORDER BY score DESC, image_id_a LIMIT {most}",
        ),
    ).fetchall()
    values = ", ".join(f"({image_id}, {score})" for image_id, score in pairs or [(-1, 0)])
    scores = f"(VALUES {values}) AS scores (image_id, score)"
    return f"SELECT * FROM images JOIN {scores} USING (image_id)", "disagreement {:.3f}"


def _by_failure(run: RunFolder, scope: str, _: RunFolder | None, __: int) -> Ranking:
    kinds = ", ".join(map(quoted_text, UNLABELLABLE))
    which = f"status = '{FAILED}' AND error NOT IN ({kinds}) AND {scope}"
    return f"SELECT *, 0 AS score FROM images WHERE {which}", ""


def _by_chance(run: RunFolder, scope: str, _: RunFolder | None, __: int) -> Ranking:
    return f"SELECT *, 0 AS score FROM images WHERE status = '{OK}' AND {scope}", ""


RANKINGS: dict[str, Callable[[RunFolder, str, RunFolder | None, int], Ranking]] = {
    "uncertainty": _by_uncertainty,
    "disagreement": _by_disagreement,
    "failures": _by_failure,
    "diverse": _by_chance,
}
