"""The reduction: from coarse logits to a label map, counts and confidence, in bounded memory.

Full-size logits of a large image are gigabytes; the coarse ones that the network gives are 1/16
to 1/256 of that. So nothing here holds the full ones. A :class:`Surface` is logits that are
worked out only when some of their rows are asked for, and surfaces stand on one another: upsampled
from coarse logits, resized, averaged, blended from tiles. The reduction asks for one strip of rows
after the other. Each row is computed the same way whatever strip it stands in, so the height of
the strips changes speed and memory and never the label map.

Where a GPU has it, the common case goes through a kernel of our own instead
(:mod:`segbatch.model.fused`), which needs not even the strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Size = tuple[int, int]  # height, width


CPU = torch.device("cpu")


class Surface(Protocol):
    """Logits that are not computed yet."""

    @property
    def size(self) -> Size: ...

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows ``top`` to ``bottom - 1``, ``(classes, bottom - top, width)`` float32."""
        ...


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
        height, device = self.coarse.shape[1], self.coarse.device
        taps = row_taps(height, self.padded[0], self.align_corners, device)
        strip = to_width(taps.blend(self.coarse, top, bottom), self.padded[1], self.align_corners)[
            ..., : self.size[1]
        ]
        return strip.flip(-1) if self.mirrored else strip


@dataclass(frozen=True)
class Resized:
    """Another surface brought to ``size``, bilinear with ``align_corners=False``."""

    source: Surface
    size: Size

    def rows(self, top: int, bottom: int) -> Tensor:
        height_in, height_out = self.source.size[0], self.size[0]
        first, last = row_taps(height_in, height_out, False, CPU).span(top, bottom)
        strip = self.source.rows(first, last)
        taps = row_taps(height_in, height_out, False, strip.device)
        return to_width(taps.blend(strip, top, bottom, first), self.size[1], False)


@dataclass(frozen=True)
class Mean:
    """The mean of surfaces of one size: of an image's scales and mirror images."""

    parts: Sequence[Surface]

    @property
    def size(self) -> Size:
        return self.parts[0].size

    def rows(self, top: int, bottom: int) -> Tensor:
        total = self.parts[0].rows(top, bottom)
        for part in self.parts[1:]:
            total = total + part.rows(top, bottom)
        return total / len(self.parts)


@dataclass(frozen=True)
class RowTaps:
    """For each output row the input row at or above it, and how far it is towards the next."""

    num_rows_in: int
    above: Tensor  # int64
    weight: Tensor  # float32, (rows, 1)

    def span(self, top: int, bottom: int) -> tuple[int, int]:
        """The input rows, first and one past the last, that the output rows need."""
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
    """Where each of ``num_out`` rows lies among ``num_in``, as ``interpolate`` sees it.

    In float32 and its order of operations: rounded otherwise, class ids would differ from those
    of ``interpolate`` wherever two classes are nearly equal. Worked out on ``device``, which a
    table copied to it would make wait.
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
    """``strip``, ``(classes, rows, any)``, with ``width`` columns; no row touches another."""
    if strip.shape[2] == width:
        return strip
    return interpolate(
        strip[None], (strip.shape[1], width), mode="bilinear", align_corners=align_corners
    )[0]
