"""Picture: an image of a run as people look at it, its photograph and its mask on one grid."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from segbatch import storage
from segbatch.config.job import Limits
from segbatch.errors import SourceError, UnreadableMask
from segbatch.formats.writing import Photograph, encoded
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.fetch import read_images
from segbatch.masks import decode_mask
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.results.lookup import mask_png
from segbatch.results.runfolder import RunFolder

OPENERS = {
    b"\xff\xd8": ("jpg", JpegImagePlugin.JpegImageFile),
    b"\x89P": ("png", PngImagePlugin.PngImageFile),
}


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


THREADS = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """``photo`` is ``(height, width, 3)`` uint8 RGB, upright; ``label_map`` ``(height, width)``
    uint8 of class ids, the ignore index where there is no mask.
    """

    photo: npt.NDArray[np.uint8]
    label_map: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Unmasked:
    """Why the mask of an image cannot be laid over it."""

    message: str
    kind: str = "damaged mask"


Unseen = storage.Unreadable | Undecodable | Unmasked  # each says its kind and a message


def read_pictures(
    uris: Sequence[str], masks: Sequence[bytes | None], long_side: int | None, limits: Limits
) -> list[Picture | Unseen]:
    """The images at ``uris``, downscaled to ``long_side``, with their masks as they are stored.

    A mask of another size is brought to the photograph's by nearest neighbour.
    """
    contents = read_images(uris, limits.of_reading())

    def picture(content: bytes | Unseen, png: bytes | None) -> Picture | Unseen:
        if not isinstance(content, bytes):
            return content
        image = decode_image(content, max_pixels=limits.max_pixels, long_side=long_side)
        if isinstance(image, Undecodable):
            return image
        try:
            return Picture(image.pixels, label_map_at(png, image.pixels.shape[1::-1]))
        except SourceError as error:
            return Unmasked(str(error))

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(picture, contents, masks))


def look_up(
    run: RunFolder, images: Sequence[tuple[int, str]], long_side: int | None
) -> list[Picture | Unseen]:
    """Some images of a run, each given by its ``image_id`` and its ``uri``.

    Raises :class:`~segbatch.errors.RunError` for an id that has no row, ``OSError`` if the run's
    storage fails.
    """

    def mask(image: tuple[int, str]) -> bytes | Unmasked | None:
        try:
            return mask_png(run, image[0])
        except UnreadableMask as error:
            return Unmasked(error.why)

    with ThreadPoolExecutor(THREADS) as pool:
        masks = list(pool.map(mask, images))
    pngs = [None if isinstance(mask, Unmasked) else mask for mask in masks]
    pictures = read_pictures([uri for _, uri in images], pngs, long_side, limits_of(run))
    return [
        mask if isinstance(mask, Unmasked) else picture
        for mask, picture in zip(masks, pictures, strict=True)
    ]


def limits_of(run: RunFolder) -> Limits:
    """What the run's job allows an image to be, and to take."""
    return Limits.model_validate(run.info["job"].get("limits", {}))


def label_map_at(png: bytes | None, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The label map of a stored mask, at ``size`` (width, height).

    Raises :class:`~segbatch.errors.SourceError` for a mask that is none.
    """
    if png is None:
        return np.full(size[::-1], IGNORE_INDEX, np.uint8)
    ids = Image.fromarray(decode_mask(png))
    return np.asarray(ids.resize(size, Image.Resampling.NEAREST) if ids.size != size else ids)
