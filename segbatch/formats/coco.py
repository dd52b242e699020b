"""COCO: JSON files with ``images``, ``annotations`` and ``categories``.

Read as COCO itself, Roboflow, CVAT and labelme2coco lay them out. Larger shapes are drawn first, so
that smaller ones lie on top; of two equally large ones the later in the file lies on top. COCO does
not say which shape covers which, and tools write them in any order: in the order of the file, two
thirds of all window pixels of a Roboflow export of facades are hidden under the facades that
follow.

Written as ``annotations.json`` and ``images/``, with an annotation of compressed RLE for each
region. Regions are 8-connected and of one class, as in the column ``components`` of a run;
``iscrowd`` is 0, because each is one object. Category ids are class ids plus 1, because many
readers keep 0 for the background; ignored pixels are in no region. ``file_name`` is relative to
the folder of the JSON file, ``uri`` that of the image in the run, under which it is read back.

Source: https://cocodataset.org/#format-data and ``common/maskApi.c`` of
https://github.com/cocodataset/cocoapi
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from segbatch import storage
from segbatch.errors import SourceError, shortened
from segbatch.formats.folder import (
    PROVENANCE_KEY,
    ImageFiles,
    Original,
    folder_of,
    is_image,
    list_uris,
    original_uri,
    read_label_file,
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
from segbatch.formats.photo import checked_size, read_sample_file
from segbatch.images.decode import WidthHeight
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, Classes

Id = int | float | str | None
Runs = list[int]
"""Run lengths of a region: pixels outside, inside, outside … column by column from the top left."""

LISTS = ("images", "annotations", "categories")

# pycocotools walks along every edge, so corners may lie outside of the image, but not far away.
MAX_DISTANCE = 10  # times the longer side

IMAGES = Slot("images", separator=",\n")
ANNOTATIONS = Slot("annotations", separator=",\n")
DESCRIPTION = "masks of the segbatch run"
MAX_COORDINATE = 1e9  # pixels
IDS_PER_IMAGE = 1_000_000  # annotation ids reserved for each image


# ------------------------------------------------------------------------------------------ finding


@dataclass(frozen=True)
class Shape:
    """One annotation: its place in the file, its category's name, and its ``segmentation``."""

    place: str
    name: str
    segmentation: Any


@dataclass(frozen=True)
class Shapes:
    """The shapes of one image, and its size if the JSON gives it."""

    size: WidthHeight | None
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Document:
    """One JSON file. ``names`` are those of its categories in the order of their ids, ``used``
    those that have annotations, ``parents`` those that others have as their supercategory.
    """

    images: Sequence[AnnotatedImage] = ()
    skipped: Sequence[Skipped] = ()
    names: Sequence[str] = ()
    used: frozenset[str] = frozenset()
    parents: frozenset[Id] = frozenset()


