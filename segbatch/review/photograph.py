"""Photograph: the file of an image, byte for byte wherever every reader sees it alike.

Some readers turn a photograph as its EXIF orientation says, and others do not: its mask would fit
for half of them. Such a one is written anew, upright, as is any in a format that not every tool
opens.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from segbatch.config.job import Limits
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.fetch import read_images
from segbatch.review.pictures import Unseen

QUALITY = 95
OPENERS = {
    b"\xff\xd8": ("jpg", JpegImagePlugin.JpegImageFile),
    b"\x89P": ("png", PngImagePlugin.PngImageFile),
}


@dataclass(frozen=True, eq=False)
class Photograph:
    """``pixels`` are ``(height, width, 3)`` uint8 RGB, upright; ``data`` is a file of the same
    picture, ``extension`` ``jpg`` or ``png``.
    """

    pixels: npt.NDArray[np.uint8]
    extension: str
    data: bytes


def read_photograph(uri: str, limits: Limits, *, jpeg: bool) -> Photograph | Unseen:
    """The photograph at ``uri``; ``jpeg``: as JPEG, whatever it was."""
    [data] = read_images([uri], limits.of_reading())
    if not isinstance(data, bytes):
        return data
    image = decode_image(data, max_pixels=limits.max_pixels, long_side=None)
    if isinstance(image, Undecodable):
        return image
    extension, is_upright = _look_at(data)
    if extension is not None and is_upright and (extension == "jpg" or not jpeg):
        return Photograph(image.pixels, extension, data)
    extension = "jpg" if jpeg or extension == "jpg" else "png"
    return Photograph(image.pixels, extension, encoded(image.pixels, extension))


def encoded(pixels: npt.NDArray[np.uint8], extension: str, quality: int = QUALITY) -> bytes:
    """A ``jpg`` or ``png`` file of ``(height, width, 3)`` uint8 RGB."""
    file = io.BytesIO()
    if extension == "jpg":
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _look_at(data: bytes) -> tuple[str | None, bool]:
    """The extension of a JPEG or PNG that could be decoded, and whether EXIF leaves it as it is."""
    extension, opener = OPENERS.get(data[:2], (None, None))
    if opener is None:
        return None, True
    try:
        with opener(io.BytesIO(data)) as image:
            return extension, image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # damaged EXIF: what it says to others is not known
        return extension, False
