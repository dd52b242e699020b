import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin, features

from segbatch.images.decode import Decoded, decode, decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.scaling import downscale
from tests import hostile

FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]
MODES = [
    "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "F",
]  # fmt: skip


def picture(mode: str = "RGB", width: int = 64, height: int = 48) -> Image.Image:
    """A smooth picture that no turning or mirroring leaves as it is."""
    y, x = np.mgrid[:height, :width]
    red, green = x * 255 // width, y * 255 // height
    rgb = Image.fromarray(np.stack([red, green, (red + green) // 2], -1).astype(np.uint8))
    match mode:
        case "I;16":
            return Image.fromarray((red * 257).astype(np.uint16))
        case "I":
            return Image.fromarray((red * 257).astype(np.int32))
        case "F":
            return Image.fromarray(red.astype(np.float32))
        case "LAB":
            srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            return ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")  # type: ignore
        case "LA" | "RGBA" | "PA":
            rgb.putalpha(Image.fromarray(green.astype(np.uint8)))
    return rgb.convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def result_of(data: bytes, *, long_side: int | None = None) -> Decoded | Undecodable:
    return decode_image(data, max_pixels=10_000_000, long_side=long_side)


def decoded(data: bytes, *, long_side: int | None = None) -> Decoded:
    result = result_of(data, long_side=long_side)
    assert isinstance(result, Decoded), result
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.c_contiguous
    return result


def kind_of(data: bytes) -> str:
    result = result_of(data)
    assert isinstance(result, Undecodable)
    assert result.message.strip()
    assert "\n" not in result.message
    return result.kind


def by_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    """What Pillow gives, upright; of 16-bit numbers the upper half, where Pillow clips."""
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.mode.startswith("I"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


# ------------------------------------------------------------------------------------- good images


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_format_comes_out_as_pillow_shows_it(mode: str, format: str) -> None:
    try:
        data = encoded(picture(mode), format)
    except (OSError, ValueError):
        return  # there are no such files
    image = decoded(data)
    assert (image.width, image.height) == (64, 48)
    np.testing.assert_array_equal(image.pixels, by_pillow(data))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palettes_keep_their_colours(format: str, transparency: object) -> None:
    if format == "GIF" and isinstance(transparency, bytes):
        transparency = 0
    data = encoded(picture("P"), format, transparency=transparency)
    np.testing.assert_array_equal(decoded(data).pixels, by_pillow(data))


@pytest.mark.parametrize(("mode", "transparency"), [("L", 7), ("RGB", (1, 2, 3)), ("I;16", 9)])
def test_a_transparent_colour_changes_nothing(mode: str, transparency: object) -> None:
    data = encoded(picture(mode), "PNG", transparency=transparency)
    np.testing.assert_array_equal(decoded(data).pixels, by_pillow(data))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 255, 256, 1000, 40_000, 65_535]], np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = decoded(encoded(Image.fromarray(values), format)).pixels
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 3, 156, 255]


def test_a_sixteen_bit_pgm_is_scaled_too() -> None:
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 1000, 65_535)
    assert decoded(data).pixels[0, :, 1].tolist() == [0, 3, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-5, 0, 200, 255]], np.int32), [0, 0, 200, 255]),
        (np.array([[-5, 256, 65_535, 10**9]], np.int32), [0, 1, 255, 255]),
        (np.array([[-0.5, 0, 0.5, 1]], np.float32), [0, 0, 127, 255]),
        (np.array([[-5, 0.4, 254.7, 300]], np.float32), [0, 0, 254, 255]),
        (np.array([[np.nan, 1, np.inf, -np.inf]], np.float32), [0, 1, 255, 0]),
    ],
)
def test_numbers_of_32_bits(values: npt.NDArray[Any], expected: list[int]) -> None:
    data = encoded(Image.fromarray(values), "TIFF")
    assert decoded(data).pixels[0, :, 2].tolist() == expected


def test_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), (0, 200, 0))]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        first = Image.new("RGB", (16, 16), (200, 0, 0))
        data = encoded(first, format, save_all=True, append_images=frames)
        assert decoded(data).pixels[8, 8].tolist() == pytest.approx([200, 0, 0], abs=8)


# --------------------------------------------------------------------------------- turning, scaling


