"""A folder of images to label, each with its predicted mask as labels.

    suggested.csv               a line for each image: its URI, and the reason to label it
    street-3f9a1c04.jpg         the image, byte for byte
    street-3f9a1c04.json        labelme: the predicted mask as polygons to correct
    instances_1-20.json         COCO instead of labelme: one file for all images of one call
    tasks_1-20.json             Label Studio instead: the same, as predictions
    label_config.xml            Label Studio's labelling configuration

An existing file may have been corrected and is never overwritten.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.errors import InputError
from segbatch.formats.coco import shapes_digest, to_categories
from segbatch.formats.folder import (
    COPIES_LIST,
    PROVENANCE_KEY,
    read_copies_list,
    uri_digest,
)
from segbatch.formats.labelconfig import LABEL_CONFIG, write_label_config
from segbatch.formats.labelme import labelme_json
from segbatch.formats.labelstudio import to_prediction, write_task
from segbatch.formats.polygons import Polygon
from segbatch.formats.references import to_reference
from segbatch.images.parts import part_extension
from segbatch.masks import decode_mask
from segbatch.masks.classes import Classes
from segbatch.review.names import cut_query, is_image_name, safe_name


@dataclass(frozen=True)
class Suggestion:
    """A line of the list. ``cluster`` counts from 0 in one call; ``sha256`` is the file's;
    ``shapes`` is :func:`suggested_shapes`.
    """

    image_id: int
    uri: str
    file: str
    reason: str
    uncertainty: float | None
    cluster: int
    run: str
    model: str
    sha256: str
    shapes: str


@dataclass(frozen=True, eq=False)
class Copy:
    """A copied image and its predicted mask, as polygons and as a palette PNG of the same.

    ``size`` is the upright width and height; ``confidence`` is by class name, ``None`` where the
    class is absent.
    """

    suggestion: Suggestion
    size: tuple[int, int]
    shapes: Sequence[Polygon]
    mask: bytes
    confidence: Mapping[str, float | None]


def read_list(folder: str) -> list[dict[str, str]]:
    """The lines of the list in ``folder``; empty if there is no list.

    Raises :class:`~segbatch.errors.InputError` if the file is something else.
    """
    where = storage.join(folder, COPIES_LIST)
    try:
        content = storage.read_bytes(where)
    except FileNotFoundError:
        return []
    lines = read_copies_list(content, where)
    if lines and "sha256" not in lines[0]:
        raise InputError(f"{where}: has no column sha256; choose another folder")
    return lines


def write_list(folder: str, copies: Sequence[Copy]) -> None:
    """Write the list again, with a line added for each of ``copies`` that has none.

    Raises :class:`~segbatch.errors.InputError` if the folder cannot be written to, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    earlier = read_list(folder)  # here: another call may have added lines meanwhile
    listed = {line["file"] for line in earlier}
    suggestions = [copy.suggestion for copy in copies if copy.suggestion.file not in listed]
    sink = io.StringIO(newline="")
    own = [field.name for field in fields(Suggestion)]  # users may add others
    columns = list(dict.fromkeys([*own, *(name for line in earlier for name in line)]))
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(earlier)
    writer.writerows(map(asdict, suggestions))
    with storage.translate_errors("cannot write", InputError):
        storage.write_bytes(storage.join(folder, COPIES_LIST), sink.getvalue().encode())


def copy_name(uri: str, content: bytes) -> str:
    """The file name of an image's copy: its own name, eight digits of a hash, its extension.

    The hash tells images of one name apart. Extensions of other than image formats are dropped;
    a part of an object gets that of its content.
    """
    is_http = storage.scheme_of(uri) in storage.HTTP_SCHEMES
    path = cut_query(uri) if is_http else uri
    name = safe_name(uri, path[: path.rfind("/") + 1])
    extension = PurePosixPath(path).suffix if is_image_name(path) else part_extension(uri, content)
    return f"{name}-{uri_digest(uri)}{extension}"


def write_missing(folder: str, name: str, data: bytes) -> None:
    """Write a file unless it exists. Raises as :func:`write_list`."""
    where = storage.join(folder, name)
    with storage.translate_errors("cannot write", InputError):
        if not storage.exists(where):
            storage.write_bytes(where, data)


