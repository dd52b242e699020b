"""A labelled photograph: its bytes, and its size upright, for which labels are drawn.

Drawing labels does not need the pixels, but each image is decoded once to be sure that it can be.
"""

from __future__ import annotations

import threading

from segbatch import storage
from segbatch.errors import Incomplete
from segbatch.formats.format import Unusable
from segbatch.images.decode import WidthHeight, check_image, turned_size
from segbatch.images.faults import Undecodable
from segbatch.images.parts import read_images

LIMITS = storage.ReadLimits(max_bytes=1 << 30)
_decoding = threading.Lock()  # images are read by several threads: one is decoded at a time
MAX_PIXELS = 178_956_970  # of a larger image Pillow says that it is a decompression bomb
AS_STORED = "the image as it is stored"

# Kinds of failure that concern one object; with any other the next object would fail, too.
ONE_FILE_FAILURES = frozenset({"not_found", "forbidden", "too_large"})


def read_sample_file(uri: str) -> bytes:
    """The bytes of an image or of its label file, which may be parts of objects.

    Raises :class:`~segbatch.formats.format.Unusable` if this one file cannot be read, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer or refuses access altogether.
    """
    [content] = read_images([uri], LIMITS)
    if isinstance(content, bytes):
        return content
    is_its_own = isinstance(content, Undecodable) or content.kind in ONE_FILE_FAILURES
    failure = Unusable if is_its_own else Incomplete
    raise failure(f"{uri}: cannot be read: {content.message}")


def checked_size(
    data: bytes, labelled: WidthHeight | None, labels: str
) -> tuple[WidthHeight, bool]:
    """Width and height of the upright image in ``data``, compared with those of its labels; and
    whether EXIF turns it, and the size of its labels does not show that they are upright.

    ``labelled`` is the size for which the labels (``labels``: the mask, the JSON) were made, or
    ``None`` if they do not say. Raises :class:`~segbatch.formats.format.Unusable` if the sizes
    differ, and as :func:`stored_size`.
    """
    stored, orientation = stored_size(data)
    upright = turned_size(stored, orientation)
    if labelled is None or labelled == upright:
        return upright, orientation != 1 and labelled in (None, stored)
    if labelled == stored:
        raise Unusable(
            f"{labels} is for {_text(stored)}, {AS_STORED}, which EXIF turns to"
            f" {_text(upright)}: remove the orientation from its EXIF, or label it upright"
        )
    raise Unusable(f"{labels} is for {_text(labelled)} and the image is {_text(upright)}")


def _text(size: WidthHeight) -> str:
    return "×".join(map(str, size))


def upright_size(data: bytes) -> WidthHeight:
    """Width and height of the image after its EXIF orientation. Raises as :func:`stored_size`."""
    return turned_size(*stored_size(data))


def stored_size(data: bytes) -> tuple[WidthHeight, int]:
    """Width and height of the image as it is stored, and its EXIF orientation, 1 to 8.

    Decodes the whole image once. Raises :class:`~segbatch.formats.format.Unusable` with the reason
    if it cannot be decoded or has too many pixels.
    """
    with _decoding:
        checked = check_image(data, max_pixels=MAX_PIXELS)
    if isinstance(checked, Undecodable):
        raise Unusable(f"the image cannot be decoded ({checked.kind}): {checked.message}")
    return checked
