"""Augmentation: another photograph of the same thing, and the label map that goes with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from segbatch.config.training import Augment
from segbatch.images.scaling import FILTER
from segbatch.masks.classes import IGNORE_INDEX

Array = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


def augmented(
    rng: np.random.Generator,
    image: Array,
    label_map: Array,
    *,
    crop: int,
    augment: Augment,
    fill: tuple[int, int, int],
) -> tuple[Array, Array]:
    """A random square of ``image`` (HWC) and ``label_map`` (HW), both ``crop`` pixels a side.

    Scaled, cropped, changed in brightness, contrast and saturation, then mirrored. What lies
    outside of the image is ``fill``, and ignored. Label maps are only ever scaled to the nearest
    pixel: between two class ids lies no third.
    """
    low, high = augment.scale_range
    # Uniform in the logarithm: half as large is as likely as twice as large.
    factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    height, width = label_map.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    left, top = (int(rng.integers(max(0, length - crop) + 1)) for length in size)
    inside = min(crop, size[0] - left), min(crop, size[1] - top)

    # Only what the crop shows is scaled.
    scale = width / size[0], height / size[1]
    shown = (
        left * scale[0], top * scale[1],
        (left + inside[0]) * scale[0], (top + inside[1]) * scale[1],
    )  # fmt: skip
    seen = Image.fromarray(image).resize(inside, FILTER, shown)
    jitter = augment.color_jitter
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        seen = change(seen).enhance(float(rng.uniform(1 - jitter, 1 + jitter)))
    picture = Image.new("RGB", (crop, crop), fill)
    picture.paste(seen)
    labels = Image.new("L", (crop, crop), IGNORE_INDEX)
    labels.paste(Image.fromarray(label_map).resize(inside, Image.Resampling.NEAREST, shown))

    if rng.random() < augment.flip_probability:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture), np.asarray(labels)
