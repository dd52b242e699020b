"""Decode: the bytes of an image file → upright RGB, or the reason why not.

Every format that the installed Pillow opens, first frame, any mode. The pixels are those of
Pillow's own ``convert("RGB")`` (alpha is dropped, colour profiles are not applied), turned as
EXIF says, except where that would be wrong: numbers of more than 8 bits are scaled and not
clipped, and a PNG whose pixel data has a wrong checksum is broken.

Pillow opens every file, and decodes it unless it is an ordinary JPEG: that goes through the same
libjpeg-turbo by simplejpeg, which writes the same pixels where they shall lie, in half the time
(``scripts/bench data``). Whatever simplejpeg does not like is Pillow's to judge.

Nothing that a file holds raises, warns or logs: it becomes an :class:`Undecodable`.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from segbatch.images.faults import (
    MAX_EXIF_BYTES,
    MAX_PARTS,
    Bomb,
    Encoded,
    Undecodable,
    diagnose,
    ends_early,
    number,
    refuse_strip,
    refuse_undecoded,
    refuse_unopened,
)
from segbatch.images.scaling import downscale, scaled_size
from segbatch.storage.arrow import binary_column

# Pillow's settings while images are decoded: they belong to the process and not to a thread.


# What Pillow would log of a broken file stands in the file's row; a million rows are no log.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class _Pillow:
    """The job's pixel limit, and not a warning.

    The first thread to come in sets them and the last one to leave restores them. The limit is the
    one of the last that came in: a process works for one job.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.given_limit = Image.MAX_IMAGE_PIXELS
        self.warnings = warnings.catch_warnings()

    @contextmanager
    def limited(self, max_pixels: int) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.given_limit = Image.MAX_IMAGE_PIXELS
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
                # Pillow itself only warns up to twice the limit.
                warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    Image.MAX_IMAGE_PIXELS = self.given_limit
                    self.warnings.__exit__(None, None, None)


pillow = _Pillow()


BYTES_PER_PIXEL = 3


Pixels = npt.NDArray[np.uint8]


# Columns of one image's sizes, as `decode` adds them.
SIZES = ("width", "height", "model_width", "model_height")


# Value of the EXIF tag → what makes the picture upright, as in ImageOps.exif_transpose.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


LYING = frozenset({5, 6, 7, 8})  # these swap width and height


@dataclass(frozen=True, eq=False)
class Decoded:
    """One image. ``pixels``: ``(height, width, 3)`` uint8 RGB, contiguous, read-only, upright, at
    the size after downscaling; ``width`` and ``height``: upright, before downscaling.
    """

    pixels: Pixels
    width: int
    height: int


@dataclass(frozen=True)
class PlainJpeg:
    """An ordinary JPEG that needs nothing but to be decoded, by whoever can do it best."""

    width: int
    height: int


