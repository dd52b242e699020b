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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats.files import ImageFiles, folder_of, list_uris, read_bytes
from segbatch.formats.format import IGNORE, Found, Item, Labelled, Options, Reader, Skipped
from segbatch.formats.photo import Size, check_size, read_file
from segbatch.formats.writing import Part, Photos, Segmented, Writer
from segbatch.masks.classes import IGNORE_INDEX, Classes

# Regions: the ``segmentation`` of a COCO annotation → runs of pixels, as COCO's own tools draw it.
#
# A region is its runs: how many pixels are outside, inside, outside … in turn, column by column
# from the top left corner. Polygons are drawn by pycocotools, the definition of what a COCO polygon
# covers: a pixel whose centre is inside. (Pillow draws the outline too, which makes a window at 512
# pixels 3 % larger.) Runs in a file are decoded here, for pycocotools reads and writes beyond its
# memory where they do not fit the image.
#
# Source: ``common/maskApi.c`` of https://github.com/cocodataset/cocoapi.


# pycocotools walks along every edge: a corner may lie outside, but not at any distance.
FAR = 10  # times the longer side


def draw(flat: npt.NDArray[np.uint8], runs: Iterable[int], class_id: int) -> None:
    """Set the pixels inside; ``flat`` is ``(width · height,)`` uint8, column by column."""
    ends = np.cumsum(np.fromiter(runs, np.int64)).tolist()
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = class_id


def area(runs: list[int]) -> int:
    """Number of pixels inside."""
    return sum(runs[1::2])


def decode_region(segmentation: Any, width: int, height: int) -> tuple[list[int], list[str]]:
    """The runs of polygons or RLE, and what is wrong with polygons that were left out.

    Raises ``ValueError``, whose text is the reason, where nothing is left to draw.
    """
    problems: list[str] = []
    if isinstance(segmentation, Mapping):
        runs = _rle(segmentation, width, height)
    elif isinstance(segmentation, list) and segmentation:
        runs, problems = _polygons(segmentation, width, height)
    else:
        raise ValueError("has no segmentation (a box only?)")
    if not area(runs):
        raise ValueError("covers no pixel of the image")
    return runs, problems


def _polygons(rings: list[Any], width: int, height: int) -> tuple[list[int], list[str]]:
    """The runs of what any of the polygons covers."""
    drawn, problems = [], []
    for number, ring in enumerate(rings, 1):
        try:
            drawn.append(_corners(ring, FAR * max(width, height)))
        except ValueError as error:
            of_many = f" (polygon {number} of {len(rings)})" if len(rings) > 1 else ""
            problems.append(f"{error}{of_many}")
    if not drawn:
        raise ValueError("; ".join(problems))
    region = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
    return _decode(region["counts"]), problems


def _corners(ring: Any, far: int) -> npt.NDArray[np.float64]:
    """``(2 n,)``: x and y of each corner in turn."""
    try:
        corners = np.array(ring, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("has a polygon that is no list of numbers") from error
    if corners.ndim != 1 or len(corners) % 2:
        raise ValueError("has a polygon that is no list x, y, x, y …")
    if len(corners) < 6:
        raise ValueError(f"has a polygon of {len(corners) // 2} points: at least 3 make one")
    if not np.isfinite(corners).all():
        raise ValueError("has a corner whose coordinates are no numbers")
    if np.abs(corners).max() > far:
        raise ValueError(f"has a corner more than {far:,} pixels away")
    return corners


def _rle(rle: Mapping[str, Any], width: int, height: int) -> list[int]:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"has RLE of the size {size}: [{height}, {width}] is the image's")
    if isinstance(counts, str):
        counts = _decode(counts.encode("latin-1", "replace"))
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("has RLE whose counts are no runs of pixels")
    if sum(counts) != width * height:
        raise ValueError(f"has RLE of {sum(counts):,} pixels for {width * height:,}")
    return counts


