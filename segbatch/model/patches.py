"""Patches: the pieces of an image that go through the network.

A patch is the whole image or a tile of it, at some scale, mirrored or not. It is padded at the
bottom and right with the mean colour to a multiple of 64, so its padding depends on the patch
alone. Patches of one padded shape can share a batch, also those of different images.
:mod:`segbatch.model.logits` combines the logits of the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.config.job import Predict
from segbatch.images.scaling import FILTER, PADDING_MULTIPLE

Item = TypeVar("Item")
Pixels = npt.NDArray[np.uint8]  # HWC, RGB
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Patch:
    """One input of the network.

    ``image`` is the position of its image in the call, ``view`` the position of the patch in its
    image. ``size`` is that of its tile in the image, to which its logits are brought. ``canvas``
    is the size to which it is padded, ``None`` for the next multiples of 64.
    """

    image: int
    view: int
    pixels: Pixels
    size: Size
    mirrored: bool
    canvas: Size | None = None

    @property
    def padded(self) -> Size:
        return self.canvas or padded_size(size_of(self.pixels))


@dataclass(frozen=True)
class TileBox:
    """The rectangle of a tile in its image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def patch_batches(
    images: Sequence[Pixels],
    options: Predict,
    max_patches: Callable[[Size], int],
    canvas: Size | None = None,
) -> Iterator[list[Patch]]:
    """All patches of all images, in batches of one padded shape; ``canvas`` as in a patch.

    ``max_patches`` gives the size of a batch for a padded shape, and is called for each batch. The
    images are taken a few at a time, ``batch_size`` of them or one that is cut into tiles, so only
    these have to wait for the rest of their patches.
    """
    together = 1 if options.tile else options.batch_size
    for indices in _grouped(range(len(images)), lambda i: padded_size(size_of(images[i]))):
        for start in range(0, len(indices), together):
            patches = [
                patch
                for index in indices[start : start + together]
                for patch in patches_of(index, images[index], options, canvas)
            ]
            for same_shape in _grouped(patches, lambda patch: patch.padded):
                while same_shape:
                    number = max_patches(same_shape[0].padded)
                    yield same_shape[:number]
                    del same_shape[:number]


def patches_of(
    index: int, image: Pixels, options: Predict, canvas: Size | None = None
) -> Iterator[Patch]:
    """The patches of image ``index``: for each tile, for each scale, the patch and its mirror.

    What is larger than ``canvas`` is downscaled to fit it.
    """
    view = 0
    for box in boxes_of(size_of(image), options):
        rows = slice(box.top, box.top + box.height)
        tile = image[rows, box.left : box.left + box.width]
        for scale in options.scales:
            scaled = _scaled(tile, scale if canvas is None else _fitting(size_of(tile), canvas))
            for mirrored in (False, True) if options.flip else (False,):
                pixels = scaled[:, ::-1] if mirrored else scaled
                yield Patch(index, view, pixels, size_of(tile), mirrored, canvas)
                view += 1


def num_patches(size: Size, options: Predict) -> int:
    """The number of patches of an image of ``size``."""
    return len(boxes_of(size, options)) * len(options.scales) * (2 if options.flip else 1)


def boxes_of(size: Size, options: Predict) -> list[TileBox]:
    """The tiles of an image of ``size``, or the whole image where it is not cut into tiles."""
    if options.tile is None:
        return [TileBox(0, 0, *size)]
    return tile_boxes(size, options.tile.size, options.tile.overlap)


def tile_boxes(size: Size, side: int, overlap: int) -> list[TileBox]:
    """Square tiles that cover an image of ``size``, row by row; neighbours share at least
    ``overlap`` pixels.

    The last tile of a row or column is shifted inwards, so that all are of one size. In an image
    narrower or lower than ``side``, tiles have the width or height of the image.
    """
    height, width = (min(side, length) for length in size)
    tops, lefts = (_starts(length, side, overlap) for length in size)
    return [TileBox(top, left, height, width) for top, left in product(tops, lefts)]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, side - overlap), last]


def _fitting(size: Size, canvas: Size) -> float:
    """The scale at which an image fits a canvas; at most 1."""
    return min(1.0, canvas[0] / size[0], canvas[1] / size[1])


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(1, round(length * scale)) for length in size_of(pixels))
    if (height, width) == size_of(pixels):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), FILTER))


def _grouped(items: Iterable[Item], key: Callable[[Item], Size]) -> list[list[Item]]:
    groups: dict[Size, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def size_of(pixels: Pixels) -> Size:
    return pixels.shape[0], pixels.shape[1]


def padded_size(size: Size) -> Size:
    height, width = (-(-length // PADDING_MULTIPLE) * PADDING_MULTIPLE for length in size)
    return height, width


def stack(patches: list[Patch], canvas: Pixels, padding: npt.NDArray[np.uint8]) -> None:
    """Copy patches of one padded shape into ``canvas``, NHWC; fill the rest with ``padding``."""
    for image, patch in zip(canvas, patches, strict=True):
        height, width = size_of(patch.pixels)
        image[:height, :width] = patch.pixels
        image[height:] = padding
        image[:height, width:] = padding