def decode(
    table: pa.Table,
    *,
    max_pixels: int,
    long_side: int | None,
    budget_bytes: int,
    keep_jpegs: bool = False,
) -> pa.Table:
    """``table``, as :func:`~segbatch.images.fetch.fetch` makes it, with its images decoded.

    Adds

    - ``pixels``, large_binary: RGB uint8, ``model_height × model_width × 3``, row by row; null if
      there is no image or it is still encoded
    - ``width``, ``height``, int32: of the upright image; null where ``pixels`` is
    - ``model_width``, ``model_height``, int32: the grid of ``pixels``; null where ``pixels`` is

    and fills ``error`` and ``message`` of undecodable rows; rows that have an error pass through.
    ``data`` becomes null once it is decoded or has failed. An image whose pixels no longer fit
    into ``budget_bytes``, all together, keeps its ``data`` and nothing else: whoever takes the
    table decodes it alone (:func:`decode_image`), so that a table's size is bounded. With
    ``keep_jpegs``, ordinary JPEGs that need neither turning nor downscaling keep their ``data`` and
    have their sizes.

    Holds at worst ``budget_bytes``, and 18 bytes a pixel of the largest image, besides ``table``.
    """
    # Only what is written to takes memory; Arrow's pool gives pages again that it has already.
    room = np.frombuffer(pa.allocate_buffer(max(1, budget_bytes)), np.uint8)
    ends = [0]
    sizes: list[tuple[int | None, ...]] = []
    encoded = []  # whether the row's data is still to be decoded
    errors, messages = table["error"].to_pylist(), table["message"].to_pylist()
    for row, data in enumerate(table["data"]):
        result = None
        if data.is_valid and errors[row] is None:
            result = _decode(data.as_py(), max_pixels, long_side, room[ends[-1] :], keep_jpegs)
        size: tuple[int | None, ...] = (None,) * len(SIZES)
        end = ends[-1]
        if isinstance(result, Undecodable):
            errors[row], messages[row] = result.kind, result.message
        elif isinstance(result, PlainJpeg):
            size = (result.width, result.height) * 2
        elif result is not None:
            height, width, _ = result.pixels.shape
            size = (result.width, result.height, width, height)
            end += result.pixels.size
            if not np.may_share_memory(result.pixels, room):
                room[ends[-1] : end] = result.pixels.ravel()
        ends.append(end)
        sizes.append(size)
        encoded.append(result is None or isinstance(result, PlainJpeg))

    columns = {
        "data": pc.if_else(pa.array(encoded, pa.bool_()), table["data"], None),
        "error": pa.array(errors, pa.string()),
        "message": pa.array(messages, pa.string()),
        "pixels": binary_column(room, ends),
        **{name: pa.array([size[i] for size in sizes], pa.int32()) for i, name in enumerate(SIZES)},
    }
    given = dict(zip(table.column_names, table.columns, strict=True))
    return pa.table(given | columns)


def decode_image(data: bytes, *, max_pixels: int, long_side: int | None) -> Decoded | Undecodable:
    """The image in ``data``, brought to ``long_side``, or why there is none. Never raises.

    An image with more than ``max_pixels`` by its header is ``too_large`` and is not decoded. A
    JPEG that is more than four times as long as ``long_side`` is decoded at a fraction of its size.
    """
    result = _decode(data, max_pixels, long_side, None, False)
    assert isinstance(result, Decoded | Undecodable)
    return result


def _decode(
    data: bytes, max_pixels: int, long_side: int | None, room: Pixels | None, keep_jpegs: bool
) -> Decoded | PlainJpeg | Undecodable | None:
    """As :func:`decode_image`; ``None`` if the pixels do not fit into ``room``, at whose beginning
    they may lie then.
    """
    if not data:
        return Undecodable("truncated", "0 bytes")
    with pillow.limited(max_pixels):
        try:
            return _open(data, max_pixels, long_side, room, keep_jpegs)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
            size = re.search(r"\d+", str(bomb))
            number = f"{int(size[0]):,}" if size else "too many"
            return Undecodable("too_large", f"{number} pixels; limits.max_pixels is {max_pixels:,}")
        except Bomb as bomb:
            return Undecodable(bomb.kind, str(bomb))
        except MemoryError:
            return Undecodable("too_large", "not enough memory to decode it")
        except Exception as error:  # a decoder may raise anything for a broken file
            return diagnose(data, error)


def _open(
    data: bytes, max_pixels: int, long_side: int | None, room: Pixels | None, keep_jpegs: bool
) -> Decoded | PlainJpeg | None:
    """Open, decode, turn, convert, scale. Raises whatever Pillow raises."""
    refuse_unopened(data)
    file = Encoded(data)
    with Image.open(file, formats=_formats()) as image:
        refuse_undecoded(data, image)
        file.reads_left += image.width * image.height
        if image.format == "TIFF":
            _refuse_previews(data, image)
        if image.format == "PNG":
            _verify_checksums(data)
        if image.format == "JPEG2000" and ends_early(data):
            raise OSError("truncated")  # OpenJPEG gives black where there is not one tile
        size = image.size
        grid = scaled_size(*size, long_side)
        refuse_strip(*grid, max_pixels)
        is_plain = grid == size and _is_plain_jpeg(image)
        if is_plain and keep_jpegs and _is_ycbcr(image) and not ends_early(data):
            return PlainJpeg(*size)
        if room is not None and grid[0] * grid[1] * BYTES_PER_PIXEL > room.size:
            return None
        if is_plain and (plain := _decode_jpeg(data, size, room)) is not None:
            return Decoded(plain, *size)
        # Twice the grid, so that the decoder's coarse filter leaves ours something to do.
        drafted = grid != size and image.draft("RGB", (2 * grid[0], 2 * grid[1]))
        image.load()
        if not drafted:
            size = image.size  # an icon may be larger than its header says
        orientation = _orientation(image)
        scaled = downscale(_to_rgb(image), long_side)
        upright = scaled.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else scaled
        pixels = np.asarray(upright)
    if room is not None and pixels.size > room.size:
        return None
    width, height = reversed(size) if orientation in LYING else size
    return Decoded(pixels, width, height)


