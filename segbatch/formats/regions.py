"""Regions: the ``segmentation`` of a COCO annotation → runs of pixels, as COCO's own tools draw it.

A region is its runs: how many pixels are outside, inside, outside … in turn, column by column from
the top left corner. Polygons are drawn by pycocotools, the definition of what a COCO polygon
covers: a pixel whose centre is inside. (Pillow draws the outline too, which makes a window at 512
pixels 3 % larger.) Runs in a file are decoded here, for pycocotools reads and writes beyond its
memory where they do not fit the image.

Source: ``common/maskApi.c`` of https://github.com/cocodataset/cocoapi.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

# pycocotools walks along every edge: a corner may lie outside, but not at any distance.
FAR = 10  # times the longer side


def draw(flat: npt.NDArray[np.uint8], runs: Iterable[int], class_id: int) -> None:
    """Set the pixels inside; ``flat`` is ``(width · height,)`` uint8, column by column."""
    ends = np.cumsum(np.fromiter(runs, np.int64)).tolist()
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = class_id


def area(runs: list[int]) -> int:
    """Number of pixels inside."""
    return sum(runs[1::2])


def decode_region(segmentation: Any, width: int, height: int) -> tuple[list[int], list[str]]:
    """The runs of polygons or RLE, and what is wrong with polygons that were left out.

    Raises ``ValueError``, whose text is the reason, where nothing is left to draw.
    """
    problems: list[str] = []
    if isinstance(segmentation, Mapping):
        runs = _rle(segmentation, width, height)
    elif isinstance(segmentation, list) and segmentation:
        runs, problems = _polygons(segmentation, width, height)
    else:
        raise ValueError("has no segmentation (a box only?)")
    if not area(runs):
        raise ValueError("covers no pixel of the image")
    return runs, problems


def _polygons(rings: list[Any], width: int, height: int) -> tuple[list[int], list[str]]:
    """The runs of what any of the polygons covers."""
    drawn, problems = [], []
    for number, ring in enumerate(rings, 1):
        try:
            drawn.append(_corners(ring, FAR * max(width, height)))
        except ValueError as error:
            of_many = f" (polygon {number} of {len(rings)})" if len(rings) > 1 else ""
            problems.append(f"{error}{of_many}")
    if not drawn:
        raise ValueError("; ".join(problems))
    region = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
    return _decode(region["counts"]), problems


def _corners(ring: Any, far: int) -> npt.NDArray[np.float64]:
    """``(2 n,)``: x and y of each corner in turn."""
    try:
        corners = np.array(ring, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("has a polygon that is no list of numbers") from error
    if corners.ndim != 1 or len(corners) % 2:
        raise ValueError("has a polygon that is no list x, y, x, y …")
    if len(corners) < 6:
        raise ValueError(f"has a polygon of {len(corners) // 2} points: at least 3 make one")
    if not np.isfinite(corners).all():
        raise ValueError("has a corner whose coordinates are no numbers")
    if np.abs(corners).max() > far:
        raise ValueError(f"has a corner more than {far:,} pixels away")
    return corners


def _rle(rle: Mapping[str, Any], width: int, height: int) -> list[int]:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"has RLE of the size {size}: [{height}, {width}] is the image's")
    if isinstance(counts, str):
        counts = _decode(counts.encode("latin-1", "replace"))
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("has RLE whose counts are no runs of pixels")
    if sum(counts) != width * height:
        raise ValueError(f"has RLE of {sum(counts):,} pixels for {width * height:,}")
    return counts


def _decode(text: bytes) -> list[int]:
    """Compressed runs: numbers of five bits a character, the lowest first, with a sign; from the
    fourth on each is the difference from the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has RLE whose counts are no compressed runs")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has RLE whose counts end in the middle of a number")
    return runs
