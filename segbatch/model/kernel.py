"""The kernel of the fused reduction, in Triton; :mod:`segbatch.model.fused` launches it.

A program takes ``BLOCK`` consecutive pixels of the mask and loops over the classes once. For each
pixel it keeps the best logit so far, its class, the second best, and the sum of exponentials
relative to the best. It writes the class ids, and sums per class to a row of its own in
``(programs, classes)``, which torch adds up afterwards: programs share no memory, so results do
not depend on their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Contracted into fused multiply-adds, the interpolation would round differently from the strips.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
BLOCK = 512  # pixels of a program, two per thread: 40 to 80 registers, so none is spilled
CHUNK = 16  # classes that are summed together


@triton.jit
def blend(first, second, weight):
    """Linear interpolation with three roundings, as in the strips; see :data:`OPTIONS`."""
    return first * (1 - weight) + second * weight


@triton.jit
def taps(above, weight, index, num_in):
    """The two of ``num_in`` rows or columns between which ``index`` lies, and the weight of the
    second; the tables are those of ``row_taps``.
    """
    first = tl.load(above + index).to(tl.int32)
    return first, tl.minimum(first + 1, num_in - 1), tl.load(weight + index)


@triton.jit
def upsampled(coarse, plane, upper, lower, down, left, right, across):
    """The logit of a class from four coarse ones: interpolated along rows, then columns.

    ``plane`` is the offset of the class in ``coarse``, ``upper`` and ``lower`` are those of its
    rows. Offsets are int32: pointers would take twice the registers.
    """
    upper, lower = plane + upper, plane + lower
    at_left = blend(tl.load(coarse + (upper + left)), tl.load(coarse + (lower + left)), down)
    at_right = blend(tl.load(coarse + (upper + right)), tl.load(coarse + (lower + right)), down)
    return blend(at_left, at_right, across)


# Otherwise Triton compiles again for each size, number of classes and alignment.
@triton.jit(do_not_specialize=list(range(20)))
def reduce_block(
    coarse,  # in: (classes, height, width) float32
    rows_above,  # for each row of the full-size logits, as in `row_taps`: int64,
    rows_weight,  # float32
    columns_above,
    columns_weight,
    mask_rows_above,  # for each row of the mask, among those of the logits; read if RESIZED
    mask_rows_weight,
    mask_columns_above,
    mask_columns_weight,
    mask,  # out: uint8
    counts,  # (programs, classes) int32: pixels
    probabilities,  # (programs, classes) float32: sums for the winners; written if CERTAINTY
    margins,  # (programs,) float32: sums; written if CERTAINTY
    num_classes,
    height,
    width,
    full_height,  # of the full-size logits
    full_width,
    mask_width,
    num_pixels,  # of the mask
    RESIZED: tl.constexpr,  # the mask has another grid than the logits
    CERTAINTY: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    pixel = program * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < num_pixels
    at = tl.minimum(pixel, num_pixels - 1)  # threads outside read the last pixel and count nowhere
    row, column = at // mask_width, at % mask_width
    if RESIZED:
        row, row_2, to_row_2 = taps(mask_rows_above, mask_rows_weight, row, full_height)
        column, column_2, to_column_2 = taps(
            mask_columns_above, mask_columns_weight, column, full_width
        )
        upper_2, lower_2, down_2 = taps(rows_above, rows_weight, row_2, height)
        left_2, right_2, across_2 = taps(columns_above, columns_weight, column_2, width)
        upper_2, lower_2 = upper_2 * width, lower_2 * width
    upper, lower, down = taps(rows_above, rows_weight, row, height)
    left, right, across = taps(columns_above, columns_weight, column, width)
    upper, lower = upper * width, lower * width

    best = tl.full([BLOCK], float("-inf"), tl.float32)
    second = best
    total = tl.zeros([BLOCK], tl.float32)  # of exp(logit − best)
    ids = tl.zeros([BLOCK], tl.int32)
    plane = 0
    for class_id in range(num_classes):
        logit = upsampled(coarse, plane, upper, lower, down, left, right, across)
        if RESIZED:
            below = upsampled(coarse, plane, upper_2, lower_2, down_2, left, right, across)
            at_left = blend(logit, below, to_row_2)
            above = upsampled(coarse, plane, upper, lower, down, left_2, right_2, across_2)
            below = upsampled(coarse, plane, upper_2, lower_2, down_2, left_2, right_2, across_2)
            logit = blend(at_left, blend(above, below, to_row_2), to_column_2)
        better = logit > best  # the first of equals wins
        if CERTAINTY:
            smaller = tl.exp(-tl.abs(logit - best))
            total = tl.where(better, total * smaller + 1, total + smaller)
            second = tl.where(better, best, tl.maximum(second, logit))
        best = tl.where(better, logit, best)
        ids = tl.where(better, class_id, ids)
        plane += height * width

    tl.store(mask + pixel, ids.to(tl.uint8), mask=inside)
    if CERTAINTY:
        probability = 1 / total
        margin = (1 - tl.exp(second - best)) * probability
        tl.store(margins + program, tl.sum(tl.where(inside, margin, 0.0)))
    ids = tl.where(inside, ids, -1)
    for first in range(0, num_classes, CHUNK):
        classes = first + tl.arange(0, CHUNK)
        won = ids[None, :] == classes[:, None]
        place, there = program * num_classes + classes, classes < num_classes
        tl.store(counts + place, tl.sum(won.to(tl.int32), 1), mask=there)
        if CERTAINTY:
            sums = tl.sum(tl.where(won, probability[None, :], 0.0), 1)
            tl.store(probabilities + place, sums, mask=there)
