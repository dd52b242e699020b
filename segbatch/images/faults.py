"""What is wrong with an image file: refused before it is decoded, diagnosed after decoding failed.

Some files would take a decoder hours or many gigabytes, whatever their number of pixels. Pillow
enforces its limit on pixels and limits on compressed texts and profiles. It does not stop files of
millions of parts, which it walks one by one in Python, headers that promise more pixels than the
file can hold, or JPEGs of thousands of scans. These are refused here.

The diagnosis examines the file rather than the exception: most of Pillow's exceptions only say
"cannot identify".
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, features

from segbatch import storage
from segbatch.errors import Incomplete, SourceError
from segbatch.images.scaling import PADDING_MULTIPLE
from segbatch.storage.failures import NoCredentials

DecodeErrorKind = Literal["truncated", "undecodable", "unsupported", "too_large"]
HEAD_BYTES = 1024  # this many bytes of a file are enough to recognise it
VIDEO_HINT = "for its frames write images: {video: …}"
HEIC_HINT = "convert it first, for example: mogrify -format jpg *.heic"  # Pillow needs a plugin

# Parts of one file: chunks, segments, blocks, strips. A PNG of 256 MB has 32,000 chunks of the
# usual size, a TIFF of 200 megapixels 780,000 of the smallest tiles.
MAX_PARTS = 1_000_000
READS_PER_PART = 3
MAX_SCANS = 1000  # of a JPEG, each over all of its pixels; libjpeg itself writes 10
MAX_EXIF_PARTS = 100  # of a JPEG, 64 KB each; Pillow copies all previous ones for each new one
MAX_EXIF_BYTES = 1 << 23
MAX_COMMENTS = 1000  # of a plain PPM; Pillow copies a megabyte for each

# Types of TIFF tags whose values stay bytes instead of becoming one Python number each.
_BYTE_TAG_TYPES = frozenset({1, 2, 6, 7})

# First bytes of formats that Pillow does not open, and their names.
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

# Brands of files that begin with an "ftyp" box; a file of any other brand is a video.
HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
)  # fmt: skip
AVIF_BRANDS = frozenset({b"avif", b"avis"})


@dataclass(frozen=True)
class Undecodable:
    """Why there is no image; ``message`` is one line."""

    kind: DecodeErrorKind
    message: str


# What reading an image gives: the bytes of its file, or why there are none.
Content = bytes | Undecodable | storage.Unreadable


def why_unreadable(error: SourceError | Incomplete) -> Undecodable | storage.Unreadable:
    """Why an object could not be read as its format wants it, for the rows of its parts."""
    cause = error.__cause__
    if isinstance(error, Incomplete):
        return storage.Unreadable("unavailable", storage.one_line(cause or error))
    message = storage.one_line(error)
    if isinstance(cause, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return storage.Unreadable("not_found", message)
    if isinstance(cause, NoCredentials):
        return storage.Unreadable(storage.REFUSED_CREDENTIALS, message)
    if isinstance(cause, PermissionError):
        return storage.Unreadable("forbidden", message)
    return Undecodable("undecodable", message)


class RefusedImage(Exception):
    """The image must not be decoded; ``kind`` says why, so that no diagnosis is needed."""

    def __init__(self, message: str, kind: DecodeErrorKind = "undecodable") -> None:
        super().__init__(message)
        self.kind = kind


# ----------------------------------------------------------------------------------------- refusing


def refuse_before_opening(data: bytes) -> None:
    """Raise :class:`RefusedImage` for files that would already stall Pillow when it opens them."""
    if not data:
        raise RefusedImage("0 bytes", "truncated")
    if data[:4] in TiffImagePlugin.PREFIXES and _numbers_in_tiff(data) > MAX_PARTS:
        raise RefusedImage(f"a TIFF of more than {MAX_PARTS:,} strips, tiles or other numbers")


def _numbers_in_tiff(data: bytes) -> int:
    """The number of values in the tags of the first page, by their counts, if they fit the file."""
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
        for index in range(entries):
            _, kind, count = entry.unpack_from(data, start + index * entry.size)
            if kind not in _BYTE_TAG_TYPES and 2 * count <= len(data):
                numbers += count
    except (struct.error, OverflowError):  # a damaged directory: Pillow says what is wrong
        pass
    return numbers


class LimitedFile(io.BytesIO):
    """An encoded image as a file that allows a few million reads and raises at the next one.

    The caller may raise ``reads_left`` by one read per pixel once it knows the number of pixels.
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
                raise RefusedImage(f"more than {MAX_EXIF_PARTS} segments of EXIF")
        return data

    def readline(self, size: int | None = -1) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise RefusedImage(f"more than {MAX_PARTS:,} parts")