@pytest.mark.parametrize("long_side", [None, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_come_out_upright(format: str, orientation: int, long_side: int | None) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(picture(), format, exif=exif)

    image = decoded(data, long_side=long_side)

    upright = by_pillow(data)
    assert (image.height, image.width) == upright.shape[:2]
    assert (image.width < image.height) == (orientation >= 5)
    expected = downscale(Image.fromarray(upright), long_side)
    assert image.pixels.shape == (expected.height, expected.width, 3)
    tolerance = 0 if long_side is None else 4  # JPEG is decoded at a fraction of its size
    np.testing.assert_allclose(image.pixels, np.asarray(expected), atol=tolerance)


def test_damaged_exif_is_no_exif() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    np.testing.assert_array_equal(decoded(data).pixels, decoded(encoded(picture(), "JPEG")).pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("long_side", [900, 500, 120, 33, 1])
def test_downscaling_while_decoding_is_close_to_downscaling_after(
    mode: str, long_side: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    photo = Image.fromarray(noise).resize((1000, 700), Image.Resampling.BICUBIC).convert(mode)
    data = encoded(photo, "JPEG", quality=95)

    image = decoded(data, long_side=long_side)

    assert (image.width, image.height) == (1000, 700)
    expected = np.asarray(downscale(Image.fromarray(decoded(data).pixels), long_side), np.int16)
    assert image.pixels.shape == expected.shape
    assert np.abs(image.pixels - expected).mean() < 2
    assert np.abs(image.pixels - expected).max() <= 24


def test_a_small_image_is_not_enlarged() -> None:
    data = encoded(picture(), "PNG")
    np.testing.assert_array_equal(decoded(data, long_side=640).pixels, by_pillow(data))


# ----------------------------------------------------------------------------------- broken images


def png_chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + body) ^ damage
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", checksum)


def png_of(*chunks: bytes, width: int = 4, height: int = 4) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


GREY = zlib.compress(bytes(4 * 5))


def test_a_png_with_a_wrong_checksum_is_undecodable() -> None:
    assert decoded(png_of(png_chunk(b"IDAT", GREY))).pixels.max() == 0
    assert kind_of(png_of(png_chunk(b"IDAT", GREY, damage=1))) == "undecodable"
    assert kind_of(png_of(png_chunk(b"PLTE", bytes(3), damage=1))) == "undecodable"
    assert kind_of(png_of()) == "undecodable"


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}), ("GIF", {}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True}),
    ],
)  # fmt: skip
def test_a_file_that_ends_early_is_truncated(format: str, options: dict[str, Any]) -> None:
    whole = encoded(picture(), format, **options)
    assert kind_of(b"") == "truncated"
    for length in range(12, len(whole), max(1, len(whole) // 100)):
        result = result_of(whole[:length])
        if isinstance(result, Decoded):  # nothing but the end mark was missing
            np.testing.assert_array_equal(result.pixels, decoded(whole).pixels)
            assert length > 0.8 * len(whole)
        else:
            assert result.kind == "truncated", length


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"<!DOCTYPE html>\n<html><head>", "undecodable", "looks like HTML"),
        (b"\xef\xbb\xbf <HTML lang=de>", "undecodable", "looks like HTML"),
        (b"<?xml version='1.0'?><Error><Code>", "undecodable", "looks like XML"),
        (b'{"message": "not found"}', "undecodable", "looks like JSON"),
        ("Grüezi\nmitenand".encode(), "undecodable", "looks like text: Grüezi mitenand"),
        (b"<?xml version='1.0'?>\n<svg width='1'/>", "unsupported", "SVG"),
        (b"%PDF-1.7\n", "unsupported", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop", "unsupported", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "unsupported", "RAW"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "unsupported", "MP4"),
        (b"\xff\x0a\xfa\x1f", "unsupported", "JPEG XL"),
        (b"\x1aE\xdf\xa3\x01\0\0", "unsupported", "WebM"),
        (b"\0", "undecodable", "not an image"),
        (bytes(range(256)) * 4, "undecodable", "not an image"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, kind: str, says: str) -> None:
    result = result_of(data)
    assert isinstance(result, Undecodable)
    assert result.kind == kind
    assert says in result.message


def test_avif_is_named_where_pillow_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    assert result_of(b"\0\0\0\x18ftypavif\0\0\0\0mif1") == Undecodable("unsupported", "AVIF")


def test_the_preview_in_a_raw_photograph_is_not_the_photograph() -> None:
    page = TiffImagePlugin.ImageFileDirectory_v2()
    page[ExifTags.Base.NewSubfileType] = 1
    assert kind_of(encoded(picture(), "TIFF", tiffinfo=page)) == "unsupported"


def test_the_limit_on_pixels_is_exact_and_comes_before_decoding() -> None:
    data = encoded(picture(width=100, height=50), "PNG")
    assert isinstance(decode_image(data, max_pixels=5000, long_side=None), Decoded)
    for max_pixels in (4999, 2600, 10):
        result = decode_image(data, max_pixels=max_pixels, long_side=8)
        assert isinstance(result, Undecodable)
        assert result.kind == "too_large"
        assert "5,000 pixels" in result.message
    bomb = png_of(png_chunk(b"IDAT", GREY), width=2**31 - 1, height=2**31 - 1)
    assert kind_of(bomb) == "too_large"


def test_more_pixels_than_pillow_allows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decoded(encoded(picture(), "PNG")).width == 64
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_text_chunk_bomb_is_a_failed_row() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert kind_of(encoded(picture(), "PNG", pnginfo=text)) == "undecodable"


def test_decoding_in_threads_leaves_no_trace() -> None:
    noisy = encoded(picture("P"), "PNG", transparency=bytes(256))
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        for image in threads.map(decoded, [noisy] * 200):
            assert image.width == 64
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# -------------------------------------------------------------------------------------------- bombs


def test_bombs_are_refused_and_harmless_pictures_are_not() -> None:
    for name, data in hostile.refused().items():
        assert kind_of(data) == name.split()[0], name
    for name, data in hostile.harmless().items():
        assert decoded(data).width in (4, 8, 64, 1, 100_000), name


MEASURE = """
import sys
from pathlib import Path
from segbatch.images.decode import decode_image

def high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

first, files = ([p.read_bytes() for p in sorted(Path(f).iterdir())] for f in sys.argv[1:])
for data in first:  # also loads what libraries load once
    decode_image(data, max_pixels=4_000_000, long_side=None)
before = high_water()
for data in files:
    decode_image(data, max_pixels=4_000_000, long_side=None)
print(high_water() - before)
"""


def test_no_bomb_takes_more_memory_than_the_largest_image_may(tmp_path: Path) -> None:
    def of_side(side: int) -> dict[str, bytes]:
        size = side, side
        return {"rgba.png": encoded(Image.new("RGBA", size), "PNG"),
                "rgb.webp": encoded(Image.new("RGB", size), "WEBP", lossless=True, method=0),
                "floats.tif": encoded(Image.new("F", size), "TIFF")}  # fmt: skip

    folders = {
        tmp_path / "first": hostile.harmless() | of_side(20),
        tmp_path / "measured": hostile.refused() | of_side(2000),
    }
    for folder, files in folders.items():
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)

    def measured() -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *map(str, folders)],
            capture_output=True, check=True, timeout=100,
        )  # fmt: skip
        return int(done.stdout)

    # 76 MB, or 6 MB more, which the allocator takes in one process of ten with the same code and
    # files, and in some folders always. Another copy of the pixels would be 12 MB.
    assert any(measured() < 18 * 4_000_000 + 11_000_000 for _ in range(3))


