"""The codec of masks, overlays and legends."""

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from segbatch.errors import InputError, SourceError
from segbatch.masks import decode_mask, encode_mask, encode_picture, overlay, with_legend
from segbatch.masks.classes import Classes, voc_color
from segbatch.masks.drawing import legend

CLASSES = Classes(["wall", "window", "traffic light"], [(10, 20, 30), (0, 114, 178), None])
PALETTE = CLASSES.palette


def chunks(data: bytes) -> dict[bytes, bytes]:
    """Content of each chunk of a PNG, whose checksums must be right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, position = {}, 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        found[kind] = body
        position += 12 + length
    return found


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([1, 2, 15, 16, 255]).flatmap(
        lambda top: arrays(
            np.uint8,
            st.tuples(st.integers(1, 40), st.integers(1, 40)),
            elements=st.integers(0, top),
        )
    )
)
def test_every_label_map_comes_back(label_map: np.ndarray) -> None:
    decoded = decode_mask(encode_mask(label_map, PALETTE))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, label_map)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (1, 70_001), (70_001, 1), (3, 333), (333, 3)]
)
@pytest.mark.parametrize("num_ids", [1, 16, 17, 256])
def test_strips_and_odd_widths_come_back(shape: tuple[int, int], num_ids: int) -> None:
    label_map = (np.arange(shape[0] * shape[1]) % num_ids).astype(np.uint8).reshape(shape)
    np.testing.assert_array_equal(decode_mask(encode_mask(label_map, PALETTE)), label_map)


def test_all_ids_and_the_ignore_index_come_back() -> None:
    label_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode_mask(encode_mask(label_map, PALETTE)), label_map)


def test_views_of_any_memory_layout_encode_as_their_copies_do() -> None:
    whole = np.random.default_rng(0).integers(0, 16, (40, 50), dtype=np.uint8)
    for view in (whole.T, whole[::2, 1::3], whole[::-1, ::-1], np.asfortranarray(whole)):
        assert encode_mask(view, PALETTE) == encode_mask(view.copy("C"), PALETTE)


def test_encoding_leaves_the_label_map_alone() -> None:
    label_map = np.full((3, 3), 7, np.uint8)
    label_map.flags.writeable = False
    encode_mask(label_map, PALETTE)
    assert (label_map == 7).all()


@pytest.mark.parametrize(("top", "bits", "entries"), [(15, 4, 16), (16, 8, 256), (255, 8, 256)])
def test_ids_below_16_take_4_bits_a_pixel(top: int, bits: int, entries: int) -> None:
    found = chunks(encode_mask(np.full((5, 7), top, np.uint8), PALETTE))
    assert list(found) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", found[b"IHDR"]) == (7, 5, bits, 3, 0, 0, 0)
    assert len(found[b"PLTE"]) == 3 * entries


def test_every_row_has_the_up_filter() -> None:
    label_map = np.array([[1, 2], [1, 2], [3, 0]], np.uint8)
    raw = zlib.decompress(chunks(encode_mask(label_map, PALETTE))[b"IDAT"])
    assert raw == bytes([2, 0x12, 2, 0x00, 2, (0x30 - 0x12) % 256])


def test_viewers_show_the_colours_of_the_classes_and_void_as_in_voc() -> None:
    label_map = np.array([[0, 1], [2, 255]], np.uint8)
    data = encode_mask(label_map, PALETTE)
    colors = np.array([[(10, 20, 30), (0, 114, 178)], [voc_color(2), (224, 224, 192)]])
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), colors)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(bgr[..., ::-1], colors)


def test_a_facade_takes_no_more_bytes_than_with_pillow() -> None:
    label_map = np.zeros((480, 640), np.uint8)
    for y in range(30, 440, 90):
        for x in range(20, 600, 75):
            label_map[y : y + 60, x : x + 40] = 3
    image = Image.fromarray(label_map)
    image.putpalette(PALETTE.tobytes())
    assert len(encode_mask(label_map, PALETTE)) <= len(png(image, compress_level=6))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_pngs_of_other_writers_give_class_ids(bits: int) -> None:
    label_map = np.random.default_rng(0).integers(0, 1 << bits, (9, 13), dtype=np.uint8)
    image = Image.fromarray(label_map)
    image.putpalette(PALETTE[: 1 << bits].tobytes())
    data = png(image, bits=bits)
    assert chunks(data)[b"IHDR"][8] == bits
    np.testing.assert_array_equal(decode_mask(data), label_map)


def test_a_transparent_palette_entry_does_not_change_the_ids() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(PALETTE.tobytes())
    assert decode_mask(png(image, transparency=0)).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_an_image_without_palette_is_refused(mode: str) -> None:
    with pytest.raises(SourceError, match="palette"):
        decode_mask(png(Image.new(mode, (4, 4))))


def test_data_that_is_no_png_is_refused() -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for data in (b"", b"not a mask", jpeg.getvalue()):
        with pytest.raises(SourceError, match="not a readable PNG"):
            decode_mask(data)


def test_a_truncated_mask_is_refused_wherever_it_ends() -> None:
    label_map = np.random.default_rng(0).integers(0, 16, (30, 30), dtype=np.uint8)
    data = encode_mask(label_map, PALETTE)
    end_of_pixels = len(data) - 12 - 4 - 4  # less IEND, the checksums of IDAT and of deflate
    for length in range(0, end_of_pixels, 7):
        with pytest.raises(SourceError):
            decode_mask(data[:length])


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_give_a_label_map_or_a_source_error(data: st.DataObject) -> None:
    mask = bytearray(encode_mask(np.arange(256, dtype=np.uint8).reshape(16, 16) % 16, PALETTE))
    for position in data.draw(st.lists(st.integers(0, len(mask) - 1), min_size=1, max_size=4)):
        mask[position] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_mask(bytes(mask))
    except SourceError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 2


def test_any_error_of_pillow_is_a_source_error() -> None:
    data = encode_mask(np.zeros((3, 3), np.uint8), PALETTE)
    empty_profile = struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP"))
    with pytest.raises(SourceError):  # an IndexError in Pillow 13
        decode_mask(data[:-12] + empty_profile + data[-12:])


def test_a_mask_that_claims_too_many_pixels_is_refused_before_it_is_read() -> None:
    data = encode_mask(np.zeros((1, 1), np.uint8), PALETTE)
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(SourceError, match="100000×100000"):
        decode_mask(bomb)


def test_a_mask_above_the_limit_of_pillow_is_read() -> None:
    label_map = np.zeros((10_000, 18_000), np.uint8)  # Image.open would refuse it
    label_map[-1, -1] = 5
    decoded = decode_mask(encode_mask(label_map, PALETTE))
    assert decoded.shape == label_map.shape
    assert decoded[-1, -1] == 5
    assert decoded.sum(dtype=np.int64) == 5


@pytest.mark.parametrize(
    "label_map",
    [
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2, 1), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 0), np.uint8),
    ],
)
def test_an_array_that_is_no_label_map_is_not_encoded(label_map: np.ndarray) -> None:
    with pytest.raises(ValueError, match="HW uint8"):
        encode_mask(label_map, PALETTE)


@pytest.mark.parametrize("palette", [PALETTE[:16], PALETTE.astype(np.int64)])
def test_a_palette_has_256_colours_in_bytes(palette: np.ndarray) -> None:
    with pytest.raises(ValueError, match="palette"):
        encode_mask(np.zeros((2, 2), np.uint8), palette)


def test_an_overlay_mixes_the_colour_of_the_class_with_the_photo() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    label_map = np.kron([[0, 1], [2, 255]], np.ones((2, 2))).astype(np.uint8)
    picture = overlay(image, label_map, CLASSES, alpha=0.25)
    assert picture.mode == "RGB"
    expected = 0.75 * 100 + 0.25 * PALETTE[label_map].astype(float)
    expected[2:, 2:] = 100  # ignored: as it was
    corners = [0, 0, 3, 3], [0, 3, 0, 3]  # where there is no outline
    np.testing.assert_allclose(np.array(picture)[corners], expected[corners], atol=1.5)
    assert (np.array(picture)[2:, 2:] == 100).all()
    assert (image == 100).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_overlay_can_be_the_photo_or_the_colours_alone(alpha: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    label_map = np.ones((5, 7), np.uint8)
    expected = image if alpha == 0 else np.broadcast_to(PALETTE[1], image.shape)
    np.testing.assert_array_equal(np.array(overlay(image, label_map, CLASSES, alpha)), expected)


@pytest.mark.parametrize(("side", "width"), [(30, 1), (1400, 2)])
def test_an_overlay_has_an_outline_around_what_each_class_covers(side: int, width: int) -> None:
    label_map = np.ones((12, side), np.uint8)
    label_map[:, side // 2 :] = 2
    label_map[:2] = 255
    image = np.full((12, side, 3), 100, np.uint8)
    bright = Classes(["sky", "wall", "window"], [(0, 0, 0), (222, 203, 164), (230, 120, 20)])
    drawn = np.array(overlay(image, label_map, bright, alpha=0.0))
    assert (drawn[:2] == 100).all()  # ignored: no outline either
    half = side // 2
    below = drawn[2 + width :]
    assert (below[:, half - width : half] == bright[1].color).all()
    assert (below[:, half : half + width] == bright[2].color).all()
    assert (below[:, : half - width] == 100).all()
    assert (below[:, half + width :] == 100).all()


def test_the_outline_of_a_dark_class_is_seen_at_night() -> None:
    dark = Classes(["wall", "fence"], [(200, 180, 150), (0, 0, 0)])
    label_map = np.array([[0, 0, 1, 1]], np.uint8)
    drawn = np.array(overlay(np.zeros((1, 4, 3), np.uint8), label_map, dark, alpha=0.0))
    assert drawn[0, 1].tolist() == [200, 180, 150]
    assert drawn[0, 2].tolist() == [110, 110, 110]


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4), (5, 4, 4)])
def test_an_overlay_needs_an_rgb_photo_of_the_same_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one size"):
        overlay(np.zeros(shape, np.uint8), np.zeros((5, 4), np.uint8), CLASSES)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), CLASSES, alpha)


def colors_below(sheet: Image.Image, picture: Image.Image) -> set[tuple[int, ...]]:
    below = np.array(sheet)[picture.height :].reshape(-1, 3)
    return {tuple(color) for color in np.unique(below, axis=0).tolist()}


def test_a_legend_is_below_the_picture_and_shows_the_classes_in_it() -> None:
    picture = Image.new("RGB", (400, 100), (1, 2, 3))
    sheet = with_legend(picture, CLASSES, np.array([0.25, 0.75, 0.0]))
    assert sheet.width == picture.width
    assert sheet.height > picture.height
    assert sheet.crop((0, 0, 400, 100)).tobytes() == picture.tobytes()
    shown = colors_below(sheet, picture)
    assert {CLASSES[0].color, CLASSES[1].color} <= shown
    assert CLASSES[2].color not in shown


def test_a_legend_begins_with_the_largest_class() -> None:
    picture = Image.new("RGB", (1000, 10))
    below = np.array(with_legend(picture, CLASSES, np.array([0.2, 0.5, 0.3])))[10:]
    first_column = [
        np.flatnonzero((below == color).all(axis=2).any(axis=0))[0] for color in PALETTE[:3]
    ]
    assert first_column[1] < first_column[2] < first_column[0]


def test_a_legend_of_many_classes_has_several_lines() -> None:
    many = Classes([f"class number {i}" for i in range(100)])
    picture = Image.new("RGB", (300, 50))
    few_lines = with_legend(picture, many, np.eye(100)[0])
    many_lines = with_legend(picture, many, np.full(100, 0.01))
    assert many_lines.height > few_lines.height
    assert {c.color for c in many} <= colors_below(many_lines, picture)


def test_a_legend_is_never_cut_off_by_a_narrow_picture() -> None:
    narrow = with_legend(Image.new("RGB", (20, 200)), CLASSES, np.array([0.0, 0.0, 1.0]))
    assert narrow.width > 20
    right_edge = np.array(narrow)[200:, -4:]
    assert (right_edge == 255).all()


LEGENDS: list[Callable[[Classes], Image.Image | None]] = [
    lambda classes: with_legend(Image.new("RGB", (99, 9)), classes, np.array([0.5, 0.5])),
    lambda classes: legend(classes, (600, 400)),
]


@pytest.mark.parametrize("draw", LEGENDS)
def test_a_legend_can_be_read_in_any_language(
    draw: Callable[[Classes], Image.Image | None],
) -> None:
    for letters in ["äöüßéèêçàñø…–—×€", "αβγ", "окнс", "شبك"]:
        drawn = [draw(Classes([f"wall {letter}", "sky"])) for letter in letters]
        assert all(picture is not None for picture in drawn)
        assert len({np.asarray(picture).tobytes() for picture in drawn}) == len(letters)
    numbered = np.asarray(draw(Classes(["wall", "class 1"])))
    np.testing.assert_array_equal(np.asarray(draw(Classes(["wall", "窗户"]))), numbered)


def test_a_legend_needs_one_share_per_class() -> None:
    with pytest.raises(ValueError, match="3 classes"):
        with_legend(Image.new("RGB", (20, 20)), CLASSES, np.array([1.0]))


def test_a_picture_that_its_format_cannot_hold_is_refused_with_a_way_out() -> None:
    wide = Image.new("RGB", (20_000, 1))
    with pytest.raises(InputError, match=r"a\.webp: WEBP cannot hold 20000×1 pixels; use \.png"):
        encode_picture(wide, "a.webp")
    assert Image.open(io.BytesIO(encode_picture(wide, "s3://b/A.PNG"))).size == wide.size
