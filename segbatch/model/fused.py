"""The fused reduction: from coarse logits to class ids, counts and confidence in one go, on a GPU.

In strips, full-size logits are written to memory and read again by each step: two interpolations,
maximum, exponentials, sums. Here a pixel's logits live and die in registers, one class after the
other (:mod:`segbatch.model.kernel`), and only its class id is written. The arithmetic is that of
the strips, in their order, so that class ids are the same but where two classes are as good as
equal; and the same logits give the same bytes.

Importing this needs Triton, which comes with torch's builds for CUDA on Linux, and running it a C
compiler. docs/decisions/0008-a-kernel-of-our-own.md has the reasons.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from segbatch.model import kernel
from segbatch.model.strips import Reduced, reduce_in_strips, sum_by_class
from segbatch.model.surfaces import Resized, Size, Surface, Upsampled, row_taps

LARGEST = 1 << 30  # coarse logits, and pixels of a mask: the kernel's offsets are int32

AS_GOOD_AS_EQUAL = 1e-4  # what rounding may do to logits around 1, and more


class Unproved(Exception):
    """The kernel's results on this device are not those of the strips."""


def serves(surface: Surface, mask_size: Size) -> bool:
    """Whether :func:`reduce` can do it: logits of one forward pass, and not a giant's."""
    return (
        isinstance(surface, Upsampled)
        and surface.coarse.is_contiguous()
        and surface.coarse.numel() <= LARGEST
        and max(surface.size[0] * surface.size[1], mask_size[0] * mask_size[1]) <= LARGEST
    )


def reduce(surface: Upsampled, mask_size: Size, *, confidence: bool = True) -> Reduced:
    """What ``reduction.reduce`` gives, on the device of the surface."""
    own_grid = mask_size == surface.size
    mask, pixels, *sums = _launch(surface, mask_size, confidence and own_grid)
    on_own_grid = pixels
    if confidence and not own_grid:
        _, on_own_grid, *sums = _launch(surface, surface.size, True)
    probability, margin = sums
    return Reduced(
        mask,
        pixels,
        confidence=(probability / on_own_grid).float(),
        uncertainty=(1 - margin / on_own_grid.sum()).float(),
    )


def prove(device: torch.device) -> None:
    """Reduce small surfaces on ``device`` in every way that there is, and in strips beside it.

    A compiler or a GPU may be at fault where no test has seen it. Raises :class:`Unproved` where
    results differ, and whatever Triton raises where it cannot be used.
    """
    size, num_classes = (29, 37), kernel.CHUNK + 3
    generator = torch.Generator().manual_seed(5)
    for align_corners, mask_size, confidence in (
        (False, size, True),
        (True, size, False),
        (True, (41, 53), True),
        (False, (20, 31), True),
    ):
        coarse = 3 * torch.randn(num_classes, 5, 7, generator=generator)
        surface = Upsampled(coarse.to(device), (32, 64), size, align_corners)
        ours = reduce(surface, mask_size, confidence=confidence)
        theirs = reduce_in_strips(surface, mask_size, num_classes, device, confidence=confidence)

        ids = ours.mask.long().clamp(max=num_classes - 1)
        target = surface if mask_size == size else Resized(surface, mask_size)
        logits = target.rows(0, mask_size[0])
        behind = logits.amax(0) - logits.gather(0, ids[None])[0]
        if behind.max() > AS_GOOD_AS_EQUAL or not torch.equal(ids, ours.mask.long()):
            raise Unproved("class ids are wrong")
        if not torch.equal(ours.pixels, sum_by_class(ids, torch.ones_like(ids), num_classes)):
            raise Unproved("counts of pixels are wrong")
        for name in ("confidence", "uncertainty"):
            pair = getattr(ours, name), getattr(theirs, name)
            if not torch.allclose(*pair, rtol=0, atol=AS_GOOD_AS_EQUAL, equal_nan=True):
                raise Unproved(f"{name} is wrong")


def _launch(
    surface: Upsampled, mask_size: Size, certainty: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class ids on a grid of ``mask_size`` and pixels of each class, as :class:`Reduced` has them;
    float64 sums of the probability of each class and of all margins, NaN without ``certainty``.
    """
    coarse, device, size = surface.coarse, surface.coarse.device, surface.size
    num_classes, height, width = coarse.shape
    rows = row_taps(height, surface.padded[0], surface.align_corners, device)
    columns = row_taps(width, surface.padded[1], surface.align_corners, device)
    left, across = columns.above[: size[1]], columns.weight[: size[1]]
    if surface.mirrored:
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
