"""Disagreement: the masks of two runs, image by image and pixel by pixel.

Masks are read a file of run A at a time, with the files of run B that hold the same images: each
of them once or twice where both runs list their images in one order, as from one prefix or
manifest, and otherwise as often as it is met.
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

STRIP = 1 << 18  # pixels that are counted at a time: they stay in the processor's cache
THREADS = 8  # each holds a file of either run, and two label maps

Ids = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Pair = tuple[str, int, str, int]  # an image's file in rows/ and its id, in run A and in run B


@dataclass
class Comparison:
    """What comparing ``num_pairs`` images gave.

    Of those that have both masks: ``image_ids`` in run A; ``shares``, pixels of another class ÷
    all pixels, 0 to 1; ``resized``, whether the masks were of two sizes. ``pixels`` is what
    :func:`count_confusion` gives, over all of them.
    """

    num_pairs: int
    pixels: Counts
    image_ids: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    resized: list[bool] = field(default_factory=list)


def compare_masks(a: RunFolder, b: RunFolder, pairs: Iterable[Pair]) -> Iterator[Comparison]:
    """Compare the masks of images that are ok in both runs, in threads.

    ``pairs`` stand together by their file in run A, and within it by that in run B. Only a few
    files are taken ahead, however many there are. Raises :class:`~segbatch.errors.RunError` for a
    mask that is not where it should be or cannot be read, ``OSError`` if storage fails.
    """
    by_file = groupby(pairs, itemgetter(0))
    parts = (list(group) for _, group in by_file)
    return map_in_threads(partial(_compare, a, b), parts, THREADS)


def count_confusion(a: Ids, b: Ids, num_a: int, num_b: int) -> Counts:
    """Pixels by class id in label map ``a``, the row, and in ``b``, the column, int64.

    Both are ``(height, width)`` uint8. Where the grids differ, the one with fewer pixels is
    brought to that of the other by nearest neighbour. The result is ``(num_a + 1, num_b + 1)``,
    last what is no class, 0 to ``num_a - 1`` or ``num_b - 1``.
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


def _same(a: Classes, b: Classes) -> tuple[list[int], list[int]]:
    """Where :func:`count_confusion` counts pixels of one class, or of none in either."""
    ids_b = {c.field: c.id for c in b}
    cells = [(c.id, ids_b[c.field]) for c in a if c.field in ids_b] + [(len(a), len(b))]
    return [row for row, _ in cells], [column for _, column in cells]


def _compare(a: RunFolder, b: RunFolder, pairs: list[Pair]) -> Comparison:
    """Compare images of one file of run A."""
    num_a, num_b, same = len(a.classes), len(b.classes), _same(a.classes, b.classes)
    result = Comparison(len(pairs), np.zeros((num_a + 1, num_b + 1), np.int64))
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
            result.shares.append(float((num_pixels - counts[same].sum()) / num_pixels))
            result.resized.append(map_a.shape != map_b.shape)
    return result


@dataclass(frozen=True)
class _Masks:
    """The masks of one file of ``rows/``, encoded, by image id."""

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
        """Its label map; ``None`` where no mask is stored."""
        if image_id not in self.by_id:
            raise RunError(f"{self.uri}: image_id {image_id} should be in it; audit the run")
        png = self.by_id[image_id].as_py()
        try:
            return None if png is None else decode_mask(png)
        except SourceError as error:
            raise unreadable_mask(self.run, image_id, error) from error
