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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segbatch.model.surfaces import Resized, Size, Surface

# Logits of one strip, in float32. On the CPU a strip should stay near the cache, on a GPU it
# should fill the GPU. The reduction needs about four times as much at its peak.
STRIP_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


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
