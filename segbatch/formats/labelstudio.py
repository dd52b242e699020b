"""Label Studio: tasks in JSON, with brushes, bitmasks, polygons, rectangles and ellipses.

Later regions lie on top of earlier ones. :mod:`~segbatch.formats.tasks` says which annotation of a
task counts, :mod:`~segbatch.formats.references` how its photograph is found, and
:mod:`~segbatch.formats.regions` draws what is on it.

Written as ``tasks.json`` and ``label_config.xml``, the labelling configuration of the project. The
masks are predictions, which Label Studio shows to be corrected and accepted. They are brushes, one
for each class, because these are exact. A task keeps its ``data``, where the key ``segbatch`` names
the image and its run.

Source: https://labelstud.io/guide/predictions and https://labelstud.io/guide/task_format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats.brush import encode_brush
from segbatch.formats.folder import (
    PROVENANCE_KEY,
    ImageFiles,
    folder_of,
    list_uris,
    original_uri,
    read_label_file,
    read_label_files,
)
from segbatch.formats.format import (
    AnnotatedImage,
    Annotations,
    Format,
    LabelledImage,
    LabelMap,
    Photos,
    Reader,
    ReadOptions,
    SegmentedImage,
    Skipped,
    Slot,
    Writer,
)
from segbatch.formats.labelconfig import (
    IMAGE,
    LABEL_CONFIG,
    LABELS,
    LabelConfig,
    read_label_config,
    write_label_config,
)
from segbatch.formats.photo import checked_size, read_sample_file
from segbatch.formats.references import Photographs, has_address, is_reference, to_reference
from segbatch.formats.regions import draw_region
from segbatch.formats.tasks import Drawing, Region, Task, read_tasks
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, Classes

TASKS = Slot("tasks", separator=",\n")


# ------------------------------------------------------------------------------------------ finding


def find_labelstudio(source: str, options: ReadOptions) -> Annotations:
    """The images of every export below the folder ``source``, or of the one file it names.

    A labelling configuration in the folder gives the key of the image in a task's data, and
    colours; without one, the key is the only one whose value looks like a photograph. Of several
    drawings of one image the one with the highest rank counts; the images that nobody has drawn on
    are a model's suggestions. Copies that ``labels suggest`` or ``export`` made stand for their
    originals.

    Holds one JSON file at a time in memory, and the regions of all. Raises
    :class:`~segbatch.errors.SourceError` if there is no such image, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    source = storage.normalize(source)
    is_file = source.lower().endswith(".json")
    folder = folder_of(source) if is_file else source
    uris = list_uris(folder)
    json_uris = [source] if is_file else [uri for uri in uris if uri.lower().endswith(".json")]
    files = ImageFiles(folder, uris, options.images)
    photographs = Photographs(files, only_files=options.images is not None)
    config = _config(folder, uris)

    best: dict[str, tuple[str, AnnotatedImage]] = {}  # and its place, by the image's URI
    skipped: list[Skipped] = []
    for uri, task in _tasks(json_uris):
        if isinstance(task, Skipped):
            skipped.append(task)
            continue
        try:
            found = task.place, _image(task, uri, files, photographs, config)
        except ValueError as error:
            skipped.append(Skipped(task.place, str(error)))
            continue
        image_uri = found[1].uri
        known = best.get(image_uri, found)
        worse, better = sorted((known, found), key=lambda pair: pair[1].detail.rank)
        best[image_uri] = better
        if known is not found and not worse[1].unchanged:
            skipped.append(Skipped(worse[0], f"another drawing of its image counts: {better[0]}"))
    if not best:
        why = f": {skipped[0].where}: {skipped[0].why}" if skipped else ""
        raise SourceError(
            f"{source}: {len(json_uris)} files *.json and no annotated task of Label Studio{why}"
        )
    images = [image for _, image in best.values()]
    names = {name for image in images for region in image.detail.regions for name in region.names}
    return Annotations(images, sorted(names - {IGNORE}), config.colors, skipped)


def _config(folder: str, uris: Sequence[str]) -> LabelConfig:
    """The labelling configuration in the folder itself, if there is one."""
    for uri in uris:
        if folder_of(uri) == folder and uri.lower().endswith(".xml"):
            text = storage.decode_text(read_label_file(uri), uri, SourceError)
            if (config := read_label_config(text)) is not None:
                return config
    return LabelConfig()


