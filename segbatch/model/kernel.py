"""The kernel of the fused reduction, in Triton; :mod:`segbatch.model.fused` launches it.

A program takes ``BLOCK`` pixels, one after the other as they lie in the mask, and goes through the
classes once. Of each pixel it keeps the best logit so far, the second best, the best one's class,
and the sum of exponentials relative to the best. It writes the class ids and its own sums of each
class, ``(programs, classes)``, for someone to add up: nothing is shared, so nothing depends on
which program was faster.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Contracted into fused multiply-adds, the interpolation would round otherwise than the strips do.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
BLOCK = 512  # pixels of a program, two for each thread: 40 to 80 registers, so nothing is spilled
CHUNK = 16  # classes that are summed together


@triton.jit
def blend(first, second, weight):
    """Three roundings, as the strips have them; :data:`OPTIONS` keeps the compiler to it."""
    return first * (1 - weight) + second * weight


@triton.jit
def taps(above, weight, index, num_in):
    """Row or column ``index`` lies between which two of ``num_in``, with what weight of the second;
    tables as ``row_taps`` has them.
    """
    first = tl.load(above + index).to(tl.int32)
    return first, tl.minimum(first + 1, num_in - 1), tl.load(weight + index)


@triton.jit
def upsampled(coarse, plane, upper, lower, down, left, right, across):
    """A class's logit from four coarse ones: rows first, then columns.

    ``plane`` is where the class begins in ``coarse``, ``upper`` and ``lower`` where its rows do.
    Offsets are int32: as pointers they would take twice the registers.
    """
    upper, lower = plane + upper, plane + lower
    at_left = blend(tl.load(coarse + (upper + left)), tl.load(coarse + (lower + left)), down)
    at_right = blend(tl.load(coarse + (upper + right)), tl.load(coarse + (lower + right)), down)
    return blend(at_left, at_right, across)


# Else each size, number of classes and alignment would be compiled for anew.
@triton.jit(do_not_specialize=list(range(20)))
def reduce_block(
    coarse,  # in: (classes, height, width) float32
    rows_above,  # for each row of the surface, as `row_taps` has them: int64,
    rows_weight,  # float32
    columns_above,
    columns_weight,
    mask_rows_above,  # for each row of the mask, among those of the surface; read if RESIZED
    mask_rows_weight,
    mask_columns_above,
    mask_columns_weight,
    mask,  # out: uint8
    counts,  # (programs, classes) int32: pixels
    probabilities,  # (programs, classes) float32: sums of the winners'; written if CERTAINTY
    margins,  # (programs,) float32: sums; written if CERTAINTY
    num_classes,
    height,
    width,
    surface_height,
    surface_width,
    mask_width,
    num_pixels,  # of the mask
    RESIZED: tl.constexpr,  # the mask has another grid than the surface
    CERTAINTY: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    pixel = program * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < num_pixels
    at = tl.minimum(pixel, num_pixels - 1)  # those outside read what is there, and count nowhere
    row, column = at // mask_width, at % mask_width
    if RESIZED:
        row, row_2, to_row_2 = taps(mask_rows_above, mask_rows_weight, row, surface_height)
        column, column_2, to_column_2 = taps(
            mask_columns_above, mask_columns_weight, column, surface_width
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
        better = logit > best  # of equals, the first
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
