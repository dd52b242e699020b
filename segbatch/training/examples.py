"""Labelled samples decoded into arrays, to train on and to measure a model with."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.errors import SourceError
from segbatch.images.decode import Decoded, decode_image
from segbatch.labels.samples import Sample
from segbatch.masks import decode_mask
from segbatch.training.confusion import ConfusionMatrix

MAX_PIXELS = 1_000_000_000
BATCH = 16  # decoded images held in memory while a model is measured

Array = npt.NDArray[np.uint8]


def training_example(sample: Sample, long_side: int | None) -> tuple[Array, Array]:
    """The upright image, HWC uint8 RGB, and its label map, HW uint8, both at ``long_side``.

    Class ids are not interpolated. Raises what :func:`decode_sample` does.
    """
    image, truth = decode_sample(sample, long_side)
    # The size that the image came out with: decoding at a fraction may be a pixel off.
    size = image.shape[1], image.shape[0]
    return image, np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))


def measure(model: Any, samples: Iterable[Sample]) -> ConfusionMatrix:
    """Predict ``samples`` as the segment job does, and compare at each image's own size.

    Raises what :func:`decode_sample` does.
    """
    confusion = ConfusionMatrix(len(model.classes))
    remaining = iter(samples)
    while batch := list(islice(remaining, BATCH)):
        pairs = [decode_sample(sample, model.long_side) for sample in batch]
        images, truths = [image for image, _ in pairs], [truth for _, truth in pairs]
        predictions = model.predict_batch(images, [truth.shape for truth in truths])
        for truth, prediction in zip(truths, predictions, strict=True):
            confusion.update(truth, prediction.mask)
    return confusion


def decode_sample(sample: Sample, long_side: int | None) -> tuple[Array, Array]:
    """The upright image, HWC uint8 RGB, at ``long_side``, and its label map, HW uint8, at the
    image's own size.

    Raises :class:`~segbatch.errors.SourceError` for an image or mask that cannot be decoded, or
    whose sizes differ.
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


def _damaged(sample: Sample, why: str) -> SourceError:
    return SourceError(
        f"image {sample.image_id} of the dataset, {sample.uri}: {why}; `segbatch labels check`"
        " finds all such images"
    )
