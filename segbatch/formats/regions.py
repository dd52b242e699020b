"""The regions of Label Studio's annotations as masks.

Brushes and bitmasks are pixels. The coordinates of polygons, rectangles and ellipses are percent of
the upright photograph, however it was turned on the screen (``image_rotation``); rectangles turn
around their first corner, ellipses around their centre, clockwise. Points and vectors have no area.

Source: ``web/libs/editor/src/regions`` of Label Studio 1.23, and
``convert_annotation_to_yolo_obb`` in ``label_studio_sdk/converter/utils.py`` of 2.1.2.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.formats.brush import Mask, decode_brush
from segbatch.formats.coco import decode_region
from segbatch.formats.tasks import Region

MIN_CORNERS, MAX_CORNERS = 16, 4096  # of a polygon in place of an ellipse


def draw_region(region: Region, width: int, height: int) -> Mask:
    """The mask of a region, at least one pixel of an image of that size.

    Raises ``ValueError`` with the reason if it cannot be drawn.
    """
    value = region.value
    if region.size not in (None, (width, height)):
        raise ValueError("was drawn on an image of another size than the regions before it")
    if "rle" in value:
        if value["rle"] is None:
            raise ValueError("has RLE that is not a list of bytes")
        inside = decode_brush(value["rle"], width, height)
    elif "imageDataURL" in value:
        inside = _bitmask(value["imageDataURL"], width, height)
    else:
        with np.errstate(all="ignore"):  # what is infinite is refused below
            corners = _corners(value, width, height)
        runs, _ = decode_region([corners.ravel().tolist()], width, height)
        in_columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return in_columns.reshape(width, height).T
    if not inside.any():
        raise ValueError("covers no pixel of the image")
    return inside


def _bitmask(address: Any, width: int, height: int) -> Mask:
    """The pixels that are not transparent in a PNG of the image's size, given as a data URI."""
    try:
        data = base64.b64decode(address.partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            size = picture.size
            alphas = (
                np.asarray(picture.convert("RGBA"))[..., 3] if size == (width, height) else None
            )
    except Exception as error:  # a decoder may raise anything for a broken file
        raise ValueError("has a bitmask that is not a PNG in a data URI") from error
    if alphas is None:
        raise ValueError(f"has a bitmask of {size[0]}×{size[1]}: the image is {width}×{height}")
    return alphas > 0


def _corners(value: Mapping[str, Any], width: int, height: int) -> npt.NDArray[np.float64]:
    """The outline of a region in pixels, ``(n, 2)``, x and y."""
    sides = np.array([width, height])
    if "vertices" in value:
        raise ValueError("is a vector, which is not read: draw a polygon or use a brush")
    if "points" in value:
        try:
            points = np.array(value["points"], np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError("its points are not pairs of numbers") from error
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError("its points are not pairs of numbers")
        return np.asarray(points / 100 * sides)
    turn = math.radians(_number(value, "rotation", 0))
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    start = np.array([_number(value, "x"), _number(value, "y")]) / 100 * sides
    if "radiusX" in value:
        radii = np.array([_number(value, "radiusX"), _number(value, "radiusY")]) / 100 * sides
        num_corners = np.clip(2 * math.pi * np.abs(radii).max(), MIN_CORNERS, MAX_CORNERS)
        angles = np.linspace(0, 2 * math.pi, int(num_corners))
        offsets = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    elif "height" in value:
        across = np.array([_number(value, "width"), _number(value, "height")]) / 100 * sides
        offsets = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * across
    else:
        raise ValueError("is a point, which has no area")
    return np.asarray(start + offsets @ axes)


def _number(value: Mapping[str, Any], key: str, otherwise: float | None = None) -> float:
    number = value.get(key)
    number = otherwise if number is None else number
    try:
        if isinstance(number, int | float) and math.isfinite(number):
            return float(number)
    except OverflowError:
        pass
    raise ValueError(f"its {key} is not a number")
