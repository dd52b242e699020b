"""Augmentation: another photograph of the same thing, and the label map that goes with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.classes import IGNORE_INDEX
from segbatch.scaling import FILTER

Array = npt.NDArray[np.uint8]


def augmented(
    rng: np.random.Generator,
    image: Array,
    label_map: Array,
    *,
    crop: int,
    scale_range: tuple[float, float] = (0.75, 1.5),
    flip_probability: float = 0.5,
    color_jitter: float = 0.2,
    fill: tuple[int, int, int] = (124, 116, 104),
) -> tuple[Array, Array]:
    """A random square of ``image`` (HWC) and ``label_map`` (HW), both ``crop`` pixels a side.

    Scaled, cropped, mirrored, then changed in brightness, contrast and saturation by a factor of
    up to ``1 ± color_jitter``. What lies outside of the image is ``fill``, and ignored. Label maps
    are only ever scaled to the nearest pixel: between two class ids lies no third.
    """
    image, label_map = _scaled(rng, image, label_map, scale_range)
    image, label_map = _cropped(rng, image, label_map, crop, fill)
    if rng.random() < flip_probability:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    return _jittered(rng, image, color_jitter), np.ascontiguousarray(label_map)


def _scaled(
    rng: np.random.Generator, image: Array, label_map: Array, scale_range: tuple[float, float]
) -> tuple[Array, Array]:
    low, high = scale_range
    # Uniform in the logarithm: half as large is as likely as twice as large.
    factor = np.exp(rng.uniform(np.log(low), np.log(high)))
    height, width = label_map.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return (
        np.asarray(Image.fromarray(image).resize(size, FILTER)),
        np.asarray(Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST)),
    )


def _cropped(
    rng: np.random.Generator,
    image: Array,
    label_map: Array,
    crop: int,
    fill: tuple[int, int, int],
) -> tuple[Array, Array]:
    height, width = label_map.shape
    top = int(rng.integers(max(0, height - crop) + 1))
    left = int(rng.integers(max(0, width - crop) + 1))
    part = slice(top, top + crop), slice(left, left + crop)
    height, width = label_map[part].shape
    square = np.full((crop, crop, 3), fill, np.uint8)
    labels = np.full((crop, crop), IGNORE_INDEX, np.uint8)
    square[:height, :width] = image[part]
    labels[:height, :width] = label_map[part]
    return square, labels


def _jittered(rng: np.random.Generator, image: Array, strength: float) -> Array:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * saturation
    middle = grey.mean()
    pixels = (middle + (pixels - middle) * contrast) * brightness
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)