def test_a_long_strip_is_an_image_of_one_line() -> None:
    image = decoded(encoded(Image.new("RGB", (100_000, 1)), "PNG"), long_side=1024)
    assert image.pixels.shape == (1, 1024, 3)
    assert (image.width, image.height) == (100_000, 1)


SEEDS = [encoded(picture(), format) for format in [*FORMATS, "JPEG2000", "ICO", "TGA", "PPM"]]
SEEDS += [
    encoded(picture("P"), "PNG", transparency=bytes(256)),
    encoded(picture("I;16"), "PNG"),
    encoded(picture("F"), "TIFF"),
    encoded(picture("CMYK"), "JPEG"),
    encoded(picture(), "TIFF", compression="tiff_lzw"),
    encoded(picture(), "JPEG", progressive=True),
    encoded(picture(), "AVIF"),
    encoded(picture(), "TIFF", compression="jpeg"),
    encoded(picture("1"), "TIFF", compression="group4"),
    encoded(picture("P"), "BMP"),
    *(data for data in hostile.refused().values() if 0 < len(data) < 1000),
]


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    positions = st.one_of(st.integers(0, min(len(data), 128) - 1), st.integers(0, len(data) - 1))
    for position in draw(st.lists(positions, max_size=6)):
        data[position] = draw(st.integers(0, 255))
    if draw(st.booleans()):  # a part of another file, or of this one again
        other = draw(st.sampled_from(SEEDS))
        start = draw(st.integers(0, len(other) - 1))
        position = draw(positions)
        data[position:position] = other[start : start + draw(st.integers(1, 200))]
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.one_of(st.binary(max_size=300), damaged_files()), st.sampled_from([None, 16]))
def test_no_bytes_raise_or_warn(data: bytes, long_side: int | None) -> None:
    result = result_of(data, long_side=long_side)
    assert isinstance(result, Decoded | Undecodable)
    if isinstance(result, Undecodable):
        pa.array([result.message], pa.string())


JPEGS = [
    encoded(picture(mode), "JPEG", **options)
    for mode in ("RGB", "L")
    for options in (
        {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"subsampling": "4:2:0"},
        {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}, {"keep_rgb": True},
    )
]  # fmt: skip


