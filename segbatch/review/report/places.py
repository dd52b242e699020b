"""The images of a run as points on the map of the report page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from segbatch.results.database import quoted_name
from segbatch.results.points import coordinates_in
from segbatch.results.schema import OK
from segbatch.review.distribution import Ask
from segbatch.review.map.sheet import SAMPLE, SCRIPTS, STYLE, map_file
from segbatch.review.pages import without_signature
from segbatch.review.report.classes import ClassFacts

MAP_CLASSES = 20  # to choose from on the map


def places(
    ask: Ask,
    images: duckdb.DuckDBPyRelation,
    classes: Sequence[ClassFacts],
    tiles: str | None,
) -> dict[str, Any] | None:
    """The points of a map, of at most ``MAX_POINTS`` images, and the classes that colour them;
    ``None`` where no image has coordinates.
    """
    coordinates = coordinates_in(images)
    if coordinates is None or not classes:
        return None
    where = f"WHERE status = '{OK}' AND {coordinates.are_known}"
    [(total,)] = ask(f"SELECT count(*) FROM answer {where}")
    shown = [facts.seg_class for facts in classes if facts.mean][:MAP_CLASSES]
    shares = ", ".join(f"round(coverage.{quoted_name(c.field)}, 4)" for c in shown)
    latitude, longitude = coordinates
    points = ask(
        f"FROM (SELECT uri, {longitude}::DOUBLE, {latitude}::DOUBLE, [{shares}]::DOUBLE[]"
        f" FROM answer {where} ORDER BY image_id) {SAMPLE}"
    )
    if not points:
        return None
    return {
        "total": total,
        "points": [(without_signature(uri), *rest) for uri, *rest in points],
        "classes": [{"name": c.name, "color": c.hex} for c in shown],
        "tiles": tiles,
        "scripts": [map_file(name).decode() for name in SCRIPTS],
        "style": map_file(STYLE).decode(),
    }
