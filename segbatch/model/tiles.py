"""Sliding tiles: predicting a large image at its own size, one overlapping square after another.

A tile is blind at its edges, where the network sees padding instead of the neighbourhood. So the
tiles overlap, and each one's weight falls linearly towards its edges over the width of the
overlap; the weights of all tiles over a pixel sum to one, and there is no seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from segbatch.errors import InputError
from segbatch.model.surfaces import Size, Surface


@dataclass(frozen=True)
class TileOptions:
    """Square tiles of ``size`` pixels, neighbours sharing at least ``overlap`` of them."""

    size: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size:
            raise InputError(
                f"tile: overlap must be from 0 to {self.size - 1}, below the size, not"
                f" {self.overlap}"
            )


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def tiles_of(size: Size, options: TileOptions) -> list[Tile]:
    """The tiles that cover an image of ``size``, row by row.

    The last one of a row or column is shifted inwards, so that all are of one size; an image
    narrower or lower than a tile has tiles of its own width or height.
    """
    height, width = (min(options.size, length) for length in size)
    return [
        Tile(top, left, height, width)
        for top, left in product(_starts(size[0], options), _starts(size[1], options))
    ]


def _starts(length: int, options: TileOptions) -> list[int]:
    last = max(0, length - options.size)
    return [*range(0, last, options.size - options.overlap), last]


@dataclass(frozen=True)
class Blended:
    """The surface of an image, blended from those of its tiles.

    Only the tiles' coarse logits are held: 1/16 (DeepLabV3+) or 1/64 of the full ones, and more
    by what the overlap adds.
    """

    size: Size
    tiles: Sequence[Tile]
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
