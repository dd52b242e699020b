"""Label Studio's tasks: each is an image with what was drawn on it, in any form of its exports.

    JSON             tasks with `data`, `annotations` and `predictions`: a list of them, or one
    JSON-MIN         a list of flat records, one for each annotation
    target storage   a file for each annotation, which holds its task

Of a task's annotations the ground truth counts, or else the one that was changed last; those that
were skipped in Label Studio (``was_cancelled``) do not count. Without any, the newest prediction is
what a model drew and nobody has changed.

Source: https://labelstud.io/guide/task_format, and ``convert_to_json_min`` in
``label_studio_sdk/converter/converter.py`` of 2.1.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from segbatch.errors import shortened
from segbatch.formats.format import Skipped
from segbatch.images.decode import WidthHeight
from segbatch.masks.classes import is_name
from segbatch.storage import clean_name

SHAPES = ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "vector")
TYPES = frozenset({"labels", *SHAPES, *(f"{shape}labels" for shape in SHAPES)})
COORDINATES = frozenset({"rle", "imageDataURL", "points", "x", "vertices"})

# What JSON-MIN has in place of a task's annotations.
RECORD_KEYS = frozenset({"annotation_id", "annotator"})


@dataclass(frozen=True)
class Region:
    """A shape as it was drawn.

    ``place`` is its place in the file, ``names`` its labels that can be names of classes, ``size``
    that of the image. ``value`` has its coordinates; ``rle`` in it is bytes, or ``None`` if it was
    no list of them.
    """

    place: str
    names: Sequence[str]
    size: WidthHeight | None
    value: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """What was drawn on an image; later regions lie on top.

    ``changed`` is a time as ISO 8601 text, empty if unknown. ``is_prediction``: a model drew it.
    """

    regions: Sequence[Region]
    changed: str = ""
    is_ground_truth: bool = False
    is_prediction: bool = False

    @property
    def size(self) -> WidthHeight | None:
        """The size of the image that the regions were drawn on, if any of them says."""
        return next((region.size for region in self.regions if region.size is not None), None)

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """What drawings of one image are ordered by: the one with the highest rank counts."""
        return not self.is_prediction, self.is_ground_truth, self.changed


@dataclass(frozen=True)
class Task:
    """A task: its place in the file, its ``data``, which names the image, and the drawing that
    counts.
    """

    place: str
    data: Mapping[str, Any]
    drawing: Drawing


def read_tasks(content: Any, uri: str) -> Iterator[Task | Skipped]:
    """The tasks in the JSON file ``uri``, and why others are left out.

    Raises ``ValueError`` with the reason if the file is no export of Label Studio.
    """
    entries = content if isinstance(content, list) else [content]
    if entries and not any(map(_is_task, entries)):
        raise ValueError(_why_not_tasks(content))
    for number, entry in enumerate(entries, 1):
        place = f"{uri}: {_name(entry, f'entry {number}')}"
        if not _is_task(entry):
            yield Skipped(place, "is not a task: it has no data")
            continue
        data, annotations, predictions = _parts(entry)
        drawn = [
            _drawing(a, place)
            for a in annotations
            if not (a.get("was_cancelled") or a.get("skipped"))
        ]
        predicted = [_drawing(p, place, is_prediction=True) for p in predictions]
        if drawn or predicted:
            # Of equal ones the last: annotations without times are in the order of their making.
            drawing = max(reversed(drawn or predicted), key=lambda drawing: drawing.rank)
            yield Task(place, data, drawing)
        elif annotations:
            yield Skipped(place, "was skipped in Label Studio")
        else:
            yield Skipped(place, "has no annotation")


def _is_task(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    if isinstance(entry.get("data"), dict) or entry.keys() >= RECORD_KEYS:
        return True
    task = entry.get("task")
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _why_not_tasks(content: Any) -> str:
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return "is no export of Label Studio in JSON; it looks like COCO: --from coco"
    if isinstance(content, dict) and "shapes" in content:
        return "is a labelme file: import it with --from labelme"
    return "is no export of Label Studio in JSON: its tasks have data and annotations"


def _name(entry: Any, otherwise: str) -> str:
    if isinstance(entry, dict):
        task = entry.get("task") if isinstance(entry.get("task"), dict) else entry
        if isinstance(task, dict) and isinstance(task.get("id"), int | str):
            return f"task {shortened(task['id'])}"
    return otherwise


def _parts(
    entry: Mapping[str, Any],
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """The data, the annotations and the predictions of an entry of any form."""
    if isinstance(entry.get("data"), dict):
        annotations = entry.get("annotations") or entry.get("completions")  # before version 1.0
        return entry["data"], _dicts(annotations), _dicts(entry.get("predictions"))
    if isinstance(entry.get("task"), dict):
        return entry["task"]["data"], [entry], []
    results = [
        {**value, "value": value, "type": _type_of(value)}
        for drawn in entry.values()
        for value in _dicts(drawn)
    ]
    annotated = [{**entry, "result": results}] if entry["annotation_id"] is not None else []
    return entry, annotated, []


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _type_of(value: Mapping[str, Any]) -> str:
    """The type of a region in JSON-MIN, which says it by the key of the labels only."""
    return next((key for key in value if key in TYPES and key.endswith("labels")), "")


def _drawing(annotation: Mapping[str, Any], place: str, *, is_prediction: bool = False) -> Drawing:
    results = _dicts(annotation.get("result"))
    # With the tags Brush and Labels, the labels of a region are a result of their own.
    labelled = {_id(result) for result in results if _names(result)} - {None}
    regions = []
    for number, result in enumerate(results, 1):
        names = _names(result)
        if not _is_shape(result) or (not names and _id(result) in labelled):
            continue
        name = f" ({names[0]})" if names else ""
        where = f"{place} region {number}{name}"
        regions.append(Region(where, names, _size(result), _compact(result["value"])))
    changed = annotation.get("updated_at") or annotation.get("created_at")
    return Drawing(
        regions,
        changed if isinstance(changed, str) else "",
        bool(annotation.get("ground_truth")),
        is_prediction,
    )


def _is_shape(result: Mapping[str, Any]) -> bool:
    """Whether a result is a shape, and not a choice, a text or a relation."""
    kind, value = result.get("type"), result.get("value")
    has_place = isinstance(value, dict) and COORDINATES & value.keys()
    return bool(has_place) and isinstance(kind, str) and kind in TYPES


def _id(result: Mapping[str, Any]) -> str | None:
    value = result.get("id")
    return value if isinstance(value, str) else None


def _names(result: Mapping[str, Any]) -> list[str]:
    """The labels of a region that can be names of classes."""
    kind, value = result.get("type"), result.get("value")
    if not isinstance(value, dict):
        return []
    own = value.get(kind) if isinstance(kind, str) and kind.endswith("labels") else None
    labels = value.get("labels") if own is None else own
    texts = (
        [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
    )
    return [name for text in texts if is_name(name := clean_name(text))]


def _compact(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """``value`` with the list of ``rle`` as bytes, an eighth of its memory; ``None`` if it is none
    of bytes.
    """
    if "rle" not in value:
        return value
    try:
        return {**value, "rle": bytes(value["rle"]) if isinstance(value["rle"], list) else None}
    except (TypeError, ValueError):
        return {**value, "rle": None}


def _size(result: Mapping[str, Any]) -> WidthHeight | None:
    width, height = result.get("original_width"), result.get("original_height")
    return (int(width), int(height)) if _is_whole(width) and _is_whole(height) else None


def _is_whole(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
