"""Normalisation of pixels: how it is done, and the mean and deviation of a backbone's weights."""

from __future__ import annotations

from typing import cast

import timm
from timm.data.constants import (
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from segbatch.model.config import RGB
from segbatch.model.networks.smp import UNIVERSAL
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

INCEPTION: tuple[RGB, RGB] = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
# Backbones of segmentation_models_pytorch with other ImageNet weights, by their first letters. It
# keeps these numbers next to the weights on the Hub, and they are those of the authors: Keras for
# Xception, TensorFlow for Inception and EfficientNet-Lite, MXNet for DPN.
OTHERS: dict[str, tuple[RGB, RGB]] = {
    "xception": INCEPTION,
    "inception": INCEPTION,
    "timm-tf_efficientnet_lite": INCEPTION,
    "dpn": (IMAGENET_DPN_MEAN, cast(RGB, IMAGENET_DPN_STD)),
}


def normalized(
    pixels: Tensor, mean: Tensor, std: Tensor, range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Pixels from 0 to 255, ``(n, 3, height, width)`` float32, normalised in place.

    They are brought to ``range`` first; ``mean`` and ``std`` are ``(3, 1, 1)``.
    """
    pixels.div_(255)
    low, high = range
    if (low, high) != (0.0, 1.0):
        pixels.mul_(high - low).add_(low)
    return pixels.sub_(mean).div_(std)


def normalisation_of(backbone: str) -> tuple[RGB, RGB]:
    """Mean and deviation, RGB from 0 to 1, of a backbone's published weights; asks no network.

    Those of ImageNet for a backbone that nobody has published weights of.
    """
    if backbone.startswith(UNIVERSAL):
        try:
            found = timm.get_pretrained_cfg(backbone.removeprefix(UNIVERSAL))
        except RuntimeError:  # a tag that the model does not have
            found = None
        if found is not None:
            return cast(RGB, tuple(found.mean)), cast(RGB, tuple(found.std))
    others = (values for start, values in OTHERS.items() if backbone.startswith(start))
    return next(others, (IMAGENET_MEAN, IMAGENET_STD))
