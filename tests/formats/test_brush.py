"""The brush masks of Label Studio, compared with its own SDK."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter import brush as sdk

from segbatch.formats.brush import decode_brush, encode_brush

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 40)))


def decoded_by_the_sdk(rle: bytes, height: int, width: int) -> np.ndarray:
    return sdk.decode_rle(list(rle)).reshape(height, width, 4)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_masks_are_written_and_read_as_the_sdk_does(inside: np.ndarray) -> None:
    height, width = inside.shape
    rle = encode_brush(inside)
    np.testing.assert_array_equal(decode_brush(rle, width, height), inside)
    for channel in range(4):
        seen = decoded_by_the_sdk(rle, height, width)[..., channel]
        np.testing.assert_array_equal(seen, inside * 255)
    theirs = sdk.mask2rle(inside.astype(np.uint8) * 255)
    np.testing.assert_array_equal(decode_brush(bytes(theirs), width, height), inside)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40_000), (301, 433), (70_001, 1)])
def test_masks_of_any_size_come_back(height: int, width: int) -> None:
    for inside in (
        np.zeros((height, width), np.bool_),
        np.ones((height, width), np.bool_),
        np.random.default_rng(width).random((height, width)) < 0.01,
    ):
        np.testing.assert_array_equal(decode_brush(encode_brush(inside), width, height), inside)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 255)), max_size=12),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.integers(8, 16),
)
def test_the_records_of_other_encoders_are_read(
    records: list[tuple[bool, int, int]], length_bits: list[int], word_bits: int
) -> None:
    """Label Studio's own editor writes antialiased edges as single values."""
    values: list[int] = []
    bits = ""
    kind = length_bits.index(max(length_bits))
    for repeats, most, value in records:
        count = min(most, 1 << max(length_bits))
        bits += f"{repeats:d}{kind:02b}{count - 1:0{length_bits[kind]}b}"
        run = [value] * count if repeats else [value * n % 256 for n in range(count)]
        bits += "".join(f"{v:0{word_bits}b}" for v in (run[:1] if repeats else run))
        values += run
    rest = -len(values) % 4 + 4
    for _ in range(rest):
        bits += f"000{0:0{length_bits[0]}b}{1:0{word_bits}b}"
        values.append(1)
    head = f"{len(values):032b}{word_bits - 1:05b}" + "".join(f"{n - 1:04b}" for n in length_bits)
    stream = head + bits
    stream += "0" * (-len(stream) % 8)
    rle = bytes(int(stream[start : start + 8], 2) for start in range(0, len(stream), 8))
    alphas = np.array(values[3::4]) > 0
    np.testing.assert_array_equal(decode_brush(rle, len(alphas), 1)[0], alphas)
    seen = sdk.decode_rle(list(rle))
    np.testing.assert_array_equal(seen[3::4] > 0, alphas)


@pytest.mark.parametrize(("rle", "why"), [
    (b"", "ends too early"),
    (encode_brush(np.eye(9, dtype=np.bool_))[:-3], "ends too early"),
    (encode_brush(np.eye(8, dtype=np.bool_)), "has RLE of 256 values: an image of 9×9 has 324"),
    (bytes([0, 0, 1, 68]) + b"\xff" * 40, "with more values than the image"),
])  # fmt: skip
def test_rle_that_does_not_fit_is_refused(rle: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_brush(rle, 9, 9)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_mask_or_refused(rle: bytes) -> None:
    rle = (3 * 2 * 4).to_bytes(4, "big") + rle
    with suppress(ValueError):
        assert decode_brush(rle, 3, 2).shape == (2, 3)