@st.composite
def damaged_jpegs(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(JPEGS)))
    for position in draw(st.lists(st.integers(2, len(data) - 1), max_size=3)):
        data[position] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.one_of(st.none(), st.integers(20, len(data))))])


@settings(deadline=None, max_examples=300, derandomize=True)
@given(damaged_jpegs())
def test_simplejpeg_and_pillow_agree_on_jpegs_good_and_damaged(data: bytes) -> None:
    [in_table] = decode(fetched(data), max_pixels=10**7, long_side=None, budget_bytes=10**5)[
        "pixels"
    ]
    result = result_of(data)
    if isinstance(result, Undecodable):
        assert in_table.as_py() is None
    else:
        np.testing.assert_array_equal(result.pixels, by_pillow(data))
        assert in_table.as_py() in (None, result.pixels.tobytes())  # or too large for the table


# ------------------------------------------------------------------------------------------ tables


def fetched(*contents: bytes | None) -> pa.Table:
    errors = [None if content is not None else "not_found" for content in contents]
    return pa.table(
        {
            "image_id": pa.array(range(len(contents)), pa.int64()),
            "uri": pa.array([f"s3://bucket/{row}" for row in range(len(contents))], pa.string()),
            "city": pa.array(["Zürich"] * len(contents), pa.string()),
            "data": pa.array(contents, pa.large_binary()),
            "error": pa.array(errors, pa.string()),
            "message": pa.array(errors, pa.string()),
        }
    )


def decode_all(table: pa.Table, budget_bytes: int = 10**6) -> pa.Table:
    return decode(table, max_pixels=10**6, long_side=32, budget_bytes=budget_bytes)


def test_a_table_keeps_its_rows_and_columns_and_gains_pixels() -> None:
    good = encoded(picture(), "PNG")
    given = fetched(good, None, b"<html>", good[:60])

    table = decode_all(given)

    assert table.column_names == [
        *given.column_names, "pixels", "width", "height", "model_width", "model_height",
    ]  # fmt: skip
    assert table.select(["image_id", "uri", "city"]) == given.select(["image_id", "uri", "city"])
    assert table["data"].to_pylist() == [None] * 4
    assert table["error"].to_pylist() == [None, "not_found", "undecodable", "truncated"]
    assert table["message"].null_count == 1
    assert table["width"].to_pylist() == [64, None, None, None]
    assert table["height"].to_pylist() == [48, None, None, None]
    assert table["model_width"].to_pylist() == [32, None, None, None]
    assert table["model_height"].to_pylist() == [24, None, None, None]
    pixels = np.frombuffer(table["pixels"][0].as_buffer(), np.uint8).reshape(24, 32, 3)
    np.testing.assert_array_equal(pixels, decoded(good, long_side=32).pixels)
    assert table["pixels"].null_count == 3
    table.validate(full=True)


def test_images_beyond_the_budget_stay_encoded() -> None:
    small, large = encoded(picture(), "PNG"), encoded(picture(width=32, height=32), "PNG")
    one = 32 * 24 * 3
    table = decode_all(fetched(small, large, small, small, b"x"), budget_bytes=2 * one)
    assert table["pixels"].is_valid().to_pylist() == [True, False, True, False, False]
    assert table["data"].to_pylist() == [None, large, None, small, None]
    assert table["width"].to_pylist() == [64, None, 64, None, None]
    assert table["error"].to_pylist() == [None, None, None, None, "undecodable"]
    assert len(table["pixels"].combine_chunks().buffers()[2]) == 2 * one
    table.validate(full=True)


def test_every_table_has_one_schema() -> None:
    schema = decode_all(fetched(encoded(picture(), "PNG"))).schema
    assert decode_all(fetched(None)).schema == schema
    assert decode_all(fetched()).schema == schema
    assert decode_all(fetched(b"x"), budget_bytes=0).schema == schema
    assert schema.field("pixels").type == pa.large_binary()
    assert schema.field("model_width").type == pa.int32()


# ------------------------------------------------------------------------------- other collections


HARD_IMAGES = sorted(Path(os.environ.get("SEGBATCH_HARD_IMAGES", os.devnull)).glob("**/*.png"))


@pytest.mark.parametrize("path", HARD_IMAGES or [None], ids=lambda path: path and path.stem)
def test_pngsuite(path: Path | None) -> None:
    """Willem van Schaik's PngSuite, where ``SEGBATCH_HARD_IMAGES`` names a folder that holds it."""
    if path is None:
        return
    data = path.read_bytes()
    if path.name.startswith("x"):
        assert kind_of(data) == "undecodable"
    else:
        np.testing.assert_array_equal(decoded(data).pixels, by_pillow(data))
