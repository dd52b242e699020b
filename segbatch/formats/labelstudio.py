"""Label Studio: tasks with pre-annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segbatch.formats.brush import encode_brush
from segbatch.formats.format import LabelMap
from segbatch.formats.labelconfig import IMAGE, LABELS
from segbatch.masks.classes import Classes

Confidence = Mapping[str, float | None]
"""The mean confidence of each class by its name, 0 to 1; ``None`` where the class is absent."""


def to_prediction(
    label_map: LabelMap,
    classes: Classes,
    confidence: Confidence,
    model_version: str,
    *,
    from_name: str = LABELS,
    to_name: str = IMAGE,
) -> dict[str, Any]:
    """A label map as one of the ``predictions`` of a task; see :func:`to_result`.

    ``score`` is the mean confidence of all pixels whose class has one, 0 to 1, by which Label
    Studio sorts tasks; it is left out if no class has one.
    """
    result = to_result(label_map, classes, confidence, from_name=from_name, to_name=to_name)
    pixels = np.bincount(label_map.ravel(), minlength=len(classes))
    known = [(c.id, value) for c in classes if (value := confidence.get(c.name)) is not None]
    weight = sum(int(pixels[class_id]) for class_id, _ in known)
    prediction: dict[str, Any] = {"model_version": model_version, "result": result}
    if weight:
        total = sum(int(pixels[class_id]) * value for class_id, value in known)
        prediction["score"] = float(total / weight)
    return prediction


def to_result(
    label_map: LabelMap,
    classes: Classes,
    confidence: Confidence,
    *,
    from_name: str = LABELS,
    to_name: str = IMAGE,
) -> list[dict[str, Any]]:
    """A label map, ``(height, width)`` uint8 at the photograph's size, as the ``result`` of a
    prediction or an annotation: a brush region for each class that occurs, by id.

    ``from_name`` and ``to_name`` are the names of the tags ``BrushLabels`` and ``Image`` in the
    project's labelling configuration. A region's ``score`` is its class's confidence. Ignored
    pixels are in no region.
    """
    height, width = label_map.shape
    result = []
    for c in classes:
        inside = label_map == c.id
        if not inside.any():
            continue
        region = {
            "id": f"class-{c.id}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "origin": "prediction",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(encode_brush(inside)),
                "brushlabels": [c.name],
            },
        }
        score = confidence.get(c.name)
        result.append(region if score is None else {**region, "score": float(score)})
    return result
