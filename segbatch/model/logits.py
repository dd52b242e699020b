"""Full-size logits of an image, computed from the coarse logits of its patches, strip by strip.

Full-size logits of a large image are gigabytes; the coarse ones that the network gives are 1/16
to 1/256 of that. So only the coarse ones are kept, and :class:`LazyLogits` computes the full-size
ones of a strip of rows on request. :func:`combine` says how, from the inside out:

    Upsampled   the logits of one patch: coarse logits brought to the padded size, then cropped
    OneHot      the same, of a model that gives class ids instead of logits
    Resized     a patch at another scale, brought to the size of its tile
    Mean        the mean over scales and mirror images of a tile
    Blended     tiles joined to the image, with weights that fade towards their edges

A row is computed in the same way in any strip, so the height of strips changes speed and memory
and never the label map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segbatch.config.job import Predict
from segbatch.model.patches import Patch, Size, TileBox, boxes_of, size_of

CPU = torch.device("cpu")


class LazyLogits(Protocol):
    """Logits on a grid of ``size``, of which rows are computed on request."""

    @property
    def size(self) -> Size: ...

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows ``top`` to ``bottom - 1``, ``(classes, bottom - top, width)`` float32."""
        ...


def logits_of(
    patch: Patch, coarse: Tensor, align_corners: bool, num_labels: int | None = None
) -> LazyLogits:
    """The logits of a patch on the grid of its tile.

    ``coarse`` is ``(classes, height, width)`` float32, as the network gave it for this patch; where
    it gives class ids, ``(1, height, width)``, ``num_labels`` is the number of classes.
    """
    seen = size_of(patch.pixels)
    upsampled: LazyLogits
    if num_labels is not None:
        upsampled = OneHot(coarse, patch.padded, seen, num_labels, patch.mirrored)
    else:
        upsampled = Upsampled(coarse, patch.padded, seen, align_corners, patch.mirrored)
    return upsampled if seen == patch.size else Resized(upsampled, patch.size)


def combine(
    size: Size,
    views: Mapping[int, LazyLogits],
    options: Predict,
    num_classes: int,
    device: torch.device,
) -> LazyLogits:
    """The logits of an image of ``size`` from those of all its patches, by their ``view``."""
    boxes = boxes_of(size, options)
    per_tile = len(views) // len(boxes)  # scales and mirror images
    tiles: list[LazyLogits] = []
    for first in range(0, len(views), per_tile):
        of_tile = [views[view] for view in range(first, first + per_tile)]
        tiles.append(Mean(of_tile) if per_tile > 1 else of_tile[0])
    if options.tile is None or len(tiles) == 1:
        return tiles[0]
    return Blended(size, boxes, tiles, options.tile.overlap, num_classes, device)


@dataclass(frozen=True)
class Upsampled:
    """Coarse logits of a padded image, brought to its ``padded`` size and cropped to ``size``.

    ``coarse`` is ``(classes, height, width)`` float32, contiguous. ``mirrored``: the network saw
    the mirror image, so the logits are mirrored back.
    """

    coarse: Tensor
    padded: Size
    size: Size
    align_corners: bool
    mirrored: bool = False

    def rows(self, top: int, bottom: int) -> Tensor:
        taps = row_taps(
            self.coarse.shape[1], self.padded[0], self.align_corners, self.coarse.device
        )
        strip = taps.blend(self.coarse, top, bottom)
        strip = to_width(strip, self.padded[1], self.align_corners)[..., : self.size[1]]
        return strip.flip(-1) if self.mirrored else strip


@dataclass(frozen=True)
class OneHot:
    """Class ids of a padded image as logits: 1 for the class of a pixel, 0 for the others.

    ``ids`` is ``(1, height, width)`` float32; the other fields are those of :class:`Upsampled`.
    """

    ids: Tensor
    padded: Size
    size: Size
    num_classes: int
    mirrored: bool = False

    def rows(self, top: int, bottom: int) -> Tensor:
        taps = row_taps(self.ids.shape[1], self.padded[0], False, self.ids.device)
        first, last = taps.span(top, bottom)
        ids = torch.arange(self.num_classes, device=self.ids.device)[:, None, None]
        votes = (self.ids[:, first:last] == ids).float()
        strip = to_width(taps.blend(votes, top, bottom, first), self.padded[1], False)
        strip = strip[..., : self.size[1]]
        return strip.flip(-1) if self.mirrored else strip


@dataclass(frozen=True)
class Resized:
    """Other logits brought to ``size``, bilinear with ``align_corners=False``."""

    source: LazyLogits
    size: Size

    def rows(self, top: int, bottom: int) -> Tensor:
        height_in, height_out = self.source.size[0], self.size[0]
        first, last = row_taps(height_in, height_out, False, CPU).span(top, bottom)
        strip = self.source.rows(first, last)
        taps = row_taps(height_in, height_out, False, strip.device)
        return to_width(taps.blend(strip, top, bottom, first), self.size[1], False)


