"""Outlines of a label map's regions as polygons that are painted over each other.

labelme, like most annotation tools, has polygons without holes, and shapes lie over each other in
the order of the file. So a wall is its outer outline, and the windows in its holes are painted on
it. Every pixel belongs to a region, so no hole stays empty, and larger regions come first, because
a region in a hole is smaller than the region around it.

Regions are 4-connected. Two 8-connected ones could cross each other in a corner, and neither would
lie on top. A region's outline reaches one pixel under those that are painted later, so that only
the upper one draws their common border, and simplifying opens no gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import cv2
import numpy as np
import numpy.typing as npt

from segbatch.formats.format import LabelMap

Points = npt.NDArray[np.int32]

TOLERANCE = 1.0  # pixels by which simplifying may move an outline
AROUND = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class Polygon:
    """The outline of one region. ``points`` are ``(n, 2)`` int32, x and y of pixel centres from 0,
    at least three; the pixels under the outline belong to the region. ``class_id`` is 0 to 254, or
    the ignore index.
    """

    class_id: int
    points: Points


def polygons(label_map: LabelMap, tolerance: float = TOLERANCE) -> list[Polygon]:
    """The regions of ``label_map`` in the order of painting.

    Painted over each other they give the label map again, except for pixels along the edges of
    classes, one in a hundred in masks of facades; with a tolerance of 0, exactly. Ignored pixels
    are regions too, because a hole may hold some.

    Source of the outlines: Suzuki and Abe, Topological structural analysis of digitized binary
    images by border following (1985); of simplifying: Douglas and Peucker (1973).
    """
    # cc3d takes 0 for background: plus 1, in uint16, keeps 255 apart from 0.
    regions = cc3d.connected_components(label_map.astype(np.uint16) + 1, connectivity=4)
    boxes = cc3d.statistics(regions)["bounding_boxes"]
    enclosed = [0.0]
    for region in range(1, len(boxes)):
        outline = _outline((regions[boxes[region]] == region).astype(np.uint8))
        enclosed.append(cv2.contourArea(outline))
    order = np.argsort(-np.array(enclosed[1:]), kind="stable") + 1
    ranks = np.empty(len(boxes), np.int32)
    ranks[order] = np.arange(len(order))
    # Regions continue beyond the edge of the image, so that simplifying keeps them at the edge.
    ranked = np.pad(ranks[regions], 1, mode="edge")
    corner = np.array(label_map.shape[::-1], np.int32) - 1

    painted = []
    for region in order.tolist():
        rows, columns, *_ = boxes[region]
        around = ranked[rows.start : rows.stop + 2, columns.start : columns.stop + 2]
        own = _outline((around == ranks[region]).astype(np.uint8))
        under = _outline_under(around, ranks[region]) if tolerance else None
        points = _simplified(own if under is None else under, tolerance)
        points = points + np.array([columns.start - 1, rows.start - 1])
        inside = regions[boxes[region]] == region
        class_id = int(label_map[boxes[region]][inside][0])
        painted.append(Polygon(class_id, points.clip(0, corner).astype(np.int32)))
    return painted


def _outline_under(ranked: npt.NDArray[np.int32], rank: int) -> Points | None:
    """The outline of a region, extended one pixel under those that are painted later.

    ``None`` if it would close a bay of the region and so hide a region painted before.
    """
    inside = (ranked == rank).astype(np.uint8)
    outline = _outline(np.where(ranked >= rank, cv2.dilate(inside, AROUND), 0).astype(np.uint8))
    covered = cv2.drawContours(inside, [outline], -1, 1, cv2.FILLED)
    return None if (np.asarray(covered == 1) & (ranked < rank)).any() else outline


def _outline(inside: LabelMap) -> Points:
    """The outer outline of the one region in ``inside``, ``(n, 2)``."""
    [outline], _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return outline[:, 0].astype(np.int32)


def _simplified(points: Points, tolerance: float) -> Points:
    fewer = cv2.approxPolyDP(points, tolerance, closed=True)[:, 0].astype(np.int32)
    if len(fewer) < 3:  # a speck or a line keeps all its points
        fewer = points
    return np.pad(fewer, ((0, max(0, 3 - len(fewer))), (0, 0)), mode="edge")


def without_specks(label_map: LabelMap, pixels: int) -> LabelMap:
    """``label_map`` without regions too small to be worth correcting by hand: a 4-connected region
    of fewer than ``pixels`` pixels gets the class of the nearest larger region.

    If all regions are smaller, nothing changes.
    """
    regions = cc3d.connected_components(label_map.astype(np.uint16) + 1, connectivity=4)
    is_small = cc3d.statistics(regions)["voxel_counts"] < pixels
    is_speck = is_small[regions]
    if is_speck.all():
        return label_map
    # For each pixel the number of the nearest pixel outside of specks; they count along the rows.
    _, nearest = cv2.distanceTransformWithLabels(
        is_speck.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    filled: LabelMap = label_map[~is_speck][nearest - 1]
    return filled
