import io
import warnings
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from segbatch.errors import Incomplete
from segbatch.formats.format import Unusable
from segbatch.formats.photo import (
    AS_STORED,
    checked_size,
    read_sample_file,
    stored_size,
    upright_size,
)
from tests.conftest import S3
from tests.labels.files import photograph


def encoded(format: str, orientation: int | None = None, mode: str = "RGB") -> bytes:
    """A noisy picture of 90 × 40 pixels."""
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    noise = Image.effect_noise((90, 40), 80).convert(mode)
    noise.save(buffer, format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 7, 8])
def test_the_size_is_that_of_the_upright_image(format: str, orientation: int | None) -> None:
    turned = orientation is not None and orientation >= 5
    assert upright_size(encoded(format, orientation)) == ((40, 90) if turned else (90, 40))


def test_the_size_as_stored_comes_with_what_makes_it_upright() -> None:
    assert stored_size(encoded("JPEG", 6)) == ((90, 40), 6)
    assert stored_size(encoded("JPEG")) == ((90, 40), 1)


def test_an_orientation_that_there_is_not_counts_as_none() -> None:
    assert stored_size(encoded("JPEG", 9)) == ((90, 40), 1)


def test_damaged_exif_counts_as_none_and_is_not_warned_of() -> None:
    buffer = io.BytesIO()
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"
    Image.new("RGB", (90, 40)).save(buffer, "JPEG", exif=damaged)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert stored_size(buffer.getvalue()) == ((90, 40), 1)
    assert warned == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_have_a_size(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    assert upright_size(encoded(format, mode=mode)) == (90, 40)


def damaged_png() -> bytes:
    data = bytearray(encoded("PNG"))
    data[data.index(b"IDAT") + 2000] ^= 255
    return bytes(data)


@pytest.mark.parametrize(("data", "why"), [
    (b"", "0 bytes"),
    (b"GIF89a is what a text says", "cannot be decoded"),
    (b"{}", "looks like JSON"),
    (encoded("JPEG")[:1500], "truncated"),
    (encoded("PNG")[:3000], "cannot be decoded"),
    (damaged_png(), "cannot be decoded"),
])  # fmt: skip
def test_an_image_that_does_not_decode_is_unusable(data: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        upright_size(data)


@pytest.mark.parametrize(
    ("size", "orientation", "labelled", "unsure"),
    [
        ((90, 40), 1, (90, 40), False),
        ((90, 40), 1, None, False),
        ((90, 40), 3, (90, 40), True),
        ((90, 40), 2, (90, 40), True),
        ((90, 40), 6, (40, 90), False),
        ((90, 40), 6, None, True),
        ((90, 90), 6, (90, 90), True),
        ((90, 90), 1, (90, 90), False),
    ],
)
def test_labels_of_the_same_size_do_not_show_that_they_are_upright(
    size: tuple[int, int], orientation: int, labelled: tuple[int, int] | None, unsure: bool
) -> None:
    picture = photograph(*size, orientation)
    upright = size[::-1] if orientation == 6 else size
    assert checked_size(picture, labelled, "the JSON") == (upright, unsure)


def test_labels_of_the_image_as_it_is_stored_are_refused() -> None:
    with pytest.raises(Unusable, match=f"the JSON is for 90×40, {AS_STORED}, .* turns to 40×90"):
        checked_size(photograph(90, 40, 6), (90, 40), "the JSON")


def test_a_missing_file_is_unusable_and_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=rf"{tmp_path}/a\.jpg: cannot be read: no such file"):
        read_sample_file(f"{tmp_path}/a.jpg")


def test_a_storage_that_refuses_us_is_no_fault_of_the_image(s3: S3) -> None:
    uri = s3.uri("a.jpg")
    s3.put(uri, encoded("JPEG"))
    assert upright_size(read_sample_file(uri)) == (90, 40)
    s3.break_down({"method": "GET", "part": "a.jpg", "status": 400, "code": "ExpiredToken"})
    try:
        with pytest.raises(Incomplete, match=r"a\.jpg: cannot be read"):
            read_sample_file(uri)
    finally:
        s3.break_down()
