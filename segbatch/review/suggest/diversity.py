"""Orders images by score and diversity, so that a selection does not show one street only.

An image is described by its predicted coverage of each class, and by its look: the mean colours of
a grid of 4 × 4 cells (the idea of MPEG-7's colour layout, in RGB). Greedy k-centre clustering picks
each next centre farthest from all previous ones; an image belongs to its nearest centre.

Sources: T. F. Gonzalez, Clustering to minimize the maximum intercluster distance, 1985; O. Sener
and S. Savarese, Active learning for convolutional neural networks: a core-set approach, 2018, which
takes the centres themselves; F. Zhdanov, Diverse mini-batch active learning, 2019, which first
takes a few times as many of the most informative images and clusters those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

GRID = 4

Descriptors = npt.NDArray[np.float64]


def describe_images(
    coverages: npt.NDArray[np.float64], photos: Sequence[npt.NDArray[np.uint8]]
) -> Descriptors:
    """Descriptors of images, ``(images, classes + 48)``, for comparing them by distance.

    ``coverages`` is ``(images, classes)``, 0 to 1, ``photos`` are ``(height, width, 3)`` uint8 RGB
    of any sizes. Both parts have equal weight: each is scaled to a total variance of 1.
    """
    colors = np.array([_cell_means(photo) for photo in photos]).reshape(len(photos), -1)
    return np.hstack([_scaled(coverages), _scaled(colors)])


def diverse_order(
    descriptors: Descriptors, scores: Sequence[float], count: int
) -> list[tuple[int, int]]:
    """The order in which to take images, as pairs of a row of ``descriptors`` and its cluster.

    There are ``count`` clusters, or fewer if fewer images differ. The best-scored image of each
    cluster comes first, then the second of each, and so on: a caller that wants ``count`` images
    and cannot use some gets similar ones next. Ties go to the image nearest to its centre. The
    first centre is the image with the highest score.
    """
    if not len(descriptors):
        return []
    cluster, distance = _clusters(descriptors, int(np.argmax(scores)), count)
    best_first = np.lexsort((distance, -np.asarray(scores)))
    rank_of = np.empty(len(descriptors), int)
    taken = np.zeros(cluster.max() + 1, int)
    for row in best_first:
        rank_of[row] = taken[cluster[row]]
        taken[cluster[row]] += 1
    return [(int(row), int(cluster[row])) for row in np.lexsort((cluster, rank_of))]


def _clusters(
    descriptors: Descriptors, first: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The cluster of each image, and its squared distance from the cluster's centre."""
    cluster = np.zeros(len(descriptors), np.int64)
    distance = _distances(descriptors, first)
    for number in range(1, min(count, len(descriptors))):
        centre = int(np.argmax(distance))
        if distance[centre] <= 0:
            break  # all other images equal a centre
        from_centre = _distances(descriptors, centre)
        nearer = from_centre < distance
        cluster[nearer] = number
        distance[nearer] = from_centre[nearer]
    return cluster, distance


def _distances(descriptors: Descriptors, row: int) -> npt.NDArray[np.float64]:
    squared: npt.NDArray[np.float64] = ((descriptors - descriptors[row]) ** 2).sum(1)
    return squared


def _cell_means(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    cells = Image.fromarray(photo).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(cells, np.float64)


def _scaled(values: npt.NDArray[np.float64]) -> Descriptors:
    variance = values.var(0).sum()
    return values / np.sqrt(variance) if variance > 0 else values