def _tasks(uris: Sequence[str]) -> Iterator[tuple[str, Task | Skipped]]:
    """The tasks of all files, each with the URI of its file."""
    for uri, data in read_label_files(uris):
        if isinstance(data, Skipped):
            yield uri, data
            continue
        try:
            content = json.loads(storage.decode_text(data, uri, SourceError))
            yield from ((uri, task) for task in read_tasks(content, uri))
        except SourceError as error:
            yield uri, Skipped(uri, str(error).removeprefix(f"{uri}: "))
        except (ValueError, RecursionError) as error:
            yield uri, Skipped(uri, storage.one_line(error))


def _image(
    task: Task, uri: str, files: ImageFiles, photographs: Photographs, config: LabelConfig
) -> AnnotatedImage:
    """The image of a task. Raises ``ValueError`` with the reason if it cannot be found."""
    file = photographs.find(reference_of(task.data, config), uri)
    suggested = files.originals.get(file)
    original = original_uri(task.data) or (suggested.uri if suggested else file)
    return AnnotatedImage(
        original,
        uri,
        files.split_of(uri),
        task.drawing,
        copy=file if file != original else None,
        unchanged=task.drawing.is_prediction,
    )


def reference_of(data: Mapping[str, Any], config: LabelConfig) -> str:
    """What the data of a task call its photograph. Raises ``ValueError`` with the reason if none
    or several do.
    """
    keys = [key for key in config.keys if key in data]
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    keys = keys or [key for key, text in texts.items() if is_reference(text)]
    keys = keys or [key for key, text in texts.items() if storage.scheme_of(text)]
    if len(keys) > 1:
        raise ValueError(
            f"{' and '.join(keys)} may be its image: put the labelling configuration next to the"
            f" labels as {LABEL_CONFIG}"
        )
    if not keys or keys[0] not in texts:
        raise ValueError("its data name no image, or a list of images")
    return texts[keys[0]]


# ------------------------------------------------------------------------------------------ reading


def read_labelstudio(
    image: AnnotatedImage, ids: Mapping[str, int], unlabelled: int
) -> LabelledImage:
    """One image with its regions drawn. Raises :class:`~segbatch.formats.format.Unusable` if the
    image is missing, damaged, or not of the size that the regions were drawn on.
    """
    drawing: Drawing = image.detail
    photo = read_sample_file(image.file)
    (width, height), perhaps_turned = checked_size(photo, drawing.size, "the annotation")
    ids = {**ids, IGNORE: IGNORE_INDEX}
    label_map = np.full((height, width), unlabelled, np.uint8)
    skipped = []
    for region in drawing.regions:
        try:
            class_id = _class_id(region, ids)
            label_map[draw_region(region, width, height)] = class_id
        except ValueError as error:
            skipped.append(Skipped(region.place, str(error)))
    num_drawn = len(drawing.regions) - len(skipped)
    return LabelledImage(photo, width, height, label_map, num_drawn, tuple(skipped), perhaps_turned)


def _class_id(region: Region, ids: Mapping[str, int]) -> int:
    if not region.names:
        raise ValueError("has no label")
    if len(region.names) > 1:
        raise ValueError(f"has several labels, {', '.join(region.names)}: a pixel has one class")
    return ids[region.names[0]]


# ------------------------------------------------------------------------------------------ writing


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


def photo_without_address(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph as the file to write; none if Label Studio can show it where it is."""
    return {} if image.photo is None else {f"images/{image.photo_name}": image.photo.data}


def tasks_and_config(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """The one file of all tasks, and the labelling configuration."""
    return {
        LABEL_CONFIG: [write_label_config(classes)],
        "tasks.json": ["[\n", TASKS, "\n]\n"],
    }


def task_entry(image: SegmentedImage, last: str) -> Mapping[str, Sequence[str]]:
    """The task of an image."""
    file = storage.join(image.folder, last) if last else image.uri
    task = write_task(
        to_reference(file, image.folder),
        {"uri": image.uri, "run": image.run, "image_id": image.image_id},
        to_prediction(image.label_map, image.classes, image.confidence, image.model),
    )
    return {TASKS.name: [task]}


def write_task(reference: str, provenance: Mapping[str, Any], prediction: Mapping[str, Any]) -> str:
    """A task as JSON. Without a region in the prediction it has none."""
    task = {
        "data": {IMAGE: reference, PROVENANCE_KEY: provenance},
        "predictions": [prediction] if prediction["result"] else [],
    }
    return json.dumps(task, ensure_ascii=False)


LABELSTUDIO = Format(
    reader=Reader(find_labelstudio, read_labelstudio, options=["unlabelled"]),
    writer=Writer(
        Photos.FILES,
        photo_without_address,
        ("images/{name}.jpg", "images/{name}.png"),
        tasks_and_config,
        task_entry,
        has_address,
    ),
)
