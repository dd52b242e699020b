"""COCO: JSON files with ``images``, ``annotations`` and ``categories``, as COCO itself, Roboflow,
CVAT and labelme2coco lay them out.

Larger shapes are drawn first, so that smaller ones lie on top, and of two equally large ones the
later in the file. COCO says nothing of what lies on what, and tools write in any order: in the
order of the file, two thirds of all window pixels of a Roboflow export of facades are hidden under
the facades that follow.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats import layout, regions
from segbatch.formats.files import ImageFiles
from segbatch.formats.format import Format, Found, Item, Labelled, Options, Skipped
from segbatch.formats.photo import read_file
from segbatch.formats.sizes import Size, check_size
from segbatch.labels.naming import IGNORE
from segbatch.masks.classes import IGNORE_INDEX

LISTS = ("images", "annotations", "categories")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

Id = int | float | str | None


@dataclass(frozen=True)
class Shape:
    """One annotation: its place in the file, its category's name, and its ``segmentation``."""

    place: str
    name: str
    segmentation: Any


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn on one image, and its size, where the JSON says so."""

    size: Size | None
    shapes: Sequence[Shape]


# ------------------------------------------------------------------------------------------ find


def find(source: str, options: Options) -> Found:
    """The images of every COCO file below the folder ``source``, or of the one file it names.

    Where an image is: :meth:`~segbatch.formats.files.ImageFiles.locate`. Categories of one
    name are one class. A category without any annotation is a class too, unless others have it as
    their supercategory: such are the roots that Roboflow adds.

    One JSON file is in memory at a time, besides the shapes of all. Raises
    :class:`~segbatch.errors.SourceError` where there is no COCO file or a JSON file is damaged,
    and :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    source = storage.normalize(source)
    is_file = source.lower().endswith(".json")
    folder = _around(source) if is_file else source
    uris = layout.list_uris(folder)
    documents = [source] if is_file else [uri for uri in uris if uri.lower().endswith(".json")]
    files = ImageFiles(folder, uris, options.images)
    categories = Categories()

    items: list[Item] = []
    skipped: list[Skipped] = []
    for uri in documents:
        for found in _read_document(uri, files, categories):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                items.append(found)
    if not items:
        why = f": {skipped[0].where}: {skipped[0].why}" if skipped else ""
        raise SourceError(f"{source}: {len(documents)} files *.json and no COCO images{why}")
    if not is_file:
        named = {item.file for item in items}
        unnamed = (uri for uri in uris if uri not in named and _is_image(uri))
        skipped += [Skipped(uri, "is in no COCO file") for uri in unnamed]
    return Found(items, categories.names(), skipped=skipped)


def _around(document: str) -> str:
    """The folder below which the images of a single file are: its own, or that above
    ``annotations/``.
    """
    folder = layout.folder_of(document)
    return layout.folder_of(folder) if storage.name_of(folder) == "annotations" else folder


def _is_image(uri: str) -> bool:
    return posixpath.splitext(uri)[1].lower() in EXTENSIONS


class Categories:
    """The categories of all files, in the order of their ids."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._names: dict[str, None] = {}
        self._parents: set[Id] = set()

    def add(self, entries: Sequence[Any]) -> dict[Id, str]:
        """Name by category id in one file."""
        names: dict[Id, str] = {}
        for entry in entries:
            category, name = _scalar(entry, "id"), _scalar(entry, "name")
            if category is not None and isinstance(name, str) and name.strip():
                names[category] = name.strip()
                self._parents |= {_scalar(entry, "supercategory")} - {name}
        in_order = sorted(names, key=lambda category: (isinstance(category, str), category))
        self._names |= dict.fromkeys(names[category] for category in in_order)
        return names

    def names(self) -> list[str]:
        roots = self._parents - self.used
        return [name for name in self._names if name not in roots and name != IGNORE]


def _read_document(uri: str, files: ImageFiles, categories: Categories) -> Iterator[Item | Skipped]:
    """The images of one JSON file, and what is left out of it."""
    try:
        document = json.loads(layout.read_bytes(uri))
    except ValueError as error:
        raise SourceError(f"{uri}: damaged, or no JSON: {error}") from error
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key), list) for key in LISTS
    ):
        is_labelme = isinstance(document, dict) and "shapes" in document
        yield Skipped(
            uri,
            "is labelme's: import it --from labelme"
            if is_labelme
            else f"is no COCO file of shapes: those have the lists {', '.join(LISTS)}",
        )
        return

    names = categories.add(document["categories"])
    shapes: dict[Id, list[Shape]] = {_scalar(image, "id"): [] for image in document["images"]}
    for number, entry in enumerate(document["annotations"]):
        annotation = _scalar(entry, "id")
        place = f"annotations[{number}]" if annotation is None else f"annotation {annotation}"
        image, category = _scalar(entry, "image_id"), _scalar(entry, "category_id")
        if image is None or image not in shapes:
            yield Skipped(f"{uri}: {place}", f"has the image_id {image}, which no image has")
        elif category is None or category not in names:
            yield Skipped(
                f"{uri}: {place}", f"has the category_id {category}, which no category has"
            )
        else:
            categories.used.add(names[category])
            shapes[image].append(Shape(place, names[category], entry.get("segmentation")))

    split = files.split_of(uri)
    for number, entry in enumerate(document["images"]):
        where = f"{uri}: images[{number}]"
        image, path = _scalar(entry, "id"), _scalar(entry, "file_name")
        if image is None or not isinstance(path, str) or not path:
            yield Skipped(where, "has no id or no file_name")
        elif image not in shapes:
            yield Skipped(where, f"has the id {image} of another image")
        else:
            drawing = Drawing(_size(entry), shapes.pop(image))
            try:
                file = files.locate(path, uri)
            except ValueError as error:
                yield Skipped(where, str(error))
            else:
                own = files.own_uris.get(file)
                yield Item(own or file, uri, split, drawing, copy=file if own else None)


def _scalar(entry: Any, key: str) -> Id:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | float | str) else None


def _size(entry: Mapping[str, Any]) -> Size | None:
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        return None
    return int(width), int(height)


# ------------------------------------------------------------------------------------------ read


def read(item: Item, ids: Mapping[str, int], unlabelled: int) -> Labelled:
    """One image with its shapes drawn. Raises :class:`~segbatch.formats.format.Unusable` where
    the image is missing, damaged, or not of the size that the JSON says.
    """
    drawing: Drawing = item.detail
    image = read_file(item.file)
    width, height = check_size(image, drawing.size, "the JSON")
    ids = {**ids, IGNORE: IGNORE_INDEX}
    drawn: list[tuple[list[int], int]] = []
    skipped: list[Skipped] = []
    for shape in drawing.shapes:
        try:
            runs, problems = regions.decode_region(shape.segmentation, width, height)
            drawn.append((runs, ids[shape.name]))
        except ValueError as error:
            problems = [str(error)]
        skipped += [Skipped(f"{item.labels_uri}: {shape.place}", why) for why in problems]

    flat = np.full(width * height, unlabelled, np.uint8)
    for runs, class_id in sorted(drawn, key=lambda shape: regions.area(shape[0]), reverse=True):
        regions.draw(flat, runs, class_id)
    label_map = np.ascontiguousarray(flat.reshape(width, height).T)
    return Labelled(image, width, height, label_map, len(drawn), tuple(skipped))


COCO = Format(find, read)
