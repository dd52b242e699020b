"""Stage 2, decode: the bytes of an image file → upright RGB, or the reason why not.

One image goes through these steps: identify → refuse what must not be decoded → decode → RGB →
downscale → turn upright.

Every format that the installed Pillow opens, first frame, any mode. The pixels are those of
Pillow's own ``convert("RGB")`` (alpha is dropped, colour profiles are not applied), turned as
EXIF says, except where that would be wrong: numbers of more than 8 bits are scaled instead of
clipped, and a PNG whose pixel data has a wrong checksum is broken.

Pillow opens every file, and decodes it unless it is an ordinary JPEG. simplejpeg decodes those: it
uses the same libjpeg-turbo, gives the same pixels and writes them straight into the table, in half
the time (``scripts/bench data``). What simplejpeg rejects goes to Pillow.

No file makes these functions raise, warn or log: a broken one becomes an :class:`Undecodable`.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from PIL import ExifTags, Image, JpegImagePlugin

from segbatch.images.exif import Capture, capture_of
from segbatch.images.exif import columns as exif_columns
from segbatch.images.faults import (
    MAX_EXIF_BYTES,
    LimitedFile,
    Undecodable,
    diagnose,
    ends_early,
    refuse_before_decoding,
    refuse_before_opening,
    refuse_strip,
)
from segbatch.images.scaling import downscale, scaled_size
from segbatch.storage.arrow import binary_column

# A broken file is described in its row; a million rows would flood the log.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

Pixels = npt.NDArray[np.uint8]
WidthHeight = tuple[int, int]  # width, height

BYTES_PER_PIXEL = 3
EXIF = "exif:"  # prefix of the columns of what EXIF says
SIZES = ("width", "height", "model_width", "model_height")  # columns that `decode` adds

# EXIF orientation → what makes the picture upright, as in ImageOps.exif_transpose.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap width and height


@dataclass(frozen=True, eq=False)
class Decoded:
    """One image. ``pixels``: ``(height, width, 3)`` uint8 RGB, contiguous, read-only, upright, at
    the size after downscaling; ``width`` and ``height``: upright, before downscaling; ``capture``:
    what EXIF says, if it was asked for.
    """

    pixels: Pixels
    width: int
    height: int
    capture: Capture | None = None


@dataclass(frozen=True)
class LeftEncoded:
    """An image that stays encoded in its table: an ordinary JPEG, with its size, for the device to
    decode; or one whose pixels do not fit into the table, without a size.
    """

    width: int | None = None
    height: int | None = None
    capture: Capture | None = None


class CannotDecode(Exception):
    """Decoding failed or was refused."""

    def __init__(self, reason: Undecodable) -> None:
        super().__init__(reason.message)
        self.reason = reason


def decode(
    table: pa.Table,
    *,
    max_pixels: int,
    long_side: int | None,
    budget_bytes: int,
    keep_jpegs: bool = False,
    exif: bool = False,
) -> pa.Table:
    """``table``, as :func:`~segbatch.images.fetch.fetch` makes it, with its images decoded.

    Adds

    - ``pixels``, large_binary: RGB uint8, ``model_height × model_width × 3``, row by row; null if
      there is no image or it is still encoded
    - ``width``, ``height``, int32: of the upright image; null where ``pixels`` is
    - ``model_width``, ``model_height``, int32: the grid of ``pixels``; null where ``pixels`` is

    and fills ``error`` and ``message`` of undecodable rows; rows that have an error pass through.
    ``data`` becomes null once it is decoded or has failed. So that the size of a table is bounded,
    an image that no longer fits into ``budget_bytes`` of pixels keeps its ``data`` and gets nothing
    else: the next stage decodes it alone (:func:`decode_image`). With ``keep_jpegs``, ordinary
    JPEGs that need neither turning nor downscaling keep their ``data`` and get their sizes. With
    ``exif``, adds a column ``exif:NAME`` for each of :data:`~segbatch.images.exif.FIELDS`.

    Holds at worst ``budget_bytes``, and 18 bytes a pixel of the largest image, besides ``table``.
    """
    # Only written pages take memory, and Arrow's pool reuses the pages of earlier tables.
    room = np.frombuffer(pa.allocate_buffer(max(1, budget_bytes)), np.uint8)
    ends = [0]
    errors, messages = table["error"].to_pylist(), table["message"].to_pylist()
    sizes: list[tuple[int | None, ...]] = [(None,) * len(SIZES)] * table.num_rows
    keeps_data = [True] * table.num_rows
    captures: list[Capture | None] = [None] * table.num_rows
    for row, data in enumerate(table["data"]):
        end = ends[-1]
        if data.is_valid and errors[row] is None:
            image = _decode_into(
                room[end:], data.as_py(), max_pixels, long_side, keep_jpegs=keep_jpegs, exif=exif
            )
            if not isinstance(image, Undecodable):
                captures[row] = image.capture
            if isinstance(image, LeftEncoded):
                sizes[row] = (image.width, image.height) * 2
            elif isinstance(image, Undecodable):
                errors[row], messages[row] = image.kind, image.message
                keeps_data[row] = False
            else:
                model_height, model_width, _ = image.pixels.shape
                sizes[row] = (image.width, image.height, model_width, model_height)
                keeps_data[row] = False
                end += image.pixels.size
        ends.append(end)

    columns = {
        "data": pc.if_else(pa.array(keeps_data, pa.bool_()), table["data"], None),
        "error": pa.array(errors, pa.string()),
        "message": pa.array(messages, pa.string()),
        "pixels": binary_column(room, ends),
        **{name: pa.array([size[i] for size in sizes], pa.int32()) for i, name in enumerate(SIZES)},
    }
    if exif:
        found = exif_columns(captures)
        columns |= {f"{EXIF}{name}": column for name, column in found.items()}
    given = dict(zip(table.column_names, table.columns, strict=True))
    return pa.table(given | columns)


def _decode_into(
    room: Pixels,
    data: bytes,
    max_pixels: int,
    long_side: int | None,
    *,
    keep_jpegs: bool,
    exif: bool,
) -> Decoded | LeftEncoded | Undecodable:
    """Decode an image as :func:`decode_image` does, into the beginning of ``room``."""
    try:
        with _identified(data, max_pixels, long_side) as image:
            capture = capture_of(image) if exif else None
            grid = scaled_size(*image.size, long_side)
            if keep_jpegs and grid == image.size and _is_for_any_decoder(data, image):
                return LeftEncoded(*image.size, capture)
            if math.prod(grid) * BYTES_PER_PIXEL > room.size:
                return LeftEncoded(capture=capture)
            decoded = replace(_decoded(data, image, long_side, room), capture=capture)
    except CannotDecode as error:
        return error.reason
    if decoded.pixels.size > room.size:  # an icon, larger than its header says
        return LeftEncoded(capture=capture)
    if not np.may_share_memory(decoded.pixels, room):
        room[: decoded.pixels.size] = decoded.pixels.ravel()
    return decoded


def decode_image(
    data: bytes, *, max_pixels: int, long_side: int | None, exif: bool = False
) -> Decoded | Undecodable:
    """The image in ``data``, downscaled to ``long_side``, or why there is none. Never raises.

    An image with more than ``max_pixels`` by its header is ``too_large`` and is not decoded. A
    JPEG that is more than four times as long as ``long_side`` is decoded at a fraction of its size.
    With ``exif``, the result has what the file says of its capture.
    """
    try:
        with _identified(data, max_pixels, long_side) as image:
            capture = capture_of(image) if exif else None
            return replace(_decoded(data, image, long_side), capture=capture)
    except CannotDecode as error:
        return error.reason


def check_image(data: bytes, *, max_pixels: int) -> tuple[WidthHeight, int] | Undecodable:
    """Size of the image as it is stored, and its EXIF orientation; or why it cannot be decoded.

    For callers that do not need the pixels, but need to know that all of them can be decoded.
    """
    try:
        with _identified(data, max_pixels, None) as image:
            # At an eighth of its size a JPEG decodes faster, and all of its bytes are still read.
            return _load(image, "L", (1, 1)), exif_orientation(image)
    except CannotDecode as error:
        return error.reason


@contextmanager
def _identified(data: bytes, max_pixels: int, long_side: int | None) -> Iterator[Image.Image]:
    """The image in ``data``, opened by Pillow and safe to decode, but not decoded yet.

    Raises :class:`CannotDecode`, also for what is raised while the caller decodes it.
    """
    with _pillow.limited(max_pixels):
        try:
            refuse_before_opening(data)
            file = LimitedFile(data)
            with Image.open(file, formats=_formats()) as image:
                file.reads_left += image.width * image.height
                refuse_before_decoding(data, image)
                refuse_strip(*scaled_size(*image.size, long_side), max_pixels)
                yield image
        except Exception as error:  # a decoder may raise anything for a broken file
            raise CannotDecode(diagnose(data, error, max_pixels)) from error


def _decoded(
    data: bytes, image: Image.Image, long_side: int | None, room: Pixels | None = None
) -> Decoded:
    """Decode, convert to RGB, downscale, turn upright; an ordinary JPEG may be decoded straight
    into ``room``. Raises what Pillow raises.
    """
    grid = scaled_size(*image.size, long_side)
    if grid == image.size and _is_ordinary_jpeg(image):
        pixels = _decode_jpeg(data, image.size, room)
        if pixels is not None:
            return Decoded(pixels, *image.size)
    # Twice the grid, so that the decoder's coarse filter leaves the quality to our own.
    at_least = (2 * grid[0], 2 * grid[1]) if grid != image.size else None
    size = _load(image, "RGB", at_least)
    orientation = exif_orientation(image)
    scaled = downscale(_to_rgb(image), long_side)
    upright = scaled.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else scaled
    return Decoded(np.asarray(upright), *turned_size(size, orientation))


# -------------------------------------------------------------------------------------------- steps


class _PillowSettings:
    """Pillow's settings while images are decoded: the job's pixel limit, and no warnings.

    They belong to the process and not to a thread: the first thread that enters sets them, the last
    one that leaves restores them. The limit is that of the last thread that entered, because a
    process works for one job.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._restore = ExitStack()

    @contextmanager
    def limited(self, max_pixels: int) -> Iterator[None]:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                self._restore.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module="PIL")
                # Up to twice the limit, Pillow only warns.
                warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    self._restore.close()


