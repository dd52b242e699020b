"""Diversity: which of many images are unlike each other, so that not all are of the same street.

An image is described by what the model saw in it, the coverage of each class, and by what it looks
like, the mean colours of a grid of 4 × 4 cells (the idea of MPEG-7's colour layout, in RGB). Its
cluster is the centre that is nearest, and the centres are taken greedily, each where the images are
that are farthest from all before it.

Sources: T. F. Gonzalez, Clustering to minimize the maximum intercluster distance, 1985; O. Sener
and S. Savarese, Active learning for convolutional neural networks: a core-set approach, 2018, which
takes the centres themselves; F. Zhdanov, Diverse mini-batch active learning, 2019, which takes the
most informative few times as many first and clusters those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

GRID = 4

Descriptors = npt.NDArray[np.float64]


def describe(
    coverages: npt.NDArray[np.float64], photos: Sequence[npt.NDArray[np.uint8]]
) -> Descriptors:
    """One row of numbers an image, ``(images, classes + 48)``, whose distances are meant.

    ``coverages`` is ``(images, classes)``, 0 to 1, ``photos`` are ``(height, width, 3)`` uint8 RGB
    of any sizes. Both count the same: each is scaled to a total variance of 1 over the images.
    """
    colors = np.array([_cell_means(photo) for photo in photos]).reshape(len(photos), -1)
    return np.hstack([_scaled(coverages), _scaled(colors)])


def spread(descriptors: Descriptors, scores: Sequence[float], count: int) -> list[tuple[int, int]]:
    """An order in which to take images, as pairs of a row of ``descriptors`` and its cluster.

    There are ``count`` clusters, or as many as there are different images. First comes the image
    with the highest score of each cluster, then the second of each, and so on: whoever takes
    ``count`` of them, and cannot take some, goes on to others that are like them. Of equal scores
    the one nearest to its centre counts more. The first centre is the image with the highest score.
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
    """The cluster of each image, and its distance from the centre of that, squared."""
    cluster = np.zeros(len(descriptors), np.int64)
    distance = _distances(descriptors, first)
    for number in range(1, min(count, len(descriptors))):
        centre = int(np.argmax(distance))
        if distance[centre] <= 0:
            break  # the others are the same as these
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
