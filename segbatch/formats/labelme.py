"""labelme: its JSON files, of versions 3 to 6, one an image.

What labelme does is done here: ``imageData`` is taken before ``imagePath``, backslashes are
slashes, a photograph is labelled as EXIF turns it, shapes lie over each other in the order of the
file, and a shape without ``shape_type`` is a polygon.

Source: ``labelme/_label_file.py`` and ``labelme/utils/`` of labelme 6.3.1, and ``label_file.py`` of
3.16 and 5.5.
"""

from __future__ import annotations

import base64
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from segbatch import storage
from segbatch.errors import Incomplete, SourceError
from segbatch.formats import draw
from segbatch.formats import photo as picture
from segbatch.formats.files import KEY, folder_of, list_uris, own_uri, split_of
from segbatch.formats.format import (
    IGNORE,
    Found,
    Item,
    Labelled,
    Options,
    Reader,
    Skipped,
    Unusable,
)
from segbatch.formats.photo import Size, check_size
from segbatch.formats.polygons import Polygon, polygons
from segbatch.formats.writing import Part, Photos, Segmented, Writer
from segbatch.masks.classes import CONTROL, IGNORE_INDEX, Classes, is_name

SHAPES: Mapping[str, Callable[[draw.LabelMap, draw.Points, int], None]] = {
    "polygon": draw.polygon,
    "rectangle": draw.rectangle,
    "oriented_rectangle": draw.polygon,
    "circle": draw.circle,
    "line": draw.line,
    "linestrip": draw.line,
    "point": draw.point,
}


# More than anyone draws by hand; a polygon's points are gone through for every line of the image.
MAX_SHAPES = 100_000


MAX_POINTS = 50_000


MAX_PATH = 4096


# Files that are read at once; with images in them, they are megabytes each.
CHUNK = 32


# ------------------------------------------------------------------------------------------- find


def find(source: str, options: Options) -> Found:
    """The labelme files in the folder ``source`` at any depth, or the one file that it names.

    The split is what a file's folder is called. The image is where ``imagePath`` points from there.
    With ``options.images`` it is below that root: in the folder as which the file's own lies below
    ``source``, if the root has such a one, and of a path that leads away (``..``, ``C:\\…``,
    ``https://…``) only the name counts, so that nothing outside of the root is read. A file of
    ``labels suggest`` says of which image the one that it points to is a copy. Reads every file
    once, and holds 32 at a time.

    Raises :class:`~segbatch.errors.SourceError` where there is no labelme file, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    source = storage.normalize(source)
    items: list[Item] = []
    skipped: list[Skipped] = []
    names: set[str] = set()
    roots: dict[str, str] = {}  # of the images, by the labels' folder
    for uri, content in _annotations(_json_files(source), skipped):
        folder = folder_of(uri)
        if options.images is not None and folder not in roots:
            roots[folder] = _root(options.images, folder, source)
        image_uri = _image_uri(uri, content.get("imagePath") or "", roots.get(folder))
        split = split_of(storage.name_of(folder))
        own = own_uri(content)
        items.append(Item(own or image_uri, uri, split, copy=image_uri if own else None))
        names |= {label for shape in content["shapes"] if (label := _label(shape))}
    if not items:
        raise SourceError(
            f"{source}: no labelme file; of {len(skipped):,} JSON files the first is"
            f" {skipped[0].where}: {skipped[0].why}"
        )
    return Found(items, sorted(names - {IGNORE}), skipped=skipped)


def _json_files(source: str) -> list[str]:
    if source.lower().endswith(".json"):
        return [source]
    uris = list_uris(source)
    extensions = {posixpath.splitext(uri)[1].lower() for uri in uris}
    if ".json" in extensions:
        return [uri for uri in uris if uri.lower().endswith(".json")]
    if ".xml" in extensions:
        raise SourceError(
            f"{source}: holds .xml and no .json: labelme writes JSON. CVAT's “LabelMe 3.0” is"
            " another thing: export COCO or segmentation masks there, and import --from coco or"
            " --from voc"
        )
    raise SourceError(f"{source}: no .json file" if uris else f"{source}: no such folder or file")


def _annotations(
    uris: Sequence[str], skipped: list[Skipped]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """URI and content of each file that is labelme's; ``skipped`` takes the others."""
    for start in range(0, len(uris), CHUNK):
        chunk = uris[start : start + CHUNK]
        for uri, data in zip(chunk, storage.read_many(chunk, picture.LIMITS), strict=True):
            if isinstance(data, bytes):
                try:
                    yield uri, _parse(data)
                except ValueError as error:
                    skipped.append(Skipped(uri, str(error)))
            elif data.kind in picture.OF_ONE_FILE:
                skipped.append(Skipped(uri, f"cannot be read: {data.message}"))
            else:
                raise Incomplete(f"{uri}: cannot be read: {data.message}")