def _decode(text: bytes) -> list[int]:
    """Compressed runs: numbers of five bits a character, the lowest first, with a sign; from the
    fourth on each is the difference from the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has RLE whose counts are no compressed runs")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has RLE whose counts end in the middle of a number")
    return runs


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
    uris = list_uris(folder)
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
    folder = folder_of(document)
    return folder_of(folder) if storage.name_of(folder) == "annotations" else folder


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
        document = json.loads(read_bytes(uri))
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
            runs, problems = decode_region(shape.segmentation, width, height)
            drawn.append((runs, ids[shape.name]))
        except ValueError as error:
            problems = [str(error)]
        skipped += [Skipped(f"{item.labels_uri}: {shape.place}", why) for why in problems]

    flat = np.full(width * height, unlabelled, np.uint8)
    for runs, class_id in sorted(drawn, key=lambda shape: area(shape[0]), reverse=True):
        draw(flat, runs, class_id)
    label_map = np.ascontiguousarray(flat.reshape(width, height).T)
    return Labelled(image, width, height, label_map, len(drawn), tuple(skipped))


COCO_READER = Reader(find, read)


# COCO: ``annotations.json`` and ``images/``, an annotation with compressed RLE for each region.
#
# Regions are 8-connected and of one class, as in the column ``components`` of a run; ``iscrowd`` is
# 0, for each is one. Category ids are class ids plus 1, because many readers keep 0 for what is
# none; ignored pixels are in no region. ``file_name`` is relative to the folder of the JSON file.
#
# Source: https://cocodataset.org/#format-data and ``common/maskApi.c`` of
# https://github.com/cocodataset/cocoapi


IMAGES = Part("images", between=",\n")


ANNOTATIONS = Part("annotations", between=",\n")


IDS = 1_000_000  # of annotations that an image has for itself


def image_files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph."""
    assert image.photo is not None
    return {f"images/{image.photo_name}": image.photo.data}


def entries(image: Segmented, last: str) -> Mapping[str, Sequence[str]]:
    """Its image and its regions."""
    height, width = image.label_map.shape
    entry = {
        "id": image.image_id,
        "file_name": last,
        "width": width,
        "height": height,
        "uri": image.uri,
    }
    annotations = [
        {"id": image.image_id * IDS + number, "image_id": image.image_id, **region}
        for number, region in enumerate(_regions(image.label_map), 1)
    ]
    return {
        IMAGES.name: [json.dumps(entry, ensure_ascii=False)],
        ANNOTATIONS.name: [json.dumps(annotation) for annotation in annotations],
    }


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The one file of all annotations."""
    info = {"description": f"masks of the segbatch run {run}"}
    return {
        "annotations.json": [
            f'{{"info": {json.dumps(info)},\n"licenses": [],\n',
            f'"categories": {json.dumps(categories(classes), ensure_ascii=False)},\n"images": [\n',
            IMAGES,
            '\n],\n"annotations": [\n',
            ANNOTATIONS,
            "\n]}\n",
        ]
    }


def categories(classes: Classes) -> list[dict[str, Any]]:
    """As they stand in a file: ids are class ids plus 1."""
    return [{"id": c.id + 1, "name": c.name, "supercategory": ""} for c in classes]


def _regions(label_map: npt.NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    """Category, RLE, area and box of each region, in the order of their first pixels.

    All regions are encoded in one walk over the pixels, column by column as COCO_WRITER counts
    them.
    """
    height, width = label_map.shape
    # One more, in uint8, makes ignore (255) the background that cc3d leaves out.
    labels = cc3d.connected_components(label_map + np.uint8(1), connectivity=8)
    flat, classes = labels.ravel(order="F"), label_map.ravel(order="F")
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    starts, ends = starts[order], ends[order]
    regions, firsts = np.unique(flat[starts], return_index=True)
    boxes = cc3d.statistics(labels, no_slice_conversion=True)["bounding_boxes"].tolist()
    for region, first, last in zip(regions, firsts, [*firsts[1:], len(starts)], strict=True):
        if not region:
            continue
        edges = np.stack([starts[first:last], ends[first:last]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size).tolist()
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        top, bottom, left, right = boxes[region]
        yield {
            "category_id": int(classes[starts[first]]) + 1,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
            "area": int((ends[first:last] - starts[first:last]).sum()),
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "iscrowd": 0,
        }


COCO_WRITER = Writer(
    Photos.FILES, image_files, ("images/{name}.jpg", "images/{name}.png"), shared, entries
)
