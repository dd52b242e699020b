"""Overlays: each photograph with the colours of its classes over it, and a legend; as JPEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from segbatch.formats.writing import Format, Part, Photos, Segmented
from segbatch.masks import overlay, with_legend
from segbatch.masks.classes import Classes
from segbatch.review.photograph import encoded

QUALITY = 90


def files(image: Segmented) -> Mapping[str, bytes]:
    """The overlay, of the photograph's own size and a legend below."""
    assert image.photo is not None
    num_classes = len(image.classes)
    pixels = np.bincount(image.label_map.ravel(), minlength=num_classes)[:num_classes]
    picture = overlay(image.photo.pixels, image.label_map, image.classes)
    sheet = np.asarray(with_legend(picture, image.classes, pixels / image.label_map.size))
    return {f"{image.name}.jpg": encoded(sheet, "jpg", QUALITY)}


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """Nothing: each picture has its legend."""
    return {}


OVERLAYS = Format(Photos.PIXELS, files, ("{name}.jpg",), shared)
