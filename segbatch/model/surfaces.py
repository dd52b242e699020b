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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segbatch.console import say
from segbatch.storage import one_line

Size = tuple[int, int]  # height, width

CPU = torch.device("cpu")

# Logits of one strip, in float32. On the CPU a strip should stay near the cache, on a GPU it
# should fill the GPU. The reduction needs about four times as much at its peak.
STRIP_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


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


@dataclass(frozen=True)
class Reduced:
    """What is left of an image's logits; tensors on the device that computed them.

    ``mask`` is ``(height, width)`` uint8, ``pixels`` ``(classes,)`` int64 on the same grid.
    ``confidence`` is ``(classes,)`` float32, NaN for absent classes, and ``uncertainty`` a float32
    scalar, both 0 to 1 and on the surface's own grid; all NaN where they were not asked for.
    """

    mask: Tensor
    pixels: Tensor
    confidence: Tensor
    uncertainty: Tensor


def reduce(
    surface: Surface,
    mask_size: Size,
    num_classes: int,
    device: torch.device,
    *,
    confidence: bool = True,
) -> Reduced:
    """Class ids on a grid of ``mask_size``, their counts, and confidence on the surface's grid.

    On a GPU by the fused kernel where it can, else in strips: class ids are the same but where two
    classes are as good as equal.
    """
    if device.type == "cuda" and isinstance(surface, Upsampled) and fused_on(device):
        from segbatch.model import fused

        if fused.serves(surface, mask_size):
            return fused.reduce(surface, mask_size, confidence=confidence)
    return reduce_in_strips(surface, mask_size, num_classes, device, confidence=confidence)


@cache
def fused_on(device: torch.device) -> bool:
    """Whether :mod:`segbatch.model.fused` can be had and was proved on ``device``; says if not."""
    try:
        from segbatch.model import fused  # Triton may be missing, and its compiler's compiler

        fused.prove(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"{device}: reducing logits without the fused kernel: {one_line(error)}")
        return False
    return True


def reduce_in_strips(
    surface: Surface,
    mask_size: Size,
    num_classes: int,
    device: torch.device,
    *,
    confidence: bool = True,
    strip_bytes: int | None = None,
) -> Reduced:
    """:func:`reduce` by torch alone: of any surface, on any device, and the kernel's reference.

    ``strip_bytes`` bounds the logits that are held at once; ``None`` is what suits the device.
    """
    row_bytes = 4 * num_classes
    strip_bytes = strip_bytes or STRIP_BYTES.get(device.type, STRIP_BYTES["cuda"])
    target = surface if mask_size == surface.size else Resized(surface, mask_size)
    mask = torch.empty(mask_size, dtype=torch.uint8, device=device)
    pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)
    certainty = _Certainty(num_classes, device)

    for top, bottom in strips(mask_size, strip_bytes // row_bytes):
        logits = target.rows(top, bottom)
        best, ids = logits.max(dim=0)
        mask[top:bottom] = ids
        pixels += sum_by_class(ids, torch.ones_like(ids), num_classes)
        if confidence and target is surface:
            certainty.add(logits, best, ids)
    if confidence and target is not surface:
        for top, bottom in strips(surface.size, strip_bytes // row_bytes):
            logits = surface.rows(top, bottom)
            certainty.add(logits, *logits.max(dim=0))
    return Reduced(mask, pixels, *certainty.means())


def strips(size: Size, max_pixels: int) -> Iterator[tuple[int, int]]:
    """Rows ``(top, bottom)``, from the first to the last, in strips of at most ``max_pixels``."""
    height, width = size
    step = max(1, max_pixels // width)
    for top in range(0, height, step):
        yield top, min(top + step, height)


def sum_by_class(ids: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """Sum of ``values`` over the pixels of each class; ``ids`` int64, both ``(rows, width)``.

    By row and class first: on a GPU, ``bincount`` would wait for all work queued before it, and
    one address per class would be fought over by all pixels. On the CPU it is twice as fast.
    """
    by_row = values.new_zeros(len(ids), num_classes).scatter_add_(1, ids, values)
    return by_row.sum(0, dtype=torch.float64 if values.is_floating_point() else torch.int64)


class _Certainty:
    """Sums of the winning probability and of its margin over the second, strip by strip."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.probability = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.margin = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, best: Tensor, ids: Tensor) -> None:
        """Take in a strip: ``logits``, their maximum over the classes, the class that has it."""
        # The winner's softmax is exp(0) over the sum of exp(logit − best).
        relative = (logits - best).exp_()
        probability = relative.sum(0).reciprocal_()
        second = relative.scatter_(0, ids[None], 0).amax(0)
        num_classes = len(self.pixels)
        self.pixels += sum_by_class(ids, torch.ones_like(ids), num_classes)
        self.probability += sum_by_class(ids, probability, num_classes)
        self.margin += ((1 - second) * probability).sum(dtype=torch.float64)

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean probability of each class, NaN where it is absent; 1 − the mean margin."""
        confidence = (self.probability / self.pixels).float()
        return confidence, (1 - self.margin / self.pixels.sum()).float()
