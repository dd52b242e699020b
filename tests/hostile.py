"""Hostile files: real images of a few kilobytes that would take a decoder hours or all memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

SMALL = Image.effect_mandelbrot((64, 48), (-3, -2.5, 2, 2.5), 100).convert("RGB")
GIGA = 60_000  # × 60,000 pixels


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def deflated_zeros(length: int) -> bytes:
    """``length`` zeros, compressed to a thousandth of it."""
    packer = zlib.compressobj(9)
    whole, rest = divmod(length, 1 << 20)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(whole)) + (
        packer.compress(bytes(rest)) + packer.flush()
    )


# ------------------------------------------------------------------------------------------- PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colors: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colors, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


PIXELS = chunk(b"IDAT", zlib.compress(bytes(4 * 5)))  # of 4 × 4


# ------------------------------------------------------------------------------------------ JPEG


def jpeg_with_header(width: int, height: int, padding: int = 0, scans: int = 1) -> bytes:
    """The small picture with another size in its header, and ``padding`` × 64 KB of comments."""
    data = bytearray(encoded(SMALL, "JPEG", progressive=True))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    last = bytes(data[data.rindex(b"\xff\xda") : -2])
    return bytes(data[:-2]) + last * (scans - 1) + segment(0xFE, bytes(65533)) * padding + EOI


EOI = b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(segments: bytes) -> bytes:
    data = encoded(SMALL, "JPEG")
    return data[:2] + segments + data[2:]


def exif_bomb(tags: int, size: int) -> bytes:
    """EXIF whose tags all refer to the same bytes, nearly all of it."""
    entries = [struct.pack("<HHII", tag, 7, size - 100, 50) for tag in range(tags)]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + b"".join(entries) + bytes(4)
    return head.ljust(size, b"\0")


# ------------------------------------------------------------------------------------ GIF, TIFF, …


def gif(width: int, height: int, *frames: bytes) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + b"".join(frames) + b";"


def gif_frame(width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0"


def tiff(width: int, height: int, *tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """Grey, 8 bits; each tag is its number, type, count and value. ``data`` begins at 8."""
    entries = sorted(
        [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
         *tags]
    )  # fmt: skip
    page = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(entries)) + page + bytes(4)


def one_strip(length: int, *, compression: int = 1) -> list[tuple[int, int, int, int]]:
    return [(259, 3, 1, compression), (273, 4, 1, 8), (278, 4, 1, 1 << 31), (279, 4, 1, length)]


def looping_tiff() -> bytes:
    """A page that refers to itself as the next page."""
    data = tiff(4, 4, *one_strip(16), data=bytes(16))
    return data[:-4] + data[4:8]


def webp_canvas(side: int) -> bytes:
    """An animation of two small frames on a canvas of ``side`` × ``side``."""
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + sizes + bytes(46)


def icon(data: bytes) -> bytes:
    """An icon that declares 16 × 16 pixels and holds ``data``."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22) + data


def many_frames(format: str, number: int) -> bytes:
    frames = [Image.new("RGB", (8, 8), (n % 256, n // 256, 0)) for n in range(number)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def refused() -> dict[str, bytes]:
    """Files that must not be decoded, by the expected kind of error and a name."""
    giga = png(GIGA, GIGA, chunk(b"IDAT", deflated_zeros(10_000_000)), depth=1)
    lines = deflated_zeros(GIGA * GIGA // 200)
    inflated = b"x\0\0" + deflated_zeros(1 << 24)
    return {
        "too_large gigapixels.png": giga,
        "too_large gigapixels.ico": icon(giga),
        "too_large gigapixels.tif": tiff(
            GIGA, GIGA, *one_strip(len(lines), compression=8), data=lines
        ),
        "too_large gigapixels.gif": gif(65535, 65535, gif_frame(65535, 65535)),
        "too_large frame-larger-than-the-screen.gif": gif(1, 1, gif_frame(65535, 65535)),
        "too_large canvas.webp": webp_canvas(16383),
        "too_large canvas-beyond-webp.webp": webp_canvas(1 << 24),
        "too_large gigapixels.bmp": bmp(2**31 - 1, 2**31 - 1),
        "too_large header.jpg": jpeg_with_header(65500, 65500),
        "too_large strip.png": png(3_000_000, 1, chunk(b"IDAT", deflated_zeros(3_000_001))),
        "truncated lying-header.jpg": jpeg_with_header(3000, 3000),
        "undecodable scans.jpg": jpeg_with_header(2500, 2500, padding=1, scans=5000),
        "undecodable segments-of-exif.jpg": jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(9)) * 200),
        "undecodable text.png": png(4, 4, chunk(b"zTXt", inflated), PIXELS),
        "undecodable profile.png": png(4, 4, chunk(b"iCCP", inflated), PIXELS),
        "undecodable tiny-tiles.tif": tiff(
            1100, 1100, (259, 3, 1, 1), (322, 3, 1, 1), (323, 3, 1, 1), (324, 4, 1_210_000, 8),
            (325, 4, 1_210_000, 8), data=struct.pack("<I", 8) * 1_210_000,
        ),
        "undecodable tile-larger-than-all.tif": tiff(
            64, 64, (259, 3, 1, 8), (322, 4, 1, GIGA), (323, 4, 1, GIGA), (324, 4, 1, 8),
            (325, 4, 1, len(lines)), data=lines,
        ),
        "undecodable no-end.gif": gif(16, 16)[:-1] + b"\1" * 4_000_000,
        "undecodable comments.ppm": b"P3 1000 1000 255\n" + b"#\n" * 100_000,
        "unsupported endless-loop.jpg": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
        ),
        "unsupported entities.svg.jpg": (
            b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]>"
            b"<svg>&b;</svg>"
        ),
        "undecodable page.jpg": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        "truncated nothing.jpg": b"",
    }  # fmt: skip


def harmless() -> dict[str, bytes]:
    """Files that look hostile but are pictures."""
    return {
        "wide.png": encoded(Image.new("RGB", (100_000, 1)), "PNG"),
        "tall.png": encoded(Image.new("RGB", (1, 100_000)), "PNG"),
        "pixels-that-go-on.png": png(4, 4, chunk(b"IDAT", deflated_zeros(1 << 28))),
        "exif.jpg": jpeg_with(
            b"".join(
                segment(0xE1, b"Exif\0\0" + part)
                for bomb in [exif_bomb(20_000, 600_000)]
                for part in (bomb[start : start + 65_000] for start in range(0, len(bomb), 65_000))
            )
        ),
        "exif.webp": encoded(SMALL, "WEBP", exif=exif_bomb(20_000, 600_000)),
        "exif.png": png(4, 4, chunk(b"eXIf", exif_bomb(20_000, 600_000)), PIXELS),
        "looping.tif": looping_tiff(),
        "pages.tif": many_frames("TIFF", 500),
        "frames.webp": many_frames("WEBP", 500),
        "frames.gif": many_frames("GIF", 500),
        "palette-too-short.png": png(4, 4, chunk(b"PLTE", b"\1\2\3"), PIXELS, colors=3),
        "no-palette.png": png(4, 4, PIXELS, colors=3),
    }