def write_beside(folder: str, name: str, data: bytes) -> None:
    """Write a JSON file; where one of the name has other content, with a digest in its name.

    Raises as :func:`write_list`.
    """
    where = storage.join(folder, name)
    with storage.translate_errors("cannot read", InputError):
        is_taken = storage.exists(where) and storage.read_bytes(where) != data
    if is_taken:
        digest = hashlib.sha256(data).hexdigest()[:8]
        name = f"{name.removesuffix('.json')}-{digest}.json"
    write_missing(folder, name, data)


# ------------------------------------------------------------------------------------------ labels


def write_labelme(folder: str, copies: Sequence[Copy], classes: Classes, earlier: int) -> None:
    """Write a labelme file next to each image. Raises as :func:`write_list`."""
    for copy in copies:
        document = labelme_json(
            copy.suggestion.file,
            copy.size,
            copy.shapes,
            classes,
            _provenance(copy.suggestion),
            suggested=True,
        )
        name = copy.suggestion.file
        stem = PurePosixPath(name).stem if is_image_name(name) else name
        write_missing(folder, f"{stem}.json", document)


def write_coco(folder: str, copies: Sequence[Copy], classes: Classes, earlier: int) -> None:
    """Write one COCO file for all copies, named by their lines in the list. Raises as
    :func:`write_list`.

    Every polygon is an annotation, larger ones first.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, copy in enumerate(copies, 1):
        width, height = copy.size
        for shape in copy.shapes:
            points = _coco_points(shape)
            left, top = points.min(0).tolist()
            right, bottom = points.max(0).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": shape.class_id + 1,
                    "segmentation": [points.ravel().tolist()],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": _area(points),
                    "iscrowd": 0,
                }
            )
        images.append(
            {
                "id": number,
                "file_name": copy.suggestion.file,
                "width": width,
                "height": height,
                PROVENANCE_KEY: {
                    **_provenance(copy.suggestion),
                    "shapes": copy.suggestion.shapes,
                },
            }
        )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": to_categories(classes),
    }
    name = f"instances_{earlier + 1}-{earlier + len(copies)}.json"
    write_beside(folder, name, json.dumps(document, ensure_ascii=False, indent=1).encode())


def write_labelstudio(folder: str, copies: Sequence[Copy], classes: Classes, earlier: int) -> None:
    """Write the tasks of all copies, named by their lines in the list, and the labelling
    configuration. Raises as :func:`write_list`.
    """
    tasks = [
        write_task(
            to_reference(storage.join(folder, copy.suggestion.file), folder),
            _provenance(copy.suggestion),
            to_prediction(decode_mask(copy.mask), classes, copy.confidence, copy.suggestion.model),
        )
        for copy in copies
    ]
    name = f"tasks_{earlier + 1}-{earlier + len(copies)}.json"
    write_beside(folder, name, "[\n{}\n]\n".format(",\n".join(tasks)).encode())
    write_missing(folder, LABEL_CONFIG, write_label_config(classes).encode())


def suggested_shapes(shapes: Sequence[Polygon], classes: Classes) -> str:
    """The digest of an image's shapes, by which the import knows those that nobody has changed."""
    return shapes_digest(
        (classes[shape.class_id].name, [_coco_points(shape).ravel().tolist()]) for shape in shapes
    )


def _coco_points(shape: Polygon) -> npt.NDArray[np.float64]:
    """The points, ``(n, 2)``: COCO counts from the corner of the first pixel, not its centre."""
    points: npt.NDArray[np.float64] = shape.points.astype(np.float64) + 0.5
    return points


def _area(points: npt.NDArray[np.float64]) -> float:
    """The area of a polygon in pixels (the shoelace formula)."""
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _provenance(suggestion: Suggestion) -> dict[str, Any]:
    return {key: getattr(suggestion, key) for key in ("uri", "run", "image_id", "model")}


LABEL_WRITERS: Mapping[str, Callable[[str, Sequence[Copy], Classes, int], None]] = {
    "labelme": write_labelme,
    "coco": write_coco,
    "labelstudio": write_labelstudio,
}
