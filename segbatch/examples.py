"""Examples: labelled samples as a network meets them, in training and when it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.errors import SourceError
from segbatch.images.decode import Decoded, decode_image
from segbatch.labels.samples import Sample
from segbatch.masks import decode_mask
from segbatch.scaling import scaled_size
from segbatch.training.metrics import ConfusionMatrix

Array = npt.NDArray[np.uint8]

MAX_PIXELS = 1_000_000_000
TOGETHER = 16  # images that are held decoded while they are measured


def image_of(sample: Sample, long_side: int | None) -> Array:
    """The upright image, HWC uint8 RGB, brought to ``long_side``.

    Raises :class:`~segbatch.errors.SourceError` for one that cannot be decoded.
    """
    image = decode_image(sample.image, max_pixels=MAX_PIXELS, long_side=long_side)
    if not isinstance(image, Decoded):
        raise SourceError(
            f"image {sample.image_id} of the dataset, {sample.uri}: {image.kind}: {image.message};"
            " `segbatch labels check` finds all such"
        )
    return image.pixels


def example(sample: Sample, long_side: int | None) -> tuple[Array, Array]:
    """Image and label map (HW uint8), both brought to ``long_side``; class ids are never mixed."""
    label_map = Image.fromarray(decode_mask(sample.mask))
    size = scaled_size(*label_map.size, long_side)
    if size != label_map.size:
        label_map = label_map.resize(size, Image.Resampling.NEAREST)
    return image_of(sample, long_side), np.asarray(label_map)


def measure(model: Any, samples: Iterator[Sample], confusion: ConfusionMatrix) -> None:
    """Predict samples as the segment job does, and count pixels at the images' own size."""
    while group := list(islice(samples, TOGETHER)):
        truths = [decode_mask(sample.mask) for sample in group]
        images = [image_of(sample, model.long_side) for sample in group]
        sizes = [(truth.shape[0], truth.shape[1]) for truth in truths]
        for truth, prediction in zip(truths, model.predict_batch(images, sizes), strict=True):
            confusion.update(truth, prediction.mask)