@dataclass(frozen=True)
class Mean:
    """The mean of logits of one size."""

    parts: Sequence[LazyLogits]

    @property
    def size(self) -> Size:
        return self.parts[0].size

    def rows(self, top: int, bottom: int) -> Tensor:
        total = self.parts[0].rows(top, bottom)
        for part in self.parts[1:]:
            total = total + part.rows(top, bottom)
        return total / len(self.parts)


@dataclass(frozen=True)
class Blended:
    """The logits of an image of ``size``, joined from those of its overlapping tiles.

    At the edges of a tile the network sees padding instead of the neighbourhood. So the weight of
    a tile falls linearly towards its edges over the width of ``overlap``. The weights of all tiles
    over a pixel sum to one, so there is no seam.
    """

    size: Size
    boxes: Sequence[TileBox]
    tiles: Sequence[LazyLogits]
    overlap: int
    num_classes: int
    device: torch.device

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = torch.zeros(self.num_classes, bottom - top, self.size[1], device=self.device)
        for box, tile in zip(self.boxes, self.tiles, strict=True):
            first, last = max(top, box.top), min(bottom, box.top + box.height)
            if first >= last:
                continue
            of_rows = self._row_weights[box.top][first - box.top : last - box.top, None]
            of_columns = self._column_weights[box.left]
            logits = tile.rows(first - box.top, last - box.top) * of_rows * of_columns
            strip[:, first - top : last - top, box.left : box.left + box.width] += logits
        return strip

    @cached_property
    def _row_weights(self) -> dict[int, Tensor]:
        starts = {box.top for box in self.boxes}
        return self._weights(starts, self.boxes[0].height, self.size[0])

    @cached_property
    def _column_weights(self) -> dict[int, Tensor]:
        starts = {box.left for box in self.boxes}
        return self._weights(starts, self.boxes[0].width, self.size[1])

    def _weights(self, starts: set[int], length: int, total: int) -> dict[int, Tensor]:
        """The weights of tiles along one axis, by where a tile starts; they sum to one at a pixel.

        The tiles form a grid, so the weight of a pixel is that of its row times its column's.
        """
        position = torch.arange(length) + 0.5
        to_edge = torch.minimum(position, length - position)
        ramp = to_edge.clamp(max=max(self.overlap, 1))
        sums = torch.zeros(total)
        for start in sorted(starts):
            sums[start : start + length] += ramp
        return {start: (ramp / sums[start : start + length]).to(self.device) for start in starts}


@dataclass(frozen=True)
class RowTaps:
    """For each output row, the input row at or above it and its distance to the next one."""

    num_rows_in: int
    above: Tensor  # int64
    weight: Tensor  # of the row below, float32, (rows, 1)

    def span(self, top: int, bottom: int) -> tuple[int, int]:
        """The input rows that output rows ``top`` to ``bottom - 1`` need: first, one past last."""
        return int(self.above[top]), min(int(self.above[bottom - 1]) + 2, self.num_rows_in)

    def blend(self, source: Tensor, top: int, bottom: int, first: int = 0) -> Tensor:
        """Output rows ``top`` to ``bottom - 1``, from ``source`` that begins at row ``first``."""
        above = self.above[top:bottom] - first
        below = (above + 1).clamp_(max=source.shape[1] - 1)
        weight = self.weight[top:bottom]
        upper = source.index_select(1, above).mul_(1 - weight)
        return upper.add_(source.index_select(1, below).mul_(weight))


@lru_cache(maxsize=512)  # the photos of a collection share a few sizes
def row_taps(num_in: int, num_out: int, align_corners: bool, device: torch.device) -> RowTaps:
    """The positions of ``num_out`` rows among ``num_in``, as ``interpolate`` computes them.

    In float32 and in its order of operations: rounded otherwise, class ids would differ from those
    of ``interpolate`` where two classes are nearly equal. Computed on ``device``, because copying
    a table there would make the device wait.
    """
    row = torch.arange(num_out, dtype=torch.float32, device=device)
    if align_corners:
        position = row * (torch.tensor(num_in - 1.0) / max(num_out - 1, 1)).item()
    else:
        scale = (torch.tensor(float(num_in)) / num_out).item()
        position = ((row + 0.5) * scale - 0.5).clamp_(min=0)
    above = position.long().clamp_(max=num_in - 1)
    weight = (position - above).clamp_(0, 1)[:, None]
    return RowTaps(num_in, above, weight)


def to_width(strip: Tensor, width: int, align_corners: bool) -> Tensor:
    """``strip``, ``(classes, rows, any)``, interpolated to ``width`` columns, each row alone."""
    if strip.shape[2] == width:
        return strip
    return interpolate(
        strip[None], (strip.shape[1], width), mode="bilinear", align_corners=align_corners
    )[0]
