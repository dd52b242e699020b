"""FiftyOne: ``data/`` and ``labels/``, which its ``ImageSegmentationDirectory`` reads, and
``mask_targets.json``, the names and colours of what the masks hold.

The masks are grey, for FiftyOne takes a palette PNG for a picture in colours, and hold class ids
plus 1: it shows 0 as nothing, which here is what is ignored.

Source: ``ImageSegmentationDirectoryImporter`` in ``fiftyone/utils/data/importers.py`` of 1.22.1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from segbatch.formats.writing import Part, Photos, Segmented, Writer
from segbatch.masks.classes import Classes


def files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph, and its mask in grey, at its size."""
    assert image.photo is not None
    mask = io.BytesIO()
    Image.fromarray(image.label_map + np.uint8(1)).save(mask, "PNG")  # 255, ignored, becomes 0
    return {
        f"data/{image.photo_name}": image.photo.data,
        f"labels/{image.name}.png": mask.getvalue(),
    }


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """``default_mask_targets`` of a dataset, and ``default_mask_targets_colors`` of its scheme."""
    document = {
        "mask_targets": {str(c.id + 1): c.name for c in classes},
        "mask_targets_colors": [
            {"intTarget": c.id + 1, "color": "#{:02x}{:02x}{:02x}".format(*c.color)}
            for c in classes
        ],
    }
    return {"mask_targets.json": [json.dumps(document, ensure_ascii=False, indent=2), "\n"]}


FIFTYONE = Writer(Photos.FILES, files, ("labels/{name}.png",), shared)
