"""A run's images as people look at them: each photograph with its mask, on one pixel grid."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch import storage
from segbatch.config.job import Limits
from segbatch.errors import RunError, SourceError, UnreadableMask
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.parts import read_parts
from segbatch.images.place import Part
from segbatch.masks import decode_mask, overlay
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.results.lookup import image_uri, mask_png, why_no_mask
from segbatch.results.runfolder import RunFolder

THREADS = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """A photograph and its mask at the same size.

    ``photo`` is ``(height, width, 3)`` uint8 RGB, upright; ``label_map`` is ``(height, width)``
    uint8 of class ids, filled with the ignore index if there is no mask.
    """

    photo: npt.NDArray[np.uint8]
    label_map: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Unmasked:
    """Why the mask of an image cannot be drawn over it."""

    message: str
    kind: str = "damaged mask"


PictureProblem = storage.Unreadable | Undecodable | Unmasked  # each has a kind and a message


def read_run_pictures(
    run: RunFolder, images: Sequence[tuple[int, str]], long_side: int | None
) -> list[Picture | PictureProblem]:
    """Images of a run, given as ``(image_id, uri)``, downscaled to ``long_side``, with their masks.

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
    pictures = read_pictures(run.parts(images), pngs, long_side, limits_of(run))
    return [
        mask if isinstance(mask, Unmasked) else picture
        for mask, picture in zip(masks, pictures, strict=True)
    ]


def limits_of(run: RunFolder) -> Limits:
    """The job's limits on the size of an image and on the time to read it."""
    return Limits.model_validate(run.info.job.get("limits", {}))


def read_pictures(
    parts: Sequence[Part], masks: Sequence[bytes | None], long_side: int | None, limits: Limits
) -> list[Picture | PictureProblem]:
    """The images ``parts``, downscaled to ``long_side``, with ``masks`` as they are stored.

    A mask of another size is resized to its photograph's by nearest neighbour.
    """
    contents = read_parts(parts, limits.read_limits())

    def picture(content: bytes | PictureProblem, png: bytes | None) -> Picture | PictureProblem:
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


def read_photograph(run: RunFolder, image_id: int) -> Image.Image:
    """The photograph of one image, upright, at its own size.

    Raises :class:`~segbatch.errors.RunError` for an id without a row, and
    :class:`~segbatch.errors.SourceError` for a photograph that cannot be read.
    """
    return Image.fromarray(_picture(run, image_id, image_uri(run, image_id), None).photo)


def read_overlay(run: RunFolder, image_id: int, alpha: float) -> Image.Image:
    """The photograph of one image under the colours of its classes.

    Raises what :func:`read_photograph` does, :class:`~segbatch.errors.RunError` where there is no
    mask, with the reason, and :class:`~segbatch.errors.UnreadableMask` where it is damaged.
    """
    uri = image_uri(run, image_id)
    png = mask_png(run, image_id)
    if png is None:
        raise RunError(why_no_mask(run, image_id))
    picture = _picture(run, image_id, uri, png)
    return overlay(picture.photo, picture.label_map, run.classes, alpha)


def _picture(run: RunFolder, image_id: int, uri: str, png: bytes | None) -> Picture:
    [picture] = read_pictures(run.parts([(image_id, uri)]), [png], None, limits_of(run))
    if not isinstance(picture, Picture):
        raise SourceError(f"{uri}: {picture.kind}: {picture.message}")
    return picture


def label_map_at(png: bytes | None, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The label map of a stored mask at ``size`` (width, height), by nearest neighbour.

    Raises :class:`~segbatch.errors.SourceError` if ``png`` is not a mask.
    """
    if png is None:
        return np.full(size[::-1], IGNORE_INDEX, np.uint8)
    ids = Image.fromarray(decode_mask(png))
    return np.asarray(ids.resize(size, Image.Resampling.NEAREST) if ids.size != size else ids)
