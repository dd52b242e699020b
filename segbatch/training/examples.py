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
from segbatch.training.metrics import ConfusionMatrix

Array = npt.NDArray[np.uint8]

MAX_PIXELS = 1_000_000_000
TOGETHER = 16  # images that are held decoded while they are measured


def labelled(sample: Sample, long_side: int | None) -> tuple[Array, Array]:
    """The upright image, HWC uint8 RGB, brought to ``long_side``, and its label map, HW uint8, at
    the image's own size.

    Raises :class:`~segbatch.errors.SourceError` for an image or mask that cannot be decoded, or
    that are not of one size.
    """
    image = decode_image(sample.image, max_pixels=MAX_PIXELS, long_side=long_side)
    if not isinstance(image, Decoded):
        raise _damaged(sample, f"{image.kind}: {image.message}")
    try:
        label_map = decode_mask(sample.mask)
    except SourceError as error:
        raise _damaged(sample, str(error)) from error
    height, width = label_map.shape
    if (width, height) != (image.width, image.height):
        raise _damaged(
            sample, f"the image is {image.width}×{image.height}, its mask {width}×{height}"
        )
    return image.pixels, label_map


def example(sample: Sample, long_side: int | None) -> tuple[Array, Array]:
    """:func:`labelled`, with the label map brought to ``long_side``; class ids are never mixed."""
    image, truth = labelled(sample, long_side)
    # As the image came out: what is drafted while it is decoded may be a pixel off.
    size = image.shape[1], image.shape[0]
    return image, np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))


def measure(model: Any, samples: Iterator[Sample], confusion: ConfusionMatrix) -> None:
    """Predict samples as the segment job does, and count pixels at the images' own size."""
    while group := list(islice(samples, TOGETHER)):
        pairs = [labelled(sample, model.long_side) for sample in group]
        images, truths = [image for image, _ in pairs], [truth for _, truth in pairs]
        predictions = model.predict_batch(images, [truth.shape for truth in truths])
        for truth, prediction in zip(truths, predictions, strict=True):
            confusion.update(truth, prediction.mask)


def _damaged(sample: Sample, why: str) -> SourceError:
    return SourceError(
        f"image {sample.image_id} of the dataset, {sample.uri}: {why}; `segbatch labels check`"
        " finds all such"
    )
