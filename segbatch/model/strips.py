"""The reduction in strips, by torch alone: for any logits, on any device.

It takes full-size logits one strip of rows at a time, so memory is bounded for any image
size, and it is the reference for the fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from segbatch.model.logits import LazyLogits, Resized
from segbatch.model.patches import Size

# Logits of one strip, in float32. On the CPU a strip should stay near the cache, on a GPU it
# should fill the GPU. The reduction needs about four times as much at its peak.
STRIP_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


class Reduced(NamedTuple):
    """The label map of an image and its statistics; tensors on the device that computed them.

    ``mask`` is ``(height, width)`` uint8 of class ids, ``pixels`` ``(classes,)`` int64 their
    counts. ``confidence`` is ``(classes,)`` float32, NaN for absent classes, and ``uncertainty`` a
    float32 scalar, both 0 to 1 and measured on the grid of the logits; all NaN if not requested.
    """

    mask: Tensor
    pixels: Tensor
    confidence: Tensor
    uncertainty: Tensor


def reduce_in_strips(
    logits: LazyLogits,
    mask_size: Size,
    num_classes: int,
    device: torch.device,
    *,
    confidence: bool = True,
) -> Reduced:
    """Reduce ``logits`` to class ids on a grid of ``mask_size`` and their statistics."""
    strip_bytes = STRIP_BYTES.get(device.type, STRIP_BYTES["cuda"])
    max_pixels = strip_bytes // (4 * num_classes)
    own_grid = mask_size == logits.size
    target = logits if own_grid else Resized(logits, mask_size)
    mask = torch.empty(mask_size, dtype=torch.uint8, device=device)
    pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)
    certainty = _Certainty(num_classes, device)

    for top, bottom in strips(mask_size, max_pixels):
        strip = target.rows(top, bottom)
        best, ids = strip.max(dim=0)
        mask[top:bottom] = ids
        pixels += sum_by_class(ids, torch.ones_like(ids), num_classes)
        if confidence and own_grid:
            certainty.add(strip, best, ids)
    if confidence and not own_grid:
        for top, bottom in strips(logits.size, max_pixels):
            strip = logits.rows(top, bottom)
            certainty.add(strip, *strip.max(dim=0))
    return Reduced(mask, pixels, *certainty.means())


def strips(size: Size, max_pixels: int) -> Iterator[tuple[int, int]]:
    """Rows ``(top, bottom)``, from the first to the last, in strips of at most ``max_pixels``."""
    height, width = size
    step = max(1, max_pixels // width)
    for top in range(0, height, step):
        yield top, min(top + step, height)


def sum_by_class(ids: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """The sum of ``values`` over the pixels of each class; ``ids`` int64, both ``(rows, width)``.

    By row and class first: on a GPU, ``bincount`` would wait for all queued work, and all pixels
    would compete for one address per class. On the CPU it is twice as fast.
    """
    by_row = values.new_zeros(len(ids), num_classes).scatter_add_(1, ids, values)
    return by_row.sum(0, dtype=torch.float64 if values.is_floating_point() else torch.int64)


class _Certainty:
    """Sums of the winning probability and of its margin over the second, strip by strip."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.probability = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.margin = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, strip: Tensor, best: Tensor, ids: Tensor) -> None:
        """Add a strip: its logits, their maximum over the classes, and the class that has it."""
        # The winner's softmax is exp(0) over the sum of exp(logit − best).
        relative = (strip - best).exp_()
        probability = relative.sum(0).reciprocal_()
        second = relative.scatter_(0, ids[None], 0).amax(0)
        num_classes = len(self.pixels)
        self.pixels += sum_by_class(ids, torch.ones_like(ids), num_classes)
        self.probability += sum_by_class(ids, probability, num_classes)
        self.margin += ((1 - second) * probability).sum(dtype=torch.float64)

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean probability of each class, NaN where it is absent; 1 − the mean margin."""
        confidence = (self.probability / self.pixels).float()
        return confidence, (1 - self.margin / self.pixels.sum()).float()
