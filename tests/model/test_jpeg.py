"""JPEG decoding on the device: on the CPU always, on a GPU where there is one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segbatch.model.jpeg import decode_jpegs, require_jpeg_decoder
from tests.model.conftest import picture

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture(50, 70, 3)).convert(mode).save(sink, "JPEG", quality=90, **options)
    return sink.getvalue()


@pytest.mark.parametrize("device", DEVICES)
def test_a_jpeg_is_what_pillow_shows_but_for_rounding(device: str) -> None:
    require_jpeg_decoder(torch.device(device))
    files = [
        jpeg(),
        jpeg("L"),
        jpeg(subsampling="4:4:4"),
        jpeg(subsampling="4:2:2"),
        jpeg(progressive=True),
        jpeg(restart_marker_rows=1),
    ]
    for file, pixels in zip(files, decode_jpegs(files, torch.device(device)), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.int16)
        assert pixels is not None
        assert pixels.shape == (50, 70, 3)
        assert np.abs(pixels - shown).mean() < 2
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_device_does_not_take_leaves_the_others_be(device: str) -> None:
    good = jpeg()
    first, broken, last = decode_jpegs([good, b"no JPEG", good], torch.device(device))
    assert broken is None
    assert first is not None
    assert last is not None
    np.testing.assert_array_equal(first, last)
    assert decode_jpegs([], torch.device(device)) == []
