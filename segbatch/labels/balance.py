"""The balance of a labelled dataset: how many pixels and images each class has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch.labels.dataset import SPLITS
from segbatch.masks.classes import IGNORE_INDEX, Classes


def count_pixels(label_map: npt.NDArray[np.uint8]) -> dict[int, int]:
    """Number of pixels by id in a label map, HW uint8; ids without pixels are left out."""
    counts = np.bincount(label_map.ravel())
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


@dataclass(frozen=True)
class ClassShare:
    """Pixels of one class or of void, their share of all pixels, and the images by split that have
    some.
    """

    id: int
    name: str
    pixels: int
    share: float
    images: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "pixels": self.pixels,
            "share": self.share,
            "images": dict(self.images),
        }


class Balance:
    """Sums of pixels and images by split and id."""

    def __init__(self) -> None:
        self.num_images: Counter[str] = Counter()
        self._pixels: Counter[tuple[str, int]] = Counter()
        self._images: Counter[tuple[str, int]] = Counter()

    def add(self, split: str, counts: Mapping[int, int]) -> None:
        """Add one image with its pixels by id."""
        self.num_images[split] += 1
        for class_id, pixels in counts.items():
            self._pixels[split, class_id] += pixels
            self._images[split, class_id] += 1

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split that has any."""
        return {split: self.num_images[split] for split in SPLITS if self.num_images[split]}

    def images(self, split: str, class_id: int) -> int:
        """Number of images of the split with a pixel of the class."""
        return self._images[split, class_id]

    @property
    def pixels(self) -> dict[str, dict[int, int]]:
        """Number of pixels by split and id; ids without pixels are left out."""
        return {
            split: {i: n for (of, i), n in sorted(self._pixels.items()) if of == split and n}
            for split in self.splits
        }

    def shares(self, classes: Classes) -> list[ClassShare]:
        """One share per class in the order of the ids, then one for void."""
        total = max(1, self._pixels.total())
        entries = [(c.id, c.name) for c in classes] + [(IGNORE_INDEX, "void")]
        shares = []
        for class_id, name in entries:
            pixels = sum(self._pixels[split, class_id] for split in SPLITS)
            images = {split: self._images[split, class_id] for split in self.splits}
            shares.append(ClassShare(class_id, name, pixels, pixels / total, images))
        return shares
