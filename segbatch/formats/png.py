"""Overlays: each photograph with the colours of its classes over it, and a legend; as JPEG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from segbatch.formats.writing import Part, Photos, Segmented, Writer, encoded
from segbatch.masks import overlay, with_legend
from segbatch.masks.classes import Classes

# Masks: the palette PNGs as they are stored, and ``classes.json``, which names their ids.


def mask_files(image: Segmented) -> Mapping[str, bytes]:
    """The mask, byte for byte."""
    return {f"{image.name}.png": image.mask}


def mask_shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The classes, as ``--classes`` takes them."""
    return {"classes.json": [json.dumps({"classes": classes.to_json()}, indent=2), "\n"]}


MASKS = Writer(Photos.NONE, mask_files, ("{name}.png",), mask_shared)


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


OVERLAYS = Writer(Photos.PIXELS, files, ("{name}.jpg",), shared)
