"""Diagnosis: what is wrong with a file that Pillow did not decode.

The file is looked at rather than the exception: most of those say no more than "cannot identify".
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, features

DecodeErrorKind = Literal["truncated", "undecodable", "unsupported", "too_large"]


HEAD_BYTES = 1024  # of a file tell what it is


VIDEO_HINT = "its frames are images where it is listed as images: {video: …}"


# How files begin that Pillow does not open, and what they are.
FOREIGN = (
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"FUJIFILMCCD-RAW", "RAW photograph"),
    (b"IIRO", "RAW photograph"),
    (b"IIRS", "RAW photograph"),
    (b"MMOR", "RAW photograph"),
    (b"IIU\0", "RAW photograph"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"\0\0\x01\xb3", "MPEG video"),
    (b"\0\0\x01\xba", "MPEG video"),
    (b"FLV\x01", "Flash video"),
    (b"0&\xb2u\x8ef\xcf\x11", "Windows Media video"),
    (b"OggS", "Ogg video"),
    (b"\x06\x0e+4\x02\x05\x01\x01", "MXF video"),
    (b"\x1f\x07\0", "DV video"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
)


# The same for files that begin with a box "ftyp": by the brand in it; any other one is a video.
HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
)  # fmt: skip


AVIF_BRANDS = frozenset({b"avif", b"avis"})


@dataclass(frozen=True)
class Undecodable:
    """Why there is no image; ``message`` is one line."""

    kind: DecodeErrorKind
    message: str


def diagnose(data: bytes, error: Exception) -> Undecodable:
    """Name what is wrong with a file that Pillow did not decode. The file is looked at rather than
    the exception: most of those say no more than "cannot identify".
    """
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if foreign := _foreign(data):
        hint = f": {VIDEO_HINT}" if is_video(data) else ""
        return Undecodable("unsupported", foreign + hint)
    if isinstance(error, UnidentifiedImageError):
        message = "not an image that the installed Pillow knows, or a damaged one"
        head = data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
        if _is_text(head):
            name = _markup(head)
            kind: DecodeErrorKind = "unsupported" if name == "SVG" else "undecodable"
            start = " ".join(head[:60].decode(errors="replace").split())
            return Undecodable(kind, f"looks like {name}: {start}")
    if re.search("[Tt]runcated|but only got", message) or ends_early(data):
        return Undecodable("truncated", "the file ends early")
    if re.search("cannot find loader|not available|not supported|unsupported|Ghostscript", message):
        return Undecodable("unsupported", message)
    return Undecodable("undecodable", message)


def is_video(data: bytes) -> bool:
    """Whether a file that begins with ``data``, :data:`HEAD_BYTES` or all of it, is a video."""
    return (_foreign(data) or "").endswith("video")


def _foreign(data: bytes) -> str | None:
    """The format, if it is a known one that the installed Pillow does not open."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in AVIF_BRANDS:
            return None if features.check("avif") else "AVIF"
        if brand in HEIF_BRANDS:
            return "HEIC"
        return "RAW photograph" if brand == b"crx " else "MP4 or QuickTime video"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI video"
    if b"GGG" in (data[:564:188], data[4:580:192]):  # each packet of a stream begins so
        return "MPEG video"
    return next((name for magic, name in FOREIGN if data.startswith(magic)), None)


def _is_text(head: bytes) -> bool:
    printable = bytes([*b"\t\n\f\r", *range(0x20, 0x7F), *range(0x80, 0x100)])
    return head[:1].isascii() and not head.translate(None, printable)


def _markup(head: bytes) -> str:
    lower = head.lower()
    if lower.startswith(b"<"):
        if b"<svg" in lower:
            return "SVG"
        return "HTML" if b"<html" in lower or b"<!doctype html" in lower else "XML"
    return "JSON" if lower.startswith((b"{", b"[")) else "text"


def _tiff_ends_early(data: bytes) -> bool:
    """Whether the first page's directory, or the pixels that it points at, are cut off."""
    try:
        file = io.BytesIO(data)
        page = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(page.next)
        page.load(file)
        strips = (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts)
        tiles = (ExifTags.Base.TileOffsets, ExifTags.Base.TileByteCounts)
        starts, sizes = (page[tag] for tag in (tiles if tiles[0] in page else strips))
        return any(start + size > len(data) for start, size in zip(starts, sizes, strict=False))
    except Exception:  # a directory without an end, or without pixels
        return True


def _boxes_end_early(data: bytes) -> bool:
    """Whether the last box of a file of boxes (AVIF, JPEG 2000) is cut off."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 0:  # to the end of the file, wherever that is
            return False
        header = 16 if size == 1 else 8
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        position += max(size, header)
    return position != len(data)


# How files begin, and whether such a file, known to be broken, is shorter than it says or lacks
# what its format ends with.
ENDS_EARLY: tuple[tuple[int, bytes, Callable[[bytes], bool]], ...] = (
    (0, b"\xff\xd8", lambda data: not data.rstrip(b"\0").endswith(b"\xff\xd9")),
    (0, b"\x89PNG", lambda data: b"IEND" not in data),
    (0, b"GIF8", lambda data: not data.endswith(b";")),
    (0, b"RIFF", lambda data: len(data) < 8 + number(data, 4, "little")),
    (0, b"BM", lambda data: len(data) < number(data, 2, "little")),
    (0, b"II*\0", _tiff_ends_early),
    (0, b"MM\0*", _tiff_ends_early),
    (4, b"ftyp", _boxes_end_early),
    (4, b"jP  ", _boxes_end_early),
    (0, b"\xff\x4f\xff\x51", lambda data: not data.endswith(b"\xff\xd9")),  # bare JPEG 2000
)


def ends_early(data: bytes) -> bool:
    return any(test(data) for start, magic, test in ENDS_EARLY if data.startswith(magic, start))


def number(data: bytes, start: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(data[start : start + 4], order)


# Bombs: files that would take a decoder hours or many gigabytes, whatever their pixels.
#
# Pillow holds to its limit on pixels, and to limits on compressed texts and profiles. What is left
# are files of millions of parts, which it goes through one by one in Python, headers that promise
# more pixels than the file can hold, and photographs of thousands of scans.


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
