"""Photographs for an export: upright JPEG or PNG files of a run's images."""

from __future__ import annotations

import io

from PIL import ExifTags, JpegImagePlugin, PngImagePlugin

from segbatch.config.job import Limits
from segbatch.formats.format import Photograph, encode_photo
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.parts import read_parts
from segbatch.images.place import Part
from segbatch.review.pictures import PictureProblem

_OPENERS = {
    b"\xff\xd8": ("jpg", JpegImagePlugin.JpegImageFile),
    b"\x89P": ("png", PngImagePlugin.PngImageFile),
}


def read_photograph(part: Part, limits: Limits, *, jpeg: bool) -> Photograph | PictureProblem:
    """The photograph ``part`` as a JPEG or PNG file; ``jpeg``: always as JPEG.

    The bytes stay as they are unless EXIF rotates the image or its format has to change.
    """
    [data] = read_parts([part], limits.read_limits())
    if not isinstance(data, bytes):
        return data
    image = decode_image(data, max_pixels=limits.max_pixels, long_side=None)
    if isinstance(image, Undecodable):
        return image
    extension, is_upright = _inspect(data)
    if extension is not None and is_upright and (extension == "jpg" or not jpeg):
        return Photograph(image.pixels, extension, data)
    extension = "jpg" if jpeg or extension == "jpg" else "png"
    return Photograph(image.pixels, extension, encode_photo(image.pixels, extension))


def _inspect(data: bytes) -> tuple[str | None, bool]:
    """The extension if ``data`` is JPEG or PNG, and whether EXIF leaves the image upright."""
    extension, opener = _OPENERS.get(data[:2], (None, None))
    if opener is None:
        return None, True
    try:
        with opener(io.BytesIO(data)) as image:
            return extension, image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # damaged EXIF: other tools may read it as a rotation
        return extension, False
