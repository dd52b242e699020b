"""Patches: what the network sees of an image, and how the image's logits are put together again.

A patch is the whole image or a tile of it, at some scale, mirrored or not. It is padded at the
bottom and right with the mean colour to a multiple of 64, so that its padding depends on it alone;
patches of one padded shape can run as one batch, whichever images they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from segbatch.config.job import Tile
from segbatch.images.scaling import FILTER
from segbatch.model.surfaces import Mean, Resized, Size, Surface, Upsampled

PADDING_MULTIPLE = 64


Item = TypeVar("Item")


Pixels = npt.NDArray[np.uint8]  # HWC, RGB


@dataclass(frozen=True)
class Patch:
    """``pixels`` for the network; the logits for them are to be of ``size`` in the end.

    ``image`` is the position of the image in the call, ``view`` that of the patch in its image.
    """

    image: int
    view: int
    pixels: Pixels
    size: Size
    mirrored: bool

    @property
    def padded(self) -> Size:
        return padded_size(size_of(self.pixels))

    def surface(self, coarse: Tensor, align_corners: bool) -> Surface:
        """What the network said of it: ``coarse`` is ``(classes, height, width)`` float32."""
        seen = size_of(self.pixels)
        upsampled = Upsampled(coarse, self.padded, seen, align_corners, self.mirrored)
        return upsampled if seen == self.size else Resized(upsampled, self.size)


@dataclass(frozen=True)
class Cut:
    """How images are cut into patches."""

    tile: Tile | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def tiles(self, size: Size) -> list[TileBox]:
        return tiles_of(size, self.tile.size, self.tile.overlap) if self.tile else [TileBox(0, 0, *size)]

    def num_patches(self, size: Size) -> int:
        return len(self.tiles(size)) * len(self.scales) * (2 if self.flip else 1)

    def patches(self, index: int, image: Pixels) -> Iterator[Patch]:
        """Tile by tile; of each, scale by scale; of each, itself and its mirror image."""
        view = 0
        for tile in self.tiles(size_of(image)):
            rows = slice(tile.top, tile.top + tile.height)
            pixels = image[rows, tile.left : tile.left + tile.width]
            for scale in self.scales:
                scaled = _scaled(pixels, scale)
                for mirrored in (False, True) if self.flip else (False,):
                    seen = scaled[:, ::-1] if mirrored else scaled
                    yield Patch(index, view, seen, size_of(pixels), mirrored)
                    view += 1

    def batches(
        self, images: Sequence[Pixels], batch_size: int, fitting: Callable[[Size], int]
    ) -> Iterator[list[Patch]]:
        """All patches of all images, in batches of one padded shape and at most ``batch_size``.

        ``fitting`` gives how many of a padded shape fit, and is asked anew for each batch.
        The images are taken a few at a time, ``batch_size`` or one that is cut into tiles, so
        that no more than those wait for the rest of their patches.
        """
        together = 1 if self.tile else batch_size
        for indices in _grouped(range(len(images)), lambda i: padded_size(size_of(images[i]))):
            for start in range(0, len(indices), together):
                patches = [
                    patch
                    for index in indices[start : start + together]
                    for patch in self.patches(index, images[index])
                ]
                for alike in _grouped(patches, lambda patch: patch.padded):
                    while alike:
                        size = fitting(alike[0].padded)
                        yield alike[:size]
                        del alike[:size]

    def assembled(
        self, size: Size, views: Mapping[int, Surface], num_classes: int, device: torch.device
    ) -> Surface:
        """The surface of an image of ``size``, from those of all its patches by their view."""
        tiles = self.tiles(size)
        num_views = len(views) // len(tiles)
        surfaces: list[Surface] = []
        for first in range(0, len(views), num_views):
            of_tile = [views[view] for view in range(first, first + num_views)]
            surfaces.append(Mean(of_tile) if num_views > 1 else of_tile[0])
        if self.tile is None or len(tiles) == 1:
            return surfaces[0]
        return Blended(size, tiles, surfaces, self.tile.overlap, num_classes, device)


def size_of(pixels: Pixels) -> Size:
    return pixels.shape[0], pixels.shape[1]


def padded_size(size: Size) -> Size:
    height, width = (-(-length // PADDING_MULTIPLE) * PADDING_MULTIPLE for length in size)
    return height, width


def stack(patches: list[Patch], canvas: Pixels, padding: npt.NDArray[np.uint8]) -> None:
    """Lay patches of one padded shape into ``canvas``, NHWC, padded with the colour ``padding``."""
    for image, patch in zip(canvas, patches, strict=True):
        height, width = size_of(patch.pixels)
        image[:height, :width] = patch.pixels
        image[height:] = padding
        image[:height, width:] = padding


def _grouped(items: Iterable[Item], key: Callable[[Item], Size]) -> list[list[Item]]:
    groups: dict[Size, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(1, round(length * scale)) for length in size_of(pixels))
    if (height, width) == size_of(pixels):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), FILTER))


# Sliding tiles: predicting a large image at its own size, one overlapping square after another.
#
# A tile is blind at its edges, where the network sees padding instead of the neighbourhood. So the
# tiles overlap, and each one's weight falls linearly towards its edges over the width of the
# overlap; the weights of all tiles over a pixel sum to one, and there is no seam.


@dataclass(frozen=True)
class TileBox:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def tiles_of(size: Size, side: int, overlap: int) -> list[TileBox]:
    """The tiles that cover an image of ``size``, row by row.

    The last one of a row or column is shifted inwards, so that all are of one size; an image
    narrower or lower than a tile has tiles of its own width or height.
    """
    height, width = (min(side, length) for length in size)
    return [
        TileBox(top, left, height, width)
        for top, left in product(*(_starts(length, side, overlap) for length in size))
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, side - overlap), last]


@dataclass(frozen=True)
class Blended:
    """The surface of an image, blended from those of its tiles.

    Only the tiles' coarse logits are held: 1/16 (DeepLabV3+) or 1/64 of the full ones, and more
    by what the overlap adds.
    """

    size: Size
    tiles: Sequence[TileBox]
    surfaces: Sequence[Surface]
    overlap: int
    num_classes: int
    device: torch.device

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = torch.zeros(self.num_classes, bottom - top, self.size[1], device=self.device)
        for tile, surface in zip(self.tiles, self.surfaces, strict=True):
            first, last = max(top, tile.top), min(bottom, tile.top + tile.height)
            if first >= last:
                continue
            of_rows = self._row_weights[tile.top][first - tile.top : last - tile.top, None]
            of_columns = self._column_weights[tile.left]
            logits = surface.rows(first - tile.top, last - tile.top) * of_rows * of_columns
            strip[:, first - top : last - top, tile.left : tile.left + tile.width] += logits
        return strip

    @cached_property
    def _row_weights(self) -> dict[int, Tensor]:
        starts = {tile.top for tile in self.tiles}
        return self._weights(starts, self.tiles[0].height, self.size[0])

    @cached_property
    def _column_weights(self) -> dict[int, Tensor]:
        starts = {tile.left for tile in self.tiles}
        return self._weights(starts, self.tiles[0].width, self.size[1])

    def _weights(self, starts: set[int], length: int, total: int) -> dict[int, Tensor]:
        """Weights along one axis, by where a tile starts; at each pixel they sum to one.

        The tiles stand in a grid, so the weights of rows and columns multiply.
        """
        position = torch.arange(length) + 0.5
        to_edge = torch.minimum(position, length - position)
        ramp = to_edge.clamp(max=max(self.overlap, 1))
        sums = torch.zeros(total)
        for start in sorted(starts):
            sums[start : start + length] += ramp
        return {start: (ramp / sums[start : start + length]).to(self.device) for start in starts}
