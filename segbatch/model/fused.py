"""The fused reduction: from coarse logits to class ids, counts and confidence in one GPU kernel.

In strips, full-size logits are written to memory and read again by each step: two interpolations,
maximum, exponentials, sums. Here the logits of a pixel stay in registers, one class after the
other (:mod:`segbatch.model.kernel`), and only its class id is written. The arithmetic is that of
the strips, in their order, so class ids are the same except where two classes are equal up to
rounding; and the same logits give the same bytes.

Importing this needs Triton, which comes with torch's builds for CUDA on Linux; running it needs a
C compiler. docs/decisions/0008-a-kernel-of-our-own.md has the reasons.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from segbatch.model import kernel
from segbatch.model.logits import Upsampled, row_taps
from segbatch.model.patches import Size
from segbatch.model.strips import Reduced

MAX_NUMEL = 1 << 30  # coarse logits, and pixels of a mask: the kernel's offsets are int32


def serves(logits: Upsampled, mask_size: Size) -> bool:
    """Whether the kernel can reduce ``logits``: contiguous ones, within its range of offsets."""
    return (
        logits.coarse.is_contiguous()
        and logits.coarse.numel() <= MAX_NUMEL
        and max(logits.size[0] * logits.size[1], mask_size[0] * mask_size[1]) <= MAX_NUMEL
    )


def reduce(logits: Upsampled, mask_size: Size, *, confidence: bool = True) -> Reduced:
    """Reduce ``logits``, on their device, to class ids on a grid of ``mask_size`` and their
    statistics.
    """
    own_grid = mask_size == logits.size
    mask, pixels, *sums = _launch(logits, mask_size, confidence and own_grid)
    on_own_grid = pixels
    if confidence and not own_grid:
        _, on_own_grid, *sums = _launch(logits, logits.size, True)
    probability, margin = sums
    return Reduced(
        mask,
        pixels,
        confidence=(probability / on_own_grid).float(),
        uncertainty=(1 - margin / on_own_grid.sum()).float(),
    )


def _launch(
    logits: Upsampled, mask_size: Size, certainty: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class ids on a grid of ``mask_size`` and the pixels of each class, as in :class:`Reduced`;
    float64 sums of the probability of each class and of all margins, NaN without ``certainty``.
    """
    coarse, device, size = logits.coarse, logits.coarse.device, logits.size
    num_classes, height, width = coarse.shape
    rows = row_taps(height, logits.padded[0], logits.align_corners, device)
    columns = row_taps(width, logits.padded[1], logits.align_corners, device)
    left, across = columns.above[: size[1]], columns.weight[: size[1]]
    if logits.mirrored:
        left, across = left.flip(0), across.flip(0)
    resized = mask_size != size
    mask_rows = row_taps(size[0], mask_size[0], False, device) if resized else rows
    mask_columns = row_taps(size[1], mask_size[1], False, device) if resized else columns

    num_pixels = mask_size[0] * mask_size[1]
    num_programs: int = triton.cdiv(num_pixels, kernel.BLOCK)
    mask = torch.empty(mask_size, dtype=torch.uint8, device=device)
    pixels = torch.empty(num_programs, num_classes, dtype=torch.int32, device=device)
    summed = num_programs if certainty else 1
    probabilities = torch.full((summed, num_classes), torch.nan, device=device)
    margins = torch.full((summed,), torch.nan, device=device)
    with torch.cuda.device(coarse.get_device()):  # Triton launches on the current one
        kernel.reduce_block[num_programs,](
            coarse,
            rows.above,
            rows.weight,
            left,
            across,
            mask_rows.above,
            mask_rows.weight,
            mask_columns.above,
            mask_columns.weight,
            mask,
            pixels,
            probabilities,
            margins,
            num_classes,
            height,
            width,
            *size,
            mask_size[1],
            num_pixels,
            RESIZED=resized,
            CERTAINTY=certainty,
            BLOCK=kernel.BLOCK,
            CHUNK=kernel.CHUNK,
            **kernel.OPTIONS,
        )
    sums = probabilities.sum(0, dtype=torch.float64), margins.sum(dtype=torch.float64)
    return mask, pixels.sum(0), *sums
