"""Images for tests: pictures in which several classes win, and files that are no images."""

import io
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tests.model.conftest import picture

SIZES = [(96, 128), (64, 64), (100, 60), (128, 96), (80, 80), (60, 150), (31, 47)]  # height, width


def image(seed: int, height: int = 96, width: int = 128) -> Image.Image:
    return Image.fromarray(picture(height, width, seed))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def jpeg(seed: int, height: int = 96, width: int = 128, comment: bytes = b"") -> bytes:
    return encoded(image(seed, height, width), "JPEG", quality=90, comment=comment)


def various(seed: int) -> tuple[str, bytes]:
    """An extension and a file; the seed chooses format, mode and size in turn."""
    height, width = SIZES[seed % len(SIZES)]
    plain = image(seed, height, width)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    text = PngInfo()
    text.add_text("author", "nobody")
    return [
        ("jpg", encoded(plain, "JPEG", quality=90)),
        ("png", encoded(plain.convert("RGBA"), "PNG", pnginfo=text)),
        ("JPG", encoded(plain, "JPEG", quality=90, exif=exif)),
        ("png", encoded(plain.quantize(64), "PNG")),
        ("webp", encoded(plain, "WEBP", quality=90)),
        ("jpeg", encoded(plain.convert("L"), "JPEG")),
        ("tif", encoded(image(seed, 220, 300), "TIFF")),
    ][seed % 7]


def broken() -> dict[str, bytes]:
    """Files that are no images; a name begins with the kind of error to expect."""
    whole = jpeg(99)
    return {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated-empty.png": b"",
        "undecodable.jpg": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
        "undecodable-json.png": b'{"message": "not found"}',
        "unsupported.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "too_large-pixels.png": encoded(Image.new("RGB", (700, 700)), "PNG"),
        "too_large-bytes.png": encoded(image(98, 250, 400), "PNG"),
    }
