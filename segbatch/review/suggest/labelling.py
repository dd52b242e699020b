"""Labelling: a folder of images that somebody is to label, each with what a model saw in it.

    suggested.csv               a line an image: which one it is, and why it is here
    street-3f9a1c04.jpg         the image, byte for byte
    street-3f9a1c04.json        labelme: the predicted mask as polygons to correct
    instances_1-20.json         COCO instead of labelme: one file for those of one call

A file that is there may have been corrected, and is never written again.
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
from segbatch.formats import coco, labelme
from segbatch.formats.files import KEY, LIST
from segbatch.formats.polygons import Polygon
from segbatch.images.video import is_frame
from segbatch.masks.classes import Classes
from segbatch.review.names import cut_query, is_image_name, safe_name


@dataclass(frozen=True)
class Entry:
    """A line of the list. ``cluster`` counts from 0 within one call; ``sha256`` is the file's."""

    image_id: int
    uri: str
    file: str
    reason: str
    uncertainty: float | None
    cluster: int
    run: str
    model: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Copy:
    """An image to be labelled, and what is drawn on it; ``size`` is upright width and height."""

    entry: Entry
    size: tuple[int, int]
    shapes: Sequence[Polygon]


def read_list(folder: str) -> list[dict[str, str]]:
    """The lines of what was suggested into ``folder`` before; none where there is no list.

    Raises :class:`~segbatch.errors.InputError` for a list of something else.
    """
    where = storage.join(folder, LIST)
    try:
        text = storage.read_bytes(where).decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is no list of ours: choose another folder") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"uri", "file", "sha256"} - set(reader.fieldnames or ())
    if missing:
        raise InputError(f"{where}: is no list of ours: choose another folder")
    return list(reader)


def write_list(folder: str, earlier: Sequence[dict[str, str]], copies: Sequence[Copy]) -> None:
    """The list with a line more for each of ``copies``. Raises ``OSError``."""
    sink = io.StringIO(newline="")
    own = [field.name for field in fields(Entry)]  # others are the user's, and stay
    columns = list(dict.fromkeys([*own, *(name for line in earlier for name in line)]))
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(earlier)
    writer.writerows(asdict(copy.entry) for copy in copies)
    storage.write_bytes(storage.join(folder, LIST), sink.getvalue().encode())


def file_name(uri: str) -> str:
    """What a copy is called: the image's own name, with eight digits that tell it from others of
    that name, and its extension, if it is an image's.
    """
    is_http = storage.scheme_of(uri) in storage.HTTP_SCHEMES
    path = cut_query(uri) if is_http else uri
    name = safe_name(uri, path[: path.rfind("/") + 1])
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    extension = PurePosixPath(path).suffix if is_image_name(path) else ".png" * is_frame(uri)
    return f"{name}-{digest}{extension}"


def write_new(folder: str, name: str, data: bytes) -> None:
    """A file, unless it is there. Raises ``OSError``."""
    where = storage.join(folder, name)
    if not storage.exists(where):
        storage.write_bytes(where, data)


# ------------------------------------------------------------------------------------------ labels


def write_labelme(folder: str, copies: Sequence[Copy], classes: Classes, earlier: int) -> None:
    """A labelme file beside each image. Raises ``OSError``."""
    for copy in copies:
        document = labelme.document(
            copy.entry.file, copy.size, copy.shapes, classes, _provenance(copy.entry)
        )
        name = copy.entry.file
        stem = PurePosixPath(name).stem if is_image_name(name) else name
        write_new(folder, f"{stem}.json", document)


def write_coco(folder: str, copies: Sequence[Copy], classes: Classes, earlier: int) -> None:
    """One COCO file for all, whose name says which lines of the list they are. Raises ``OSError``.

    Every polygon is an annotation, larger ones first. Their points are moved by half a pixel: COCO
    counts from the corner of the first pixel and not from its centre.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, copy in enumerate(copies, 1):
        width, height = copy.size
        images.append(
            {
                "id": number,
                "file_name": copy.entry.file,
                "width": width,
                "height": height,
                KEY: _provenance(copy.entry),
            }
        )
        for shape in copy.shapes:
            points = shape.points.astype(np.float64) + 0.5
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
    document = {
        "images": images,
        "annotations": annotations,
        "categories": coco.categories(classes),
    }
    name = f"instances_{earlier + 1}-{earlier + len(copies)}.json"
    write_new(folder, name, json.dumps(document, ensure_ascii=False, indent=1).encode())


def _area(points: npt.NDArray[np.float64]) -> float:
    """What a polygon encloses, in pixels (the shoelace formula)."""
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _provenance(entry: Entry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in ("uri", "run", "image_id", "model")}


FORMATS: Mapping[str, Callable[[str, Sequence[Copy], Classes, int], None]] = {
    "labelme": write_labelme,
    "coco": write_coco,
}
