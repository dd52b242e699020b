"""labelme: a JSON file beside each photograph, its regions as polygons painted over each other.

Polygons there have no holes; how they are kept: :mod:`segbatch.formats.polygons`. Ignored pixels
are polygons of ``__ignore__``. ``labels.txt`` is what ``labelme --labels`` and ``--classes`` take.
The key ``segbatch``, which labelme keeps, says which image of which run it is.

Source: ``labelme/_label_file.py`` of labelme 6.3.1, whose files of version 5 are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from segbatch.formats.polygons import Polygon, polygons
from segbatch.formats.provenance import KEY
from segbatch.formats.writing import Format, Part, Photos, Segmented
from segbatch.masks.classes import IGNORE_INDEX, Classes

VERSION = "5.5.0"
IGNORE = "__ignore__"


def files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph, and its polygons."""
    assert image.photo is not None
    height, width = image.label_map.shape
    annotated = document(
        PurePosixPath(image.photo_name).name,
        (width, height),
        polygons(image.label_map),
        image.classes,
        {"uri": image.uri, "run": image.run, "image_id": image.image_id},
    )
    return {image.photo_name: image.photo.data, f"{image.name}.json": annotated}


def document(
    image_path: str,
    size: tuple[int, int],
    shapes: Iterable[Polygon],
    classes: Classes,
    provenance: Mapping[str, Any],
) -> bytes:
    """The file beside an image of ``size`` (width, height)."""
    content = {
        "version": VERSION,
        "flags": {},
        "shapes": [
            {
                "label": _label(classes, shape.class_id),
                "points": shape.points.astype(float).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for shape in shapes
        ],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[1],
        "imageWidth": size[0],
        KEY: provenance,
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The names by id."""
    return {"labels.txt": [f"{name}\n" for name in (IGNORE, *classes.names)]}


def _label(classes: Classes, class_id: int) -> str:
    return IGNORE if class_id == IGNORE_INDEX else classes[class_id].name


LABELME = Format(Photos.FILES, files, ("{name}.json",), shared)