def _parse(data: bytes) -> dict[str, Any]:
    """The content of a labelme file; ``ValueError`` with the reason for any other file."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {storage.one_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        is_coco = isinstance(content, dict) and {"images", "annotations"} <= content.keys()
        hint = "; it looks like COCO: --from coco" if is_coco else ""
        raise ValueError(f"not a labelme file: it has no list of `shapes`{hint}")
    path, image = content.get("imagePath"), content.get("imageData")
    if not (path or image) or not isinstance(path or image, str):
        raise ValueError("not a labelme file: it has neither `imagePath` nor `imageData`")
    if path and (len(path) > MAX_PATH or CONTROL.search(path)):
        raise ValueError("its `imagePath` is no path")
    if len(content["shapes"]) > MAX_SHAPES:
        raise ValueError(f"has {len(content['shapes']):,} shapes; at most {MAX_SHAPES:,} are read")
    return content


def _label(shape: Any) -> str:
    """The shape's label; an empty text if it has none that a class could have."""
    label = shape.get("label") if isinstance(shape, dict) else None
    return label if is_name(label) else ""


def _root(images: str, folder: str, source: str) -> str:
    """The root of the images that are labelled in ``folder``, which is ``source`` or below it."""
    images = storage.normalize(images)
    if not folder.startswith(f"{source}/"):
        return images
    same = storage.join(images, folder.removeprefix(source))
    return same if list_uris(same) else images


def _image_uri(labels_uri: str, image_path: str, root: str | None) -> str:
    """Where ``imagePath`` points; the labels' own URI if it is empty."""
    has_scheme = storage.scheme_of(image_path)
    if has_scheme and root is None:
        return image_path
    path = PureWindowsPath(image_path)  # of both kinds of slashes
    if not path.name:
        return labels_uri
    if root is not None:
        leads_away = has_scheme or path.anchor or ".." in path.parts
        return storage.join(root, path.name if leads_away else path.as_posix())
    is_local = storage.is_local(labels_uri)
    bucket, key = ("", labels_uri) if is_local else storage.split_bucket(labels_uri)
    is_elsewhere = path.drive or (path.root and not is_local)  # on the computer of who labelled
    below = path.name if is_elsewhere else path.as_posix()
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(key), below))
    return f"{bucket}/{whole.lstrip('/')}"


# ------------------------------------------------------------------------------------------- read