def find_coco(source: str, options: ReadOptions) -> Annotations:
    """The images of every COCO file below the folder ``source``, or of the one file it names.

    :meth:`~segbatch.formats.folder.ImageFiles.locate` finds the image files. Copies that ``labels
    suggest`` or ``export`` made stand for their originals. Categories of one name are one class. A
    category without any annotation is a class too, unless others have it as their supercategory:
    Roboflow adds such roots.

    Holds one JSON file at a time in memory, and the shapes of all. Raises
    :class:`~segbatch.errors.SourceError` if there is no COCO file or a JSON file is damaged, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    source = storage.normalize(source)
    is_file = source.lower().endswith(".json")
    folder = _images_folder(source) if is_file else source
    uris = list_uris(folder)
    json_uris = [source] if is_file else [uri for uri in uris if uri.lower().endswith(".json")]
    files = ImageFiles(folder, uris, options.images)

    documents = [_read_document(uri, files) for uri in json_uris]
    images = [image for document in documents for image in document.images]
    skipped = [entry for document in documents for entry in document.skipped]
    if not images:
        why = f": {skipped[0].where}: {skipped[0].why}" if skipped else ""
        raise SourceError(f"{source}: {len(json_uris)} files *.json and no COCO images{why}")
    if not is_file:
        named = {image.file for image in images}
        unnamed = (uri for uri in uris if uri not in named and is_image(uri))
        skipped += [Skipped(uri, "is in no COCO file") for uri in unnamed]
    return Annotations(images, _class_names(documents), skipped=skipped)


def _images_folder(json_uri: str) -> str:
    """The folder that holds the images of a single file: the file's own, or the parent of
    ``annotations/``.
    """
    folder = folder_of(json_uri)
    return folder_of(folder) if storage.name_of(folder) == "annotations" else folder


def _class_names(documents: Sequence[Document]) -> list[str]:
    """The names of all categories that are classes, in the order of the files and of their ids."""
    used = {name for document in documents for name in document.used}
    roots = {name for document in documents for name in document.parents} - used
    names = dict.fromkeys(name for document in documents for name in document.names)
    return [name for name in names if name not in roots and name != IGNORE]


def _read_document(uri: str, files: ImageFiles) -> Document:
    """Read one JSON file; a document without images if it is not a COCO file."""
    try:
        content = json.loads(storage.decode_text(read_label_file(uri), uri, SourceError))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{uri}: damaged, or not JSON: {error}") from error
    if why := _why_not_shapes(content):
        return Document(skipped=[Skipped(uri, why)])

    skipped: list[Skipped] = []
    names, parents = _read_categories(content["categories"])
    used: set[str] = set()
    shapes: dict[Id, list[Shape]] = {_scalar(entry, "id"): [] for entry in content["images"]}
    image_ids, category_ids = KnownIds(shapes), KnownIds(names)
    for number, entry in enumerate(content["annotations"]):
        annotation_id = _scalar(entry, "id")
        place = f"annotations[{number}]" if annotation_id is None else f"annotation {annotation_id}"
        image_id = image_ids.find(asked_image := _scalar(entry, "image_id"))
        category = category_ids.find(asked_category := _scalar(entry, "category_id"))
        if image_id is None:
            why = f"has the image_id {_shown(asked_image)}, which no image has"
            skipped.append(Skipped(f"{uri}: {place}", why))
        elif category is None:
            why = f"has the category_id {_shown(asked_category)}, which no category has"
            skipped.append(Skipped(f"{uri}: {place}", why))
        else:
            used.add(names[category])
            shapes[image_id].append(Shape(place, names[category], entry.get("segmentation")))

    images = []
    split = files.split_of(uri)
    for number, entry in enumerate(content["images"]):
        where = f"{uri}: images[{number}]"
        image_id, path = _scalar(entry, "id"), _scalar(entry, "file_name")
        if image_id is None or not isinstance(path, str) or not path:
            skipped.append(Skipped(where, "has no id or no file_name"))
        elif image_id not in shapes:
            skipped.append(Skipped(where, f"has the id {image_id} of another image"))
        else:
            detail = Shapes(_size(entry), shapes.pop(image_id))
            try:
                file = files.locate(path, uri)
            except ValueError as error:
                skipped.append(Skipped(where, str(error)))
            else:
                image = AnnotatedImage(file, uri, split, detail)
                original = files.originals.get(file) or _original(entry, content)
                images.append(_of_original(image, original))
    return Document(images, skipped, list(names.values()), frozenset(used), frozenset(parents))


def _original(entry: Mapping[str, Any], content: Mapping[str, Any]) -> Original | None:
    """The original image that the entry of an image names, if ``labels suggest`` or ``export``
    wrote it, and not another tool whose ``uri`` may mean anything.
    """
    info = content.get("info")
    description = info.get("description") if isinstance(info, dict) else None
    is_exported = isinstance(description, str) and description.startswith(DESCRIPTION)
    provenance: Any = entry if is_exported else entry.get(PROVENANCE_KEY)
    uri = original_uri({PROVENANCE_KEY: provenance})
    return None if uri is None else Original(uri, str(provenance.get("shapes") or ""))


def _of_original(image: AnnotatedImage, original: Original | None) -> AnnotatedImage:
    """The labels of a copy as labels of the original; others as they are."""
    if original is None:
        return image
    digest = shapes_digest((shape.name, shape.segmentation) for shape in image.detail.shapes)
    unchanged = digest == original.shapes
    return replace(image, uri=original.uri, copy=image.uri, unchanged=unchanged)


def _why_not_shapes(content: Any) -> str | None:
    """Why a JSON file is no COCO file of shapes; ``None`` if it is one."""
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in LISTS):
        if any(isinstance(e, dict) and "segments_info" in e for e in content["annotations"]):
            return "is COCO panoptic, whose shapes are in PNG files: export polygons or RLE"
        return None
    if isinstance(content, dict) and "shapes" in content:
        return "is a labelme file: import it with --from labelme"
    return f"is not a COCO file of shapes: such a file has the lists {', '.join(LISTS)}"


class KnownIds:
    """The ids of images or categories, found also where one file writes them as text and as
    numbers: ``"007"``, ``"7"`` and ``7``.
    """

    def __init__(self, ids: Iterable[Id]) -> None:
        self._exact = set(ids) - {None}
        counts = Counter(map(_as_number, self._exact))
        self._alike = {
            _as_number(known): known for known in self._exact if counts[_as_number(known)] == 1
        }

    def find(self, asked: Id) -> Id:
        """The id that ``asked`` means; ``None`` if there is none."""
        return asked if asked in self._exact else self._alike.get(_as_number(asked))


def _shown(value: Id) -> str:
    """An id for a message, as JSON: ``"7"`` and ``7`` differ."""
    return shortened(json.dumps(value, ensure_ascii=False))


def _as_number(value: Id) -> Id:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else value


def _read_categories(entries: Sequence[Any]) -> tuple[dict[Id, str], set[Id]]:
    """The name by category id, in the order of the ids; and the supercategories."""
    names: dict[Id, str] = {}
    parents: set[Id] = set()
    for entry in entries:
        category, name = _scalar(entry, "id"), _scalar(entry, "name")
        if category is not None and isinstance(name, str) and storage.clean_name(name):
            name = names[category] = storage.clean_name(name)
            parents |= {_supercategory(entry)} - {name}
    in_order = sorted(names, key=lambda category: (isinstance(category, str), category))
    return {category: names[category] for category in in_order}, parents


def _supercategory(entry: Any) -> Id:
    value = _scalar(entry, "supercategory")
    return storage.clean_name(value) if isinstance(value, str) else value


def _scalar(entry: Any, key: str) -> Id:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | float | str) else None


def _size(entry: Mapping[str, Any]) -> WidthHeight | None:
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        return None
    return int(width), int(height)


# ------------------------------------------------------------------------------------------ reading


def read_coco(image: AnnotatedImage, ids: Mapping[str, int], unlabelled: int) -> LabelledImage:
    """One image with its shapes drawn. Raises :class:`~segbatch.formats.format.Unusable` if the
    image is missing, damaged, or not of the size that the JSON gives.
    """
    detail: Shapes = image.detail
    photo = read_sample_file(image.file)
    (width, height), perhaps_turned = checked_size(photo, detail.size, "the JSON")
    ids = {**ids, IGNORE: IGNORE_INDEX}
    regions: list[tuple[Runs, int]] = []
    skipped: list[Skipped] = []
    for shape in detail.shapes:
        try:
            runs, problems = decode_region(shape.segmentation, width, height)
            regions.append((runs, ids[shape.name]))
        except ValueError as error:
            problems = [str(error)]
        skipped += [Skipped(f"{image.labels_uri}: {shape.place}", why) for why in problems]

    columns = np.full(width * height, unlabelled, np.uint8)
    for runs, class_id in sorted(regions, key=lambda region: _area(region[0]), reverse=True):
        ends = np.cumsum(runs).tolist()
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            columns[start:end] = class_id
    label_map = np.ascontiguousarray(columns.reshape(width, height).T)
    return LabelledImage(
        photo, width, height, label_map, len(regions), tuple(skipped), perhaps_turned
    )


def _area(runs: Runs) -> int:
    """The number of pixels inside."""
    return sum(runs[1::2])


def decode_region(segmentation: Any, width: int, height: int) -> tuple[Runs, list[str]]:
    """The region of an annotation's ``segmentation`` (polygons or RLE), and why polygons were left
    out.

    pycocotools draws the polygons, because it defines which pixels a COCO polygon covers: those
    whose centre is inside. (Pillow draws the outline too, which makes a window at 512 pixels 3 %
    larger.) RLE is decoded here, because pycocotools reads and writes beyond its memory if the
    runs do not fit the image. Raises ``ValueError`` with the reason if nothing is left to draw.
    """
    problems: list[str] = []
    if isinstance(segmentation, Mapping):
        runs = _decode_rle(segmentation, width, height)
    elif isinstance(segmentation, list) and segmentation:
        runs, problems = _draw_polygons(_polygons(segmentation), width, height)
    else:
        raise ValueError("has no segmentation (a box only?)")
    if not _area(runs):
        raise ValueError("covers no pixel of the image")
    return runs, problems


def _polygons(segmentation: list[Any]) -> list[Any]:
    """The polygons of a ``segmentation``: a list ``[x, y, x, y, …]`` each, or one such list, or
    points ``[x, y]`` instead of numbers.
    """
    if not isinstance(segmentation[0], list) or _is_point(segmentation[0]):
        segmentation = [segmentation]
    return [
        [number for point in polygon for number in point]
        if isinstance(polygon, list) and polygon and all(map(_is_point, polygon))
        else polygon
        for polygon in segmentation
    ]


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int | float) for v in value)
    )


def _draw_polygons(polygons: list[Any], width: int, height: int) -> tuple[Runs, list[str]]:
    """The region that at least one of the polygons covers, and why polygons were left out."""
    drawn, problems = [], []
    for number, polygon in enumerate(polygons, 1):
        try:
            drawn.append(_corners(polygon, MAX_DISTANCE * max(width, height)))
        except ValueError as error:
            of_many = f" (polygon {number} of {len(polygons)})" if len(polygons) > 1 else ""
            problems.append(f"{error}{of_many}")
    if not drawn:
        more = f"; and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}")
    region = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
    return _decompress(region["counts"]), problems


def _corners(polygon: Any, max_distance: int) -> npt.NDArray[np.float64]:
    """``(2 n,)``: x and y of each corner in turn."""
    try:
        corners = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("has a polygon that is not a list of numbers") from error
    if corners.ndim != 1 or len(corners) % 2:
        raise ValueError("has a polygon that is not a list x, y, x, y …")
    if len(corners) < 6:
        raise ValueError(f"has a polygon of {len(corners) // 2} points: at least 3 make one")
    if not np.isfinite(corners).all():
        raise ValueError("has a corner whose coordinates are not numbers")
    if np.abs(corners).max() > max_distance:
        raise ValueError(f"has a corner more than {max_distance:,} pixels away")
    return corners


def _decode_rle(rle: Mapping[str, Any], width: int, height: int) -> Runs:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"has RLE of the size {size}: [{height}, {width}] is the image's")
    if isinstance(counts, str):
        counts = _decompress(counts.encode("latin-1", "replace"))
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("has RLE whose counts are not runs of pixels")
    if sum(counts) != width * height:
        raise ValueError(f"has RLE of {sum(counts):,} pixels for {width * height:,}")
    return counts


def _decompress(text: bytes) -> Runs:
    """The runs of compressed RLE: signed numbers of five bits a character, lowest bits first; from
    the fourth on each is the difference from the one before the last.
    """
    runs: Runs = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has RLE whose counts are not compressed runs")
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


# ------------------------------------------------------------------------------------------ writing


def photo_file(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph as the file to write."""
    assert image.photo is not None
    return {f"images/{image.photo_name}": image.photo.data}


