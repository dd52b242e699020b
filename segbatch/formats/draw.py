"""Draws shapes into a label map, pixel for pixel as labelme does.

Each function draws one shape over the earlier ones, so that later shapes lie on top. ``label_map``
is ``(height, width)`` uint8 and is changed in place; ``points`` are ``(n, 2)`` float64, x and y in
pixels from the top left corner. Shapes are clipped at the edge of the image. All functions raise
``ValueError`` with the reason for a shape that cannot be drawn or covers no pixel.

Source: ``shape_to_mask`` and ``shapes_to_label`` in ``labelme/utils/shape.py`` of labelme 6.3.1,
which are the same in versions 3 to 5 for the shapes that these versions have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segbatch.formats.format import LabelMap

Points = npt.NDArray[np.float64]

LINE_WIDTH = 10
POINT_RADIUS = 5

# Pillow rounds to 32-bit integers, and walks along a whole circle, however much of it is outside.
MAX_COORDINATE = 100_000

OUTSIDE = "lies entirely outside of the image"


def polygon(label_map: LabelMap, points: Points, class_id: int) -> None:
    """A filled polygon with its outline, at least three points."""
    _check(points, at_least=3)
    corners = _pairs(points)
    _paint(label_map, class_id, points, lambda pen: pen.polygon(corners, fill=1, outline=1))


def rectangle(label_map: LabelMap, points: Points, class_id: int) -> None:
    """The filled upright rectangle around all points, at least two."""
    _check(points, at_least=2)
    corners = _pairs(np.array([points.min(0), points.max(0)]))
    _paint(label_map, class_id, points, lambda pen: pen.rectangle(corners, fill=1, outline=1))


def circle(label_map: LabelMap, points: Points, class_id: int) -> None:
    """A filled circle: its centre and a point on its rim."""
    _check(points, at_least=2, at_most=2)
    _disc(label_map, points[0], math.dist(*points), class_id)


def line(label_map: LabelMap, points: Points, class_id: int) -> None:
    """A line 10 pixels wide along all points, at least two."""
    _check(points, at_least=2)
    path = _pairs(points)
    around = _around(points, LINE_WIDTH)
    _paint(label_map, class_id, around, lambda pen: pen.line(path, fill=1, width=LINE_WIDTH))


def point(label_map: LabelMap, points: Points, class_id: int) -> None:
    """A disc of 5 pixels' radius around the one point."""
    _check(points, at_least=1, at_most=1)
    _disc(label_map, points[0], POINT_RADIUS, class_id)


def mask(
    label_map: LabelMap, is_inside: npt.NDArray[np.bool_], points: Points, class_id: int
) -> None:
    """The pixels of ``is_inside``, ``(height, width)`` of the box that has the two points as its
    first and last pixel.
    """
    _check(points, at_least=2, at_most=2)
    (left, top), (right, bottom) = np.floor(points).astype(int)
    if is_inside.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(
            f"its mask is {is_inside.shape[1]}×{is_inside.shape[0]} pixels and its box"
            f" {right - left + 1}×{bottom - top + 1}"
        )
    seen = is_inside[max(-top, 0) :, max(-left, 0) :]
    under = label_map[max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)]
    seen = seen[: under.shape[0], : under.shape[1]]
    if not seen.any():
        raise ValueError(OUTSIDE if is_inside.any() else "its mask is empty")
    under[seen] = class_id


def _disc(label_map: LabelMap, center: Points, radius: float, class_id: int) -> None:
    around = _around(center[None], radius)
    box = _pairs(around)
    _paint(label_map, class_id, around, lambda pen: pen.ellipse(box, fill=1, outline=1))


def _around(points: Points, distance: float) -> Points:
    """The corners of the box that holds all points and ``distance`` around them."""
    return np.array([points.min(0) - distance, points.max(0) + distance])


def _pairs(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist()]


def _check(points: Points, *, at_least: int, at_most: int | None = None) -> None:
    if not len(points):
        raise ValueError("has no points")
    if not at_least <= len(points) <= (at_most or len(points)):
        wanted = at_least if at_least == at_most else f"at least {at_least}"
        raise ValueError(f"needs {wanted} points and has {len(points)}")
    if not np.isfinite(points).all():
        raise ValueError("has coordinates that are not numbers")
    if np.abs(points).max() > MAX_COORDINATE:
        raise ValueError(f"has coordinates beyond {MAX_COORDINATE:,} pixels")


def _paint(
    label_map: LabelMap,
    class_id: int,
    points: Points,
    draw: Callable[[ImageDraw.ImageDraw], None],
) -> None:
    """Draw within the box of ``points``; no other part of the label map is touched."""
    height, width = label_map.shape
    left, top = np.maximum(np.floor(points.min(0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.floor(points.max(0)) + 2, (width, height)).astype(int).tolist()
    if left >= right or top >= bottom:
        raise ValueError(OUTSIDE)
    # From the image's own corner, because Pillow rounds a moved shape differently.
    canvas = Image.new("L", (right, bottom))
    draw(ImageDraw.Draw(canvas))
    is_inside = np.asarray(canvas.crop((left, top, right, bottom))) > 0
    if not is_inside.any():
        raise ValueError(OUTSIDE)
    label_map[top:bottom, left:right][is_inside] = class_id
