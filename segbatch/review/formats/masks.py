"""Masks: the palette PNGs as they are stored, and ``classes.json``, which names their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from segbatch.formats.writing import Format, Part, Photos, Segmented
from segbatch.masks.classes import Classes


def files(image: Segmented) -> Mapping[str, bytes]:
    """The mask, byte for byte."""
    return {f"{image.name}.png": image.mask}


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The classes, as ``--classes`` takes them."""
    return {"classes.json": [json.dumps({"classes": classes.to_json()}, indent=2), "\n"]}


MASKS = Format(Photos.NONE, files, ("{name}.png",), shared)