def read(item: Item, ids: Mapping[str, int], unlabelled: int) -> Labelled:
    """The image with its shapes drawn over each other, and why any of them is not.

    A skipped shape is called by its place in the file, from 1, and its label. Raises
    :class:`~segbatch.formats.format.Unusable` where file or image cannot be read or decoded, or
    the file says another size, and :class:`~segbatch.errors.Incomplete` where storage does not
    answer.
    """
    try:
        content = _parse(picture.read_file(item.labels_uri))
    except ValueError as error:
        raise Unusable(f"{item.labels_uri}: {error}") from error

    said = _size(content)
    if embedded := content.get("imageData"):
        image = _unpacked(embedded)
        # labelme turns the photographs that it opens, but shows imageData as it is.
        (width, height), orientation = picture.stored_size(image)
        if said not in (None, (width, height)):
            raise Unusable(f"the JSON is for {said[0]}×{said[1]} and imageData {width}×{height}")
    else:
        image = picture.read_file(item.file)
        (width, height), orientation = check_size(image, said, "the JSON"), 1

    label_map = np.full((height, width), unlabelled, np.uint8)
    ids = {**ids, IGNORE: IGNORE_INDEX}
    skipped = []
    for number, shape in enumerate(content["shapes"], 1):
        try:
            _draw(label_map, shape, ids)
        except ValueError as error:
            label = f" ({_label(shape)})" if _label(shape) else ""
            skipped.append(Skipped(f"{item.labels_uri} shape {number}{label}", str(error)))
    num_drawn = len(content["shapes"]) - len(skipped)
    label_map = _turned(label_map, orientation)
    height, width = label_map.shape
    return Labelled(image, width, height, label_map, num_drawn, tuple(skipped))


def _size(content: Mapping[str, Any]) -> Size | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not isinstance(width, int) or not isinstance(height, int):
        return None  # early versions do not say it
    return width, height


def _unpacked(image_data: Any) -> bytes:
    try:
        return base64.b64decode(image_data)
    except (ValueError, TypeError) as error:
        raise Unusable("its imageData is not base64") from error


def _draw(label_map: draw.LabelMap, shape: Any, ids: Mapping[str, int]) -> None:
    """Draw one shape; ``ValueError`` with the reason if that is not possible."""
    label = _label(shape)
    if not label:
        raise ValueError("has no label")
    if label not in ids:
        raise ValueError("its label is not one of the classes")
    kind = shape.get("shape_type") or "polygon"
    points = _points(shape)
    if kind == "mask":
        draw.mask(label_map, _mask(shape), points, ids[label])
    elif isinstance(kind, str) and kind in SHAPES:
        SHAPES[kind](label_map, points, ids[label])
    else:
        raise ValueError(f"its shape_type {kind!r} is unknown")


def _points(shape: Mapping[str, Any]) -> draw.Points:
    try:
        points = np.array(shape.get("points") or np.empty((0, 2)), np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError("its points are not pairs of numbers") from error
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("its points are not pairs of numbers")
    if len(points) > MAX_POINTS:
        raise ValueError(f"has {len(points):,} points; at most {MAX_POINTS:,} are drawn")
    return points


def _mask(shape: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    try:
        data = io.BytesIO(base64.b64decode(shape["mask"]))
        with Image.open(data, formats=["PNG"]) as image:
            is_inside: npt.NDArray[np.bool_] = np.asarray(image) != 0
    except Exception as error:  # a decoder may raise anything for a broken file
        raise ValueError("its mask is not a picture in base64") from error
    if is_inside.ndim != 2:
        raise ValueError("its mask is a picture in colours")
    return is_inside


def _turned(label_map: draw.LabelMap, orientation: int) -> draw.LabelMap:
    """The label map of an image as it is stored → that of the upright image."""
    if orientation == 1:
        return label_map
    turned = Image.fromarray(label_map)
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(ImageOps.exif_transpose(turned))


LABELME_READER = Reader(find, read)


# labelme: a JSON file beside each photograph, its regions as polygons painted over each other.
#
# Polygons there have no holes; how they are kept: :mod:`segbatch.formats.polygons`. Ignored pixels
# are polygons of ``__ignore__``. ``labels.txt`` is what ``labelme --labels`` and ``--classes``
# take. The key ``segbatch``, which labelme keeps, says which image of which run it is.
#
# Source: ``labelme/_label_file.py`` of labelme 6.3.1, whose files of version 5 are the same.


VERSION = "5.5.0"


def image_files(image: Segmented) -> Mapping[str, bytes]:
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
                "label": _label_of(classes, shape.class_id),
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


def _label_of(classes: Classes, class_id: int) -> str:
    return IGNORE if class_id == IGNORE_INDEX else classes[class_id].name


LABELME_WRITER = Writer(Photos.FILES, image_files, ("{name}.json",), shared)