def annotations_json(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """The one file of all images and annotations."""
    info = {"description": f"{DESCRIPTION} {run}"}
    categories = json.dumps(to_categories(classes), ensure_ascii=False)
    return {
        "annotations.json": [
            f'{{"info": {json.dumps(info)},\n"licenses": [],\n',
            f'"categories": {categories},\n"images": [\n',
            IMAGES,
            '\n],\n"annotations": [\n',
            ANNOTATIONS,
            "\n]}\n",
        ]
    }


def shapes_digest(shapes: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 in hex of the ``(name, segmentation)`` of an image's annotations, in any order.

    Coordinates count to a tenth of a pixel, because tools round them.
    """
    texts = sorted(f"{name}: {_rounded(segmentation)}" for name, segmentation in shapes)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _rounded(segmentation: Any) -> str:
    if isinstance(segmentation, list):
        return f"[{', '.join(map(_rounded, segmentation))}]"
    is_number = isinstance(segmentation, int | float) and abs(segmentation) < MAX_COORDINATE
    return f"{segmentation:.1f}" if is_number else json.dumps(segmentation)


def to_categories(classes: Classes) -> list[dict[str, Any]]:
    """The ``categories`` of a COCO file; ids are class ids plus 1."""
    return [{"id": c.id + 1, "name": c.name, "supercategory": ""} for c in classes]


def image_and_annotations(image: SegmentedImage, last: str) -> Mapping[str, Sequence[str]]:
    """The image's entry, and one annotation for each of its regions."""
    height, width = image.label_map.shape
    entry = {
        "id": image.image_id,
        "file_name": last,
        "width": width,
        "height": height,
        "uri": image.uri,
    }
    annotations = [
        {"id": image.image_id * IDS_PER_IMAGE + number, "image_id": image.image_id, **region}
        for number, region in enumerate(_encode_regions(image.label_map), 1)
    ]
    return {
        IMAGES.name: [json.dumps(entry, ensure_ascii=False)],
        ANNOTATIONS.name: [json.dumps(annotation) for annotation in annotations],
    }


def _encode_regions(label_map: LabelMap) -> Iterator[dict[str, Any]]:
    """Category, RLE, area and box of each region, in the order of their first pixels.

    Finds the runs of all regions in one pass over the pixels, column by column as RLE counts them.
    """
    height, width = label_map.shape
    # Plus 1 in uint8 turns ignore (255) into 0, the background that cc3d leaves out.
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


COCO = Format(
    reader=Reader(find_coco, read_coco, options=["unlabelled"]),
    writer=Writer(
        Photos.FILES,
        photo_file,
        ("images/{name}.jpg", "images/{name}.png"),
        annotations_json,
        image_and_annotations,
    ),
)
