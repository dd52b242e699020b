"""Compares the masks of two runs, image by image and pixel by pixel.

Masks are read one file of run A at a time, with the files of run B that hold the same images. Each
file of B is read once or twice if both runs list their images in the same order, as from one prefix
or manifest, and otherwise as often as its images come up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from segbatch import storage
from segbatch.errors import RunError, SourceError
from segbatch.masks import decode_mask
from segbatch.masks.classes import Classes
from segbatch.results.log import read_columns
from segbatch.results.lookup import unreadable_mask
from segbatch.results.runfolder import RunFolder
from segbatch.results.threads import map_in_threads

STRIP = 1 << 18  # pixels counted at a time: they fit into the processor's cache
THREADS = 8  # each holds a file of either run, and two label maps

Ids = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Pair = tuple[str, int, str, int]  # an image's file in rows/ and its id, in run A and in run B


@dataclass
class MaskComparison:
    """The result of comparing ``num_pairs`` images.

    For each image with both masks: ``image_ids``, its id in run A; ``shares``, pixels with another
    class ÷ all pixels, 0 to 1; ``resized``, whether the masks had two sizes. ``pixels`` is the sum
    of :func:`count_confusion` over these images.
    """

    num_pairs: int
    pixels: Counts
    image_ids: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    resized: list[bool] = field(default_factory=list)


def compare_masks(a: RunFolder, b: RunFolder, pairs: Iterable[Pair]) -> Iterator[MaskComparison]:
    """Compare the masks of images that are ok in both runs, in threads, a file of run A each.

    ``pairs`` must be grouped by their file in run A, and within it by their file in run B. Only a
    few files are read ahead. Raises :class:`~segbatch.errors.RunError` for a mask that is missing
    from its file or cannot be read, ``OSError`` if storage fails.
    """
    by_file = groupby(pairs, itemgetter(0))
    parts = (list(group) for _, group in by_file)
    return map_in_threads(partial(_compare, a, b), parts, THREADS)


def _compare(a: RunFolder, b: RunFolder, pairs: list[Pair]) -> MaskComparison:
    """Compare images that are in one file of run A."""
    num_a, num_b, agreement = len(a.classes), len(b.classes), _agreement(a.classes, b.classes)
    result = MaskComparison(len(pairs), np.zeros((num_a + 1, num_b + 1), np.int64))
    masks_a = _Masks.read(a, pairs[0][0])
    for file_b, group in groupby(pairs, itemgetter(2)):
        masks_b = _Masks.read(b, file_b)
        for _, id_a, _, id_b in group:
            map_a, map_b = masks_a.label_map(id_a), masks_b.label_map(id_b)
            if map_a is None or map_b is None:
                continue
            counts = count_confusion(map_a, map_b, num_a, num_b)
            num_pixels = counts.sum()
            result.pixels += counts
            result.image_ids.append(id_a)
            result.shares.append(float((num_pixels - counts[agreement].sum()) / num_pixels))
            result.resized.append(map_a.shape != map_b.shape)
    return result


@dataclass(frozen=True)
class _Masks:
    """The encoded masks of one file of ``rows/``, by image id."""

    run: RunFolder
    uri: str
    by_id: dict[int, pa.BinaryScalar]

    @classmethod
    def read(cls, run: RunFolder, name: str) -> _Masks:
        folder = storage.join(run.uri, "rows")
        rows = read_columns(folder, name, ["image_id", "mask"])
        by_id = dict(zip(rows["image_id"].to_pylist(), rows["mask"], strict=True))
        return cls(run, storage.join(folder, name), by_id)

    def label_map(self, image_id: int) -> Ids | None:
        """The label map of an image; ``None`` if no mask is stored."""
        if image_id not in self.by_id:
            raise RunError(f"{self.uri}: image_id {image_id} should be in it; audit the run")
        png = self.by_id[image_id].as_py()
        try:
            return None if png is None else decode_mask(png)
        except SourceError as error:
            raise unreadable_mask(self.run, image_id, error) from error


def count_confusion(a: Ids, b: Ids, num_a: int, num_b: int) -> Counts:
    """Confusion matrix of two label maps: pixels by class id in ``a``, the row, and in ``b``.

    Both are ``(height, width)`` uint8. If their sizes differ, the one with fewer pixels is resized
    to the other by nearest neighbour. The result is ``(num_a + 1, num_b + 1)`` int64; the last row
    and column count pixels of no class, whose ids are ``num_a`` or ``num_b`` and more.
    """
    if a.shape != b.shape:
        a, b = (a, _resized(b, a)) if a.size >= b.size else (_resized(a, b), b)
    flat_a, flat_b = a.ravel(), b.ravel()
    counts = np.zeros((num_a + 1) * (num_b + 1), np.int64)
    for start in range(0, flat_a.size, STRIP):
        rows, columns = flat_a[start : start + STRIP], flat_b[start : start + STRIP]
        cells = np.minimum(rows, num_a).astype(np.uint16) * np.uint16(num_b + 1)
        cells += np.minimum(columns, num_b)
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(num_a + 1, num_b + 1)


def _resized(label_map: Ids, like: Ids) -> Ids:
    size = like.shape[1], like.shape[0]
    return np.asarray(Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST))


def _agreement(a: Classes, b: Classes) -> tuple[list[int], list[int]]:
    """Rows and columns of the confusion matrix that count agreement, also on no class."""
    ids_b = {c.field: c.id for c in b}
    cells = [(c.id, ids_b[c.field]) for c in a if c.field in ids_b] + [(len(a), len(b))]
    return [row for row, _ in cells], [column for _, column in cells]
