"""The brush masks of Label Studio, compared with its own SDK."""

import base64
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter import brush as sdk

from segbatch.formats.brush import decode_brush, encode_brush

STROKE = (
    b"c-jGb1BCnl5C8x<8~^|R0Q??c5t&C>9~^)2_eZ52taCBGM!^~+W;_Y30x>w#V~39ZKWP8s-Hv`T-U@aB8g4WHk3K"
    b"pG+#^AZJAog7MjILYZPC(4yNCbd_Ke$tnSe$?AFf0HkJ>y4@8hVBCN}ug<2sC<F-`;y0U0D|@xe!F9}YMFkFGGD3"
    b"SI#lhI9Xqx;?n@ql1k)G42DV0T@JQ5wpi59xQ&jKmImu3SI#nUW@;azB~xyV_}RdfY*RVQ5ytu(dg!X_~<w(cm#A"
    b"BkN!Ux^<%h>aySUvV_J<CGf2o|58y3e5s$`~8~k?B_h*0j==dpk1aEsk{ypgDBXErRFwO#o0U3O3QO8GvAC`;%jj"
    b"Mu}fJP%9hTs2>eme-+CqRt$GRVew2zUfyai+%&9sGWpZ~i{0!gwi|1ZmOw@BjGwBhZf0Ie6ZqUyTkjjjjP0)M)X%"
    b"$59^EtN)MEGj0lY0U3mKQT6Z<fB5^OwvGBUNW*n_1ZFX=#}ysiefsbII%v!|Dp&+!ahOJv8%%Jq(8ra)ME~R9j|w"
    b"_?;-hYjN;6o-bC?8Sk)Oun9SnK8@BTkn@S~NDnlp|H?g1H`Y%#{ie;;=NAODYnJSgfTiH+7Y7{am`1Z45BM=c(Xz"
    b"yFUOIM~$VBH*-O5s*fC8q997$wyrtM11@NU;aGk<zrrq@-mphaJU3z(X7V}9n5{&@BTg5>Z5Xu=Ys8kMnM_mYZ1N"
    b"2X&)B>6aSCGJvr^;%#Yt)|Hq9S)NN6n#udSUz#|Tg1~&-kBfyVdKTZR0{~pA2F|<Zs!HvKp5R9@kc-dosj(R(o_2"
    b"cv4FaPoI$7vh{X;FyqX0Qmu<1CE=Hb~~9)8Hz9@#V)o8<c19hVW@{2*aaCjpjJG>f^_ckARQ=$I~6uaS^S?S;4cw"
    b"BOHw4H0ao4bdDA|sOw|Y-2d_8M;#ihW4s(30x=lU<ARRzKP`X%9-MS>xJGlq%fKTpjTSa2-=mw3-aR<{G(Y@)k>A"
    b"H38w6&29h?F&xXYtJjZ!vv;3Kt<mnr|pwH*v?QJ3&}un5E>LXFNkDEYBp{CZK;M)MjxVq6~l0x=lLBR7p6HOSlJm"
    b"5ypQSk3?c_y_<00RR8sAOHLV|Nnr0|L_n0{sI60z(4=^2mk*7|Nr10|NI00|A2N?umCXFz0L"
)

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


def test_a_stroke_of_label_studios_editor_is_read() -> None:
    """Drawn with a mouse on a photograph of 512×512 and exported by Label Studio 1.23.2."""
    rle = zlib.decompress(base64.b85decode(STROKE))
    inside = decode_brush(rle, 512, 512)
    np.testing.assert_array_equal(inside, decoded_by_the_sdk(rle, 512, 512)[..., 3] > 0)
    assert inside.sum() == 2000
    rows, columns = np.nonzero(inside)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 83, 59, 238)


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
