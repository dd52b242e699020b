"""FiftyOne: ``data/`` and ``labels/``, which its ``ImageSegmentationDirectory`` reads, and
``mask_targets.json`` with the names and colours of the ids in the masks.

The masks are grey, because FiftyOne takes a palette PNG for a colour picture. They hold class ids
plus 1: FiftyOne shows 0 as nothing, which is what ignored pixels become.

Source: ``ImageSegmentationDirectoryImporter`` in ``fiftyone/utils/data/importers.py`` of 1.22.1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from segbatch.formats.format import Format, Photos, SegmentedImage, Slot, Writer
from segbatch.masks.classes import Classes


def photo_and_grey_mask(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph, and its grey mask at its size."""
    assert image.photo is not None
    mask = io.BytesIO()
    Image.fromarray(image.label_map + np.uint8(1)).save(mask, "PNG")  # 255, ignored, becomes 0
    return {
        f"data/{image.photo_name}": image.photo.data,
        f"labels/{image.name}.png": mask.getvalue(),
    }


def mask_targets_json(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """``default_mask_targets`` of a dataset, and ``default_mask_targets_colors`` of its scheme."""
    document = {
        "mask_targets": {str(c.id + 1): c.name for c in classes},
        "mask_targets_colors": [{"intTarget": c.id + 1, "color": c.hex} for c in classes],
    }
    return {"mask_targets.json": [json.dumps(document, ensure_ascii=False, indent=2), "\n"]}


FIFTYONE = Format(
    writer=Writer(Photos.FILES, photo_and_grey_mask, ("labels/{name}.png",), mask_targets_json)
)