def refuse_before_decoding(data: bytes, image: Image.Image) -> None:
    """Raise for an opened image that would stall the decoder, or decode to the wrong pixels.

    Raises :class:`RefusedImage`; or ``OSError`` or ``ValueError`` as a decoder would, for
    :func:`diagnose`.
    """
    is_plain_text = data[:2] in (b"P1", b"P2", b"P3")
    if image.format == "PPM" and is_plain_text and data.count(b"#") > MAX_COMMENTS:
        raise RefusedImage(f"a PPM of more than {MAX_COMMENTS:,} comments")
    if image.format in ("JPEG", "MPO"):
        _refuse_jpeg(data, image.width, image.height)
    if image.format == "TIFF":
        _refuse_preview(data, image)
    if image.format == "PNG":
        _verify_checksums(data)
    if image.format == "JPEG2000" and ends_early(data):
        raise OSError("truncated")  # OpenJPEG returns black pixels for missing tiles


def _refuse_jpeg(data: bytes, width: int, height: int) -> None:
    """Refuse a JPEG of too many scans, and one too short for the size in its header, for which
    libjpeg would invent the missing pixels.
    """
    if width * height > 8 * len(data) * 64:  # a block of 8 × 8 pixels takes at least one bit
        message = f"{len(data):,} bytes cannot be {width}×{height} pixels"
        raise RefusedImage(message, "truncated")
    if data.count(b"\xff\xda\0") > MAX_SCANS:
        raise RefusedImage(f"a JPEG of more than {MAX_SCANS:,} scans")


def _refuse_preview(data: bytes, image: Image.Image) -> None:
    """RAW photographs are TIFF files whose first page is a small preview, not the photograph."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    is_preview = tags.get(ExifTags.Base.NewSubfileType, 0) == 1
    if is_preview or ExifTags.Base.DNGVersion in tags or data[8:10] == b"CR":
        raise OSError("not supported: a RAW photograph, or a first page that is only a preview")


def _verify_checksums(data: bytes) -> None:
    """Raise ``ValueError`` for a wrong checksum of a PNG's pixel data, which Pillow does not check
    although it checks those of all other chunks.
    """
    view, position = memoryview(data), 8
    for _ in range(MAX_PARTS):
        end = position + 8 + _uint32(data, position, "big")
        if end + 4 > len(data):  # Pillow decides whether a chunk that is cut off matters
            return
        is_pixels = data.startswith(b"IDAT", position + 4)
        if is_pixels and zlib.crc32(view[position + 4 : end]) != _uint32(data, end, "big"):
            raise ValueError("wrong checksum of the pixel data")
        position = end + 4
    raise RefusedImage(f"a PNG of more than {MAX_PARTS:,} chunks")


def refuse_strip(width: int, height: int, max_pixels: int) -> None:
    """Raise :class:`RefusedImage` for an image of few lines that padding would make huge.

    A panorama of 100,000 × 1 pixels may pass, one of 100,000,000 × 1 not.
    """
    padded = (width + -width % PADDING_MULTIPLE) * (height + -height % PADDING_MULTIPLE)
    if padded > 4 * max_pixels:
        raise RefusedImage(
            f"{width}×{height}, padded to {padded:,} pixels; limits.max_pixels is {max_pixels:,}",
            "too_large",
        )


# --------------------------------------------------------------------------------------- diagnosing


def diagnose(data: bytes, error: Exception, max_pixels: int) -> Undecodable:
    """What is wrong with a file that was not decoded because of ``error``."""
    if isinstance(error, RefusedImage):
        return Undecodable(error.kind, str(error))
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        size = re.search(r"\d+", str(error))
        pixels = f"{int(size[0]):,}" if size else "too many"
        return Undecodable("too_large", f"{pixels} pixels; limits.max_pixels is {max_pixels:,}")
    if isinstance(error, MemoryError):
        return Undecodable("too_large", "not enough memory to decode it")
    return _diagnose_broken(data, error)


def _diagnose_broken(data: bytes, error: Exception) -> Undecodable:
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if foreign := _foreign_format(data):
        hint = VIDEO_HINT if is_video(data) else HEIC_HINT if foreign == "HEIC" else ""
        return Undecodable("unsupported", foreign + f": {hint}" * bool(hint))
    if isinstance(error, UnidentifiedImageError):
        message = "not an image that the installed Pillow knows, or a damaged one"
        head = data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
        if _is_text(head):
            language = _text_language(head)
            kind: DecodeErrorKind = "unsupported" if language == "SVG" else "undecodable"
            start = " ".join(head[:60].decode(errors="replace").split())
            return Undecodable(kind, f"looks like {language}: {start}")
    if re.search("[Tt]runcated|but only got", message) or ends_early(data):
        return Undecodable("truncated", "the file ends early")
    if re.search("cannot find loader|not available|not supported|unsupported|Ghostscript", message):
        return Undecodable("unsupported", message)
    return Undecodable("undecodable", message)


def is_video(data: bytes) -> bool:
    """Whether a file is a video, by ``data``: its first :data:`HEAD_BYTES` bytes, or all of it."""
    return (_foreign_format(data) or "").endswith("video")


def _foreign_format(data: bytes) -> str | None:
    """The name of the format, if it is a known one that the installed Pillow does not open."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in AVIF_BRANDS:
            return None if features.check("avif") else "AVIF"
        if brand in HEIF_BRANDS:
            return "HEIC"
        return "RAW photograph" if brand == b"crx " else "MP4 or QuickTime video"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI video"
    if b"GGG" in (data[:564:188], data[4:580:192]):  # the first byte of each packet of a stream
        return "MPEG video"
    return next((name for magic, name in FOREIGN if data.startswith(magic)), None)


