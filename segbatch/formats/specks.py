"""Specks: regions too small to be worth a polygon that somebody is to look at."""

from __future__ import annotations

import cc3d
import cv2
import numpy as np
import numpy.typing as npt

LabelMap = npt.NDArray[np.uint8]


def without_specks(label_map: LabelMap, pixels: int) -> LabelMap:
    """``label_map``, ``(height, width)`` uint8, with the class of the nearest larger region where a
    4-connected region has fewer than ``pixels`` pixels.

    Where all have fewer, nothing changes.
    """
    regions = cc3d.connected_components(label_map.astype(np.uint16) + 1, connectivity=4)
    is_small = cc3d.statistics(regions)["voxel_counts"] < pixels
    is_speck = is_small[regions]
    if is_speck.all():
        return label_map
    # To each pixel the number of the nearest that is in no speck; those count along the rows.
    _, nearest = cv2.distanceTransformWithLabels(
        is_speck.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    filled: LabelMap = label_map[~is_speck][nearest - 1]
    return filled