def _is_plain_jpeg(image: Image.Image) -> bool:
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return is_jpeg and _orientation(image) not in UPRIGHT


def _is_ycbcr(image: Image.Image) -> bool:
    """Whether no decoder can take the colours of a JPEG for others: those few that hold RGB say so
    in ways that not all look at.
    """
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    names = bytes(component[0] for component in image.layer)
    return image.info.get("adobe_transform", 1) == 1 and names != b"RGB"


def _decode_jpeg(data: bytes, size: tuple[int, int], room: Pixels | None) -> Pixels | None:
    """The pixels of an ordinary JPEG, in ``room`` if there is one; ``None`` where something is the
    matter with it.
    """
    shape = (size[1], size[0], BYTES_PER_PIXEL)
    buffer = None if room is None else room[: math.prod(shape)]
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError:
        return None
    if pixels.shape != shape:
        return None
    pixels.flags.writeable = False
    return pixels


@cache
def _formats() -> tuple[str, ...]:
    """What Pillow opens by itself. PostScript is a program, which it leaves Ghostscript to run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; Pillow has already turned a TIFF and gives 1.

    Damaged EXIF does not make a good picture unreadable: it counts as none, as does one of many
    megabytes.
    """
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    # Pillow would carry the transparent colour over to RGB, warn of it, and stumble over odd ones.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _eight_bits(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey numbers of 16 or 32 bits → ``uint8``. Pillow's own conversion clips them at 255.

    16 bits lose the lower eight. 32 bits do not say what white is: whole numbers up to 255 stand
    for themselves and larger ones are of 16 bits (so does Pillow open 16-bit PGM); fractions up
    to 1 are parts of white and larger ones stand for themselves. What lies outside is clipped.
    """
    if mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values = np.clip(values * 255 if values.max() <= 1 else values, 0, 255)
    elif mode == "I" and values.max() <= 255:
        values = np.clip(values, 0, 255)
    else:
        values = np.clip(values, 0, 65535) >> 8
    eight: npt.NDArray[np.uint8] = values.astype(np.uint8)
    return eight


def _refuse_previews(data: bytes, image: Image.Image) -> None:
    """RAW photographs are TIFF files whose first page is a small preview: not the photograph."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    is_preview = tags.get(ExifTags.Base.NewSubfileType, 0) == 1
    if is_preview or ExifTags.Base.DNGVersion in tags or data[8:10] == b"CR":
        raise OSError("not supported: a RAW photograph, or a first page that is only a preview")


def _verify_checksums(data: bytes) -> None:
    """Raise ``ValueError`` for a wrong checksum of a PNG's pixel data: Pillow looks at the others
    but not at these.
    """
    view, position = memoryview(data), 8
    for _ in range(MAX_PARTS):
        end = position + 8 + number(data, position, "big")
        if end + 4 > len(data):  # whether a chunk that is cut off matters is Pillow's to say
            return
        is_pixels = data.startswith(b"IDAT", position + 4)
        if is_pixels and zlib.crc32(view[position + 4 : end]) != number(data, end, "big"):
            raise ValueError("wrong checksum of the pixel data")
        position = end + 4
    raise Bomb(f"a PNG of more than {MAX_PARTS:,} chunks")
