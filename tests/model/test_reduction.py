"""The reduction: strips compared with the whole, and lazy logits with ``interpolate``."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import interpolate

from segbatch.model.logits import CPU, LazyLogits, Mean, Resized, Upsampled
from segbatch.model.reduction import reduce
from segbatch.model.strips import STRIP_BYTES, reduce_in_strips

LOGITS = {
    "upsampled": lambda coarse: Upsampled(coarse, (128, 192), (117, 170), False),
    "upsampled as smp does": lambda coarse: Upsampled(coarse, (128, 192), (117, 170), True),
    "mirrored": lambda coarse: Upsampled(coarse, (128, 192), (117, 170), True, mirrored=True),
    "enlarged": lambda coarse: Resized(LOGITS["upsampled"](coarse), (301, 333)),
    "reduced": lambda coarse: Resized(LOGITS["upsampled"](coarse), (50, 33)),
    "mean": lambda coarse: Mean([LOGITS["mirrored"](coarse), LOGITS["upsampled"](coarse)]),
}


@pytest.fixture
def coarse() -> torch.Tensor:
    return torch.randn(6, 32, 48, generator=torch.Generator().manual_seed(3))


def whole(logits: LazyLogits) -> torch.Tensor:
    return logits.rows(0, logits.size[0])


@pytest.mark.parametrize("name", LOGITS)
def test_strips_are_the_whole_bit_for_bit(coarse, name):
    logits = LOGITS[name](coarse)
    for rows in (1, 7, 64):
        cuts = [*range(0, logits.size[0], rows), logits.size[0]]
        parts = [logits.rows(*cut) for cut in pairwise(cuts)]
        assert torch.equal(torch.cat(parts, 1), whole(logits))


@pytest.mark.parametrize("mask_size", [(117, 170), (300, 400), (40, 60)])
def test_the_height_of_strips_changes_no_result(coarse, mask_size, monkeypatch):
    logits = LOGITS["upsampled"](coarse)
    results = []
    for strip_bytes in (1, 100_000, 1 << 30):
        monkeypatch.setitem(STRIP_BYTES, "cpu", strip_bytes)
        results.append(reduce_in_strips(logits, mask_size, 6, CPU))
    for result in results[1:]:
        assert torch.equal(result.mask, results[0].mask)
        assert torch.equal(result.pixels, results[0].pixels)
        torch.testing.assert_close(result.confidence, results[0].confidence)
        torch.testing.assert_close(result.uncertainty, results[0].uncertainty)


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_that_of_interpolate(coarse, align_corners):
    logits = Upsampled(coarse, (128, 192), (117, 170), align_corners)
    expected = interpolate(coarse[None], (128, 192), mode="bilinear", align_corners=align_corners)[
        0, :, :117, :170
    ]
    torch.testing.assert_close(whole(logits), expected, atol=1e-6, rtol=1e-6)
    larger = interpolate(expected[None], (230, 350), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole(Resized(logits, (230, 350))), larger, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_a_single_row_or_column_is_no_special_case(coarse, size):
    for align_corners in (False, True):
        logits = Upsampled(coarse[:, :1, :1], (128, 128), size, align_corners)
        result = reduce(logits, (33, 20), 6, CPU)
        assert (result.mask == coarse[:, 0, 0].argmax()).all()
        assert result.pixels.sum() == 33 * 20


def test_absent_classes_have_no_confidence():
    coarse = torch.tensor([2.0, 0.0, 1.0])[:, None, None].expand(3, 4, 4).contiguous()
    result = reduce(Upsampled(coarse, (64, 64), (50, 60), False), (50, 60), 3, CPU)
    expected = coarse[:, 0, 0].softmax(0)
    assert result.pixels.tolist() == [3000, 0, 0]
    assert result.confidence[0] == pytest.approx(expected[0].item())
    assert result.confidence[1:].isnan().all()
    assert result.uncertainty == pytest.approx(1 - (expected[0] - expected[2]).item())


def test_equal_logits_go_to_the_first_class_and_are_wholly_uncertain():
    result = reduce(Upsampled(torch.zeros(4, 2, 2), (64, 64), (64, 64), True), (64, 64), 4, CPU)
    assert not result.mask.any()
    assert result.uncertainty == 1