def _is_text(head: bytes) -> bool:
    printable = bytes([*b"\t\n\f\r", *range(0x20, 0x7F), *range(0x80, 0x100)])
    return head[:1].isascii() and not head.translate(None, printable)


def _text_language(head: bytes) -> str:
    lower = head.lower()
    if lower.startswith(b"<"):
        if b"<svg" in lower:
            return "SVG"
        return "HTML" if b"<html" in lower or b"<!doctype html" in lower else "XML"
    return "JSON" if lower.startswith((b"{", b"[")) else "text"


def ends_early(data: bytes) -> bool:
    """Whether a broken file is shorter than its header says, or lacks the end mark of its format.

    Says nothing about an intact file: many files without an end mark decode well.
    """
    return any(test(data) for start, magic, test in _ENDS_EARLY if data.startswith(magic, start))


def _tiff_ends_early(data: bytes) -> bool:
    """Whether the directory of the first page, or the pixels that it points to, are cut off."""
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
        size = _uint32(data, position, "big")
        if size == 0:  # the box extends to the end of the file
            return False
        header = 16 if size == 1 else 8
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        position += max(size, header)
    return position != len(data)


def _uint32(data: bytes, start: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(data[start : start + 4], order)


# Offset and first bytes of a format, and its test for a broken file that ends early.
_ENDS_EARLY: tuple[tuple[int, bytes, Callable[[bytes], bool]], ...] = (
    (0, b"\xff\xd8", lambda data: not data.rstrip(b"\0").endswith(b"\xff\xd9")),
    (0, b"\x89PNG", lambda data: b"IEND" not in data),
    (0, b"GIF8", lambda data: not data.endswith(b";")),
    (0, b"RIFF", lambda data: len(data) < 8 + _uint32(data, 4, "little")),
    (0, b"BM", lambda data: len(data) < _uint32(data, 2, "little")),
    (0, b"II*\0", _tiff_ends_early),
    (0, b"MM\0*", _tiff_ends_early),
    (4, b"ftyp", _boxes_end_early),
    (4, b"jP  ", _boxes_end_early),
    (0, b"\xff\x4f\xff\x51", lambda data: not data.endswith(b"\xff\xd9")),  # bare JPEG 2000
)