_pillow = _PillowSettings()


@cache
def _formats() -> tuple[str, ...]:
    """Formats that Pillow opens without other programs: for EPS, it would let Ghostscript run the
    PostScript program in the file.
    """
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _is_ordinary_jpeg(image: Image.Image) -> bool:
    """Whether decoding is all that a JPEG needs: no conversion to RGB, no turning."""
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return is_jpeg and exif_orientation(image) not in UPRIGHT


def _is_for_any_decoder(data: bytes, image: Image.Image) -> bool:
    """Whether every JPEG decoder gives the same pixels: the file is complete and is not one of the
    few that hold RGB, which declare it in ways that not all decoders recognise.
    """
    if not _is_ordinary_jpeg(image):
        return False
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    names = bytes(component[0] for component in image.layer)
    is_ycbcr = image.info.get("adobe_transform", 1) == 1 and names != b"RGB"
    return is_ycbcr and not ends_early(data)


def _decode_jpeg(data: bytes, size: WidthHeight, room: Pixels | None) -> Pixels | None:
    """The pixels of an ordinary JPEG, in ``room`` if there is one; ``None`` if simplejpeg rejects
    the file.
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


def _load(image: Image.Image, mode: str, at_least: WidthHeight | None) -> WidthHeight:
    """Decode ``image`` and return its full size. With ``at_least``, a JPEG is decoded to ``mode``
    at the smallest fraction of its size that is not below that.
    """
    size = image.size
    is_drafted = at_least is not None and image.draft(mode, at_least)
    image.load()
    return size if is_drafted else image.size  # an icon may be larger than its header says


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Of a TIFF it is 1, because Pillow has already turned it.

    Damaged EXIF does not make a good picture unreadable: it counts as 1, as does EXIF of many
    megabytes.
    """
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return 1
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def turned_size(stored: WidthHeight, orientation: int) -> WidthHeight:
    """Width and height after turning an image of size ``stored`` upright."""
    width, height = stored
    return (height, width) if orientation in SIDEWAYS else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    # Pillow would convert the transparent colour too, warn about it, and fail on unusual ones.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _eight_bits(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey values of 16 or 32 bits → ``uint8``. Pillow's own conversion clips them at 255.

    16-bit values lose their lower eight bits. 32-bit files do not say which value is white.
    Integers: if none is above 255, they are taken as they are, else as 16-bit values (Pillow opens
    16-bit PGM so). Floats: if none is above 1, 1 is white, else 255 is. Values outside are clipped.
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
