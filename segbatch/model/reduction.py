"""The reduction: from the logits of an image to its label map, counts and confidence.

There are two implementations: in strips (:mod:`segbatch.model.strips`), and on a GPU, for the
logits of a single forward pass, a fused kernel (:mod:`segbatch.model.fused`). The kernel is used
only on a device where it was compared with the strips first.
"""

from __future__ import annotations

from functools import cache

import torch

from segbatch.console import say
from segbatch.model.logits import LazyLogits, Resized, Upsampled
from segbatch.model.patches import Size
from segbatch.model.strips import Reduced, reduce_in_strips, sum_by_class
from segbatch.storage import one_line

TOLERANCE = 1e-4  # above what rounding does to logits around 1


class Unproved(Exception):
    """On this device the fused kernel does not give the results of the strips."""


def reduce(
    logits: LazyLogits,
    mask_size: Size,
    num_classes: int,
    device: torch.device,
    *,
    confidence: bool = True,
) -> Reduced:
    """Class ids on a grid of ``mask_size``, their counts, and confidence on the logits' own grid.

    On a GPU by the fused kernel where it can, else in strips. Class ids are the same except where
    two classes are equal up to rounding.
    """
    if device.type == "cuda" and isinstance(logits, Upsampled) and fused_on(device):
        from segbatch.model import fused

        if fused.serves(logits, mask_size):
            return fused.reduce(logits, mask_size, confidence=confidence)
    return reduce_in_strips(logits, mask_size, num_classes, device, confidence=confidence)


@cache
def fused_on(device: torch.device) -> bool:
    """Whether the fused kernel runs on ``device`` and passes :func:`prove`; prints why not."""
    try:
        prove(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton may be missing, or the C compiler that it needs
        say(f"{device}: reducing logits without the fused kernel: {one_line(error)}")
        return False
    return True


def prove(device: torch.device) -> None:
    """Compare the fused kernel with the strips on ``device``, on small logits, in all its modes.

    Finds faults of a compiler or a GPU that no test has seen. Raises :class:`Unproved` where
    results differ, and any exception of Triton where it cannot be used.
    """
    from segbatch.model import fused, kernel  # Triton is a second's import, and may be missing

    size, num_classes = (29, 37), kernel.CHUNK + 3
    generator = torch.Generator().manual_seed(5)
    for align_corners, mask_size, confidence in (
        (False, size, True),
        (True, size, False),
        (True, (41, 53), True),
        (False, (20, 31), True),
    ):
        coarse = 3 * torch.randn(num_classes, 5, 7, generator=generator)
        logits = Upsampled(coarse.to(device), (32, 64), size, align_corners)
        actual = fused.reduce(logits, mask_size, confidence=confidence)
        expected = reduce_in_strips(logits, mask_size, num_classes, device, confidence=confidence)

        ids = actual.mask.long().clamp(max=num_classes - 1)
        target = logits if mask_size == size else Resized(logits, mask_size)
        full = target.rows(0, mask_size[0])
        behind = full.amax(0) - full.gather(0, ids[None])[0]
        if behind.max() > TOLERANCE or not torch.equal(ids, actual.mask.long()):
            raise Unproved("class ids are wrong")
        if not torch.equal(actual.pixels, sum_by_class(ids, torch.ones_like(ids), num_classes)):
            raise Unproved("counts of pixels are wrong")
        for name in ("confidence", "uncertainty"):
            pair = getattr(actual, name), getattr(expected, name)
            if not torch.allclose(*pair, rtol=0, atol=TOLERANCE, equal_nan=True):
                raise Unproved(f"{name} is wrong")
