"""PNG masks of a run as they are stored, and overlays of the masks on the photographs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from segbatch.formats.format import Format, Photos, SegmentedImage, Slot, Writer, encode_photo
from segbatch.masks import overlay, with_legend
from segbatch.masks.classes import Classes

OVERLAY_QUALITY = 90


def stored_mask(image: SegmentedImage) -> Mapping[str, bytes]:
    """The palette PNG, byte for byte."""
    return {f"{image.name}.png": image.mask}


def classes_json(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """The names and colours of the ids, as ``--classes`` takes them."""
    return {"classes.json": [json.dumps({"classes": classes.to_json()}, indent=2), "\n"]}


PNG = Format(writer=Writer(Photos.NONE, stored_mask, ("{name}.png",), classes_json))


def overlay_with_legend(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph with the class colours over it and a legend below, as JPEG."""
    assert image.photo is not None
    num_classes = len(image.classes)
    pixels = np.bincount(image.label_map.ravel(), minlength=num_classes)[:num_classes]
    picture = overlay(image.photo.pixels, image.label_map, image.classes)
    sheet = np.asarray(with_legend(picture, image.classes, pixels / image.label_map.size))
    return {f"{image.name}.jpg": encode_photo(sheet, "jpg", OVERLAY_QUALITY)}


OVERLAY = Format(
    writer=Writer(Photos.PIXELS, overlay_with_legend, ("{name}.jpg",), lambda classes, run: {})
)
