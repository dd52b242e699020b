"""Bombs: files that would take a decoder hours or many gigabytes, whatever their pixels.

Pillow holds to its limit on pixels, and to limits on compressed texts and profiles. What is left
are files of millions of parts, which it goes through one by one in Python, headers that promise
more pixels than the file can hold, and photographs of thousands of scans.
"""

from __future__ import annotations

import io
import struct

from PIL import Image, TiffImagePlugin

from segbatch.images.faults import DecodeErrorKind

# Parts of one file: chunks, segments, blocks, strips. A PNG of 256 MB has 32,000 chunks of the
# usual size, a TIFF of 200 megapixels 780,000 of the smallest tiles.
MAX_PARTS = 1_000_000
READS_PER_PART = 3
MAX_SCANS = 1000  # of a JPEG, each over all of its pixels; libjpeg itself writes 10
MAX_EXIF_PARTS = 100  # of a JPEG, 64 KB each; Pillow copies them all for each further one
MAX_EXIF_BYTES = 1 << 23
PADDED_TO = 64  # so does the model pad both sides
MAX_COMMENTS = 1000  # of a plain PPM; Pillow copies a megabyte for each

# Types of TIFF tags whose values are kept as bytes and do not become a Python number each.
_BYTES = frozenset({1, 2, 6, 7})


class Bomb(Exception):
    """The file is made to take for ever, or is damaged so that it would."""

    def __init__(self, message: str, kind: DecodeErrorKind = "undecodable") -> None:
        super().__init__(message)
        self.kind = kind


class Encoded(io.BytesIO):
    """An encoded image as a file that can be read a few million times, and no more.

    ``reads_left`` may be raised by a read for each pixel, once it is known how many there are.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads_left = READS_PER_PART * MAX_PARTS
        self.exif_parts = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._count()
        if data.startswith(b"Exif\0\0"):
            self.exif_parts += 1
            if self.exif_parts > MAX_EXIF_PARTS:
                raise Bomb(f"more than {MAX_EXIF_PARTS} segments of EXIF")
        return data

    def readline(self, size: int | None = -1) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise Bomb(f"more than {MAX_PARTS:,} parts")


def refuse_unopened(data: bytes) -> None:
    """Raise :class:`Bomb` for what Pillow already falls for when it opens a file."""
    if data[:4] in TiffImagePlugin.PREFIXES and _numbers_in_tiff(data) > MAX_PARTS:
        raise Bomb(f"a TIFF of more than {MAX_PARTS:,} strips, tiles or other numbers")


def refuse_undecoded(data: bytes, image: Image.Image) -> None:
    """Raise :class:`Bomb` for what it falls for when it decodes one, and for a JPEG that is too
    short for the size that its header says: libjpeg would make the rest up.
    """
    is_plain = data[:2] in (b"P1", b"P2", b"P3")
    if image.format == "PPM" and is_plain and data.count(b"#") > MAX_COMMENTS:
        raise Bomb(f"a PPM of more than {MAX_COMMENTS:,} comments")
    if image.format not in ("JPEG", "MPO"):
        return
    if image.width * image.height > 8 * len(data) * 64:  # a block of 8 × 8 takes a bit at least
        message = f"{len(data):,} bytes cannot be {image.width}×{image.height} pixels"
        raise Bomb(message, "truncated")
    if data.count(b"\xff\xda\0") > MAX_SCANS:
        raise Bomb(f"a JPEG of more than {MAX_SCANS:,} scans")


def refuse_strip(width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`Bomb` for the grid of a strip of few lines, of which padding makes a giant.

    A panorama of 100,000 × 1 pixels may pass, one of 100,000,000 × 1 not.
    """
    padded = (width + -width % PADDED_TO) * (height + -height % PADDED_TO)
    if padded > 4 * max_pixels:
        raise Bomb(
            f"{width}×{height}, padded to {padded:,} pixels; limits.max_pixels is {max_pixels:,}",
            "too_large",
        )


def _numbers_in_tiff(data: bytes) -> int:
    """How many numbers are in the tags of the first page, by their counts, as far as they fit."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = b"+" in data[2:4]
    entry = struct.Struct(order + ("HHQ8x" if is_big else "HHI4x"))
    numbers = 0
    try:
        (start,) = struct.unpack_from(order + "IQ"[is_big], data, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + "HQ"[is_big], data, start)
        if entries > MAX_PARTS:
            return int(entries)
        start += 8 if is_big else 2
        for number in range(entries):
            _, kind, count = entry.unpack_from(data, start + number * entry.size)
            if kind not in _BYTES and 2 * count <= len(data):
                numbers += count
    except (struct.error, OverflowError):  # broken: Pillow says how
        pass
    return numbers
