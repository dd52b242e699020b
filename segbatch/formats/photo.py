"""Pictures: the bytes of an annotated image, and how large it is upright. Its pixels are not needed
for drawing labels; that it has them is made sure of.
"""

from __future__ import annotations

import io
import threading
import warnings

from PIL import ExifTags, Image, UnidentifiedImageError

from segbatch import storage
from segbatch.errors import Incomplete
from segbatch.formats.format import Unusable

# Sizes: whether labels were made for the image as it is seen, upright.


Size = tuple[int, int]


def check_size(data: bytes, labelled: Size | None, what: str) -> Size:
    """Width and height of the upright image in ``data``.

    ``labelled`` is the size for which ``what`` (the mask, the JSON) was made, where it says so.
    Raises :class:`~segbatch.formats.format.Unusable` where it is another one.
    """
    stored, orientation = stored_size(data)
    width, height = stored[::-1] if orientation in LYING else stored
    if labelled in (None, (width, height)):
        return width, height
    if labelled == stored:
        raise Unusable(
            f"{what} is for {_text(stored)}, the image as it lies in its file, which EXIF turns to"
            f" {_text((width, height))}: take the orientation out of its EXIF, or label it upright"
        )
    raise Unusable(f"{what} is for {_text(labelled)} and the image is {_text((width, height))}")


def _text(size: Size | None) -> str:
    return "×".join(str(side) for side in size or ())


# Values of the EXIF tag with which the upright picture has width and height swapped.
LYING = frozenset({5, 6, 7, 8})


# What storage answers about one object; anything else it would answer about the next one, too.
OF_ONE_FILE = frozenset({"not_found", "forbidden", "too_large"})


# Filters of warnings belong to the process and not to a thread.
_decoding = threading.Lock()


LIMITS = storage.ReadLimits(max_bytes=1 << 30)


def read_file(uri: str) -> bytes:
    """An image or its labels, the file as it is.

    Raises :class:`~segbatch.formats.format.Unusable` where this one file cannot be read, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer or refuses us altogether.
    """
    content = storage.read_many([uri], LIMITS)[0]
    if isinstance(content, bytes):
        return content
    failure = Unusable if content.kind in OF_ONE_FILE else Incomplete
    raise failure(f"{uri}: cannot be read: {content.message}")


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of the image as its EXIF orientation turns it.

    The whole image is decoded once. Raises :class:`~segbatch.formats.format.Unusable` with the
    reason for anything that Pillow does not open, verify or decode, or takes for a bomb.
    """
    (width, height), orientation = stored_size(data)
    return (height, width) if orientation in LYING else (width, height)


def stored_size(data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height as the image is stored, and its EXIF orientation, 1 to 8.

    Raises as :func:`upright_size`.
    """
    if not data:
        raise Unusable("the image has 0 bytes")
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it makes good
        try:
            return _stored_size(data)
        except UnidentifiedImageError as error:
            raise Unusable("not an image that Pillow knows, or a damaged one") from error
        except Exception as error:  # a decoder may raise anything for a broken file
            raise Unusable(f"the image cannot be decoded: {storage.one_line(error)}") from error


def _stored_size(data: bytes) -> tuple[tuple[int, int], int]:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # the checksums of a PNG, which decoding does not look at
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        # A JPEG is decoded at an eighth of its size: that reads all of its bytes, and faster.
        drafted = image.draft("L", (1, 1))
        image.load()
        if not drafted:
            size = image.size  # an icon may be larger than its header says
        return size, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """Pillow has already turned a TIFF and gives 1. Damaged EXIF counts as none."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return orientation if 1 <= orientation <= 8 else 1
