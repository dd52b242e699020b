"""labelme: its JSON files, one for each image, with shapes that are painted over each other.

Files of versions 3 to 6 are read as labelme reads them: ``imageData`` wins over ``imagePath``,
backslashes are slashes, a photograph is labelled as EXIF turns it, later shapes lie on top, and a
shape without ``shape_type`` is a polygon.

A file is written next to each photograph, with its regions as polygons. labelme's polygons have no
holes; :mod:`segbatch.formats.polygons` explains how holes are kept. Ignored pixels are polygons of
``__ignore__``. ``labels.txt`` is what ``labelme --labels`` and ``--classes`` take. The key
``segbatch``, which labelme keeps, names the image and its run.

Source: ``labelme/_label_file.py`` and ``labelme/utils/`` of labelme 6.3.1, whose files of version 5
are the same, and ``label_file.py`` of 3.16 and 5.5.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats import draw
from segbatch.formats.folder import (
    PROVENANCE_KEY,
    Spellings,
    folder_of,
    list_uris,
    original_uri,
    read_label_files,
    split_of_word,
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
    Unusable,
    Writer,
)
from segbatch.formats.photo import (
    checked_size,
    read_sample_file,
    stored_size,
)
from segbatch.formats.polygons import Polygon, polygons
from segbatch.images.decode import WidthHeight
from segbatch.masks.classes import CONTROL, IGNORE, IGNORE_INDEX, Classes, is_name
from segbatch.storage.uris import local_uri

DRAW_SHAPE: Mapping[str, Callable[[LabelMap, draw.Points, int], None]] = {
    "polygon": draw.polygon,
    "rotation": draw.polygon,  # a turned rectangle of X-AnyLabeling, its four corners
    "quadrilateral": draw.polygon,  # X-AnyLabeling's
    "rectangle": draw.rectangle,
    "oriented_rectangle": draw.polygon,
    "circle": draw.circle,
    "line": draw.line,
    "linestrip": draw.line,
    "point": draw.point,
}

# More than anyone draws by hand; every point of a polygon costs time for every line of the image.
MAX_SHAPES = 100_000
MAX_POINTS = 50_000
MAX_PATH = 4096

# Suggestions are a model's labels. Their provenance holds a digest under this key, by which the
# import knows those that nobody has changed since.
DIGEST_KEY = "unchanged"
WRITTEN_VERSION = "5.5.0"


# ------------------------------------------------------------------------------------------ finding


def find_labelme(source: str, options: ReadOptions) -> Annotations:
    """The labelme files in the folder ``source`` at any depth, or the one file that it names.

    The name of a file's folder gives the split. ``imagePath``, relative to the file, gives the
    image. With ``options.images`` the image is below that root: in the subfolder that corresponds
    to the file's own below ``source``, if the root has one; of a path that leads away (``..``,
    ``C:\\…``, ``https://…``) only the name counts, so that nothing outside of the root is read. A
    file of ``labels suggest`` names the image of which the one in ``imagePath`` is a copy. Reads
    every file once, and holds 32 at a time.

    Raises :class:`~segbatch.errors.SourceError` if there is no labelme file, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    source = storage.normalize(source)
    images: list[AnnotatedImage] = []
    skipped: list[Skipped] = []
    names: set[str] = set()
    roots: dict[str, str] = {}  # of the images, by the labels' folder
    uris = [source] if source.lower().endswith(".json") else list_uris(source)
    files = Spellings(uris)
    for uri, data in read_label_files(_json_files(source, uris)):
        try:
            if isinstance(data, Skipped):
                raise ValueError(data.why)
            content = _parse(data)
        except ValueError as error:
            skipped.append(Skipped(uri, str(error)))
            continue
        folder = folder_of(uri)
        if options.images is not None and folder not in roots:
            roots[folder] = _images_root(options.images, folder, source)
        file = files.find(_image_uri(uri, content.get("imagePath") or "", roots.get(folder)))
        split = split_of_word(storage.name_of(folder))
        original = original_uri(content)
        copy = file if original else None
        unchanged = is_unchanged(data, content)
        images.append(AnnotatedImage(original or file, uri, split, copy=copy, unchanged=unchanged))
        names |= {label for shape in content["shapes"] if (label := _label(shape))}
    if not images:
        raise SourceError(
            f"{source}: no labelme file; of {len(skipped):,} JSON files the first is"
            f" {skipped[0].where}: {skipped[0].why}"
        )
    return Annotations(images, sorted(names - {IGNORE}), skipped=skipped)


def _json_files(source: str, uris: Sequence[str]) -> list[str]:
    extensions = {posixpath.splitext(uri)[1].lower() for uri in uris}
    if ".json" in extensions:
        return [uri for uri in uris if uri.lower().endswith(".json")]
    if ".xml" in extensions:
        raise SourceError(
            f"{source}: holds .xml and no .json: labelme writes JSON. CVAT's “LabelMe 3.0” is"
            " another format: export COCO or segmentation masks there, and import --from coco or"
            " --from voc"
        )
    raise SourceError(f"{source}: no .json file" if uris else f"{source}: no such folder or file")


def _parse(data: bytes) -> dict[str, Any]:
    """The content of a labelme file; ``ValueError`` with the reason for any other file."""
    try:
        content = json.loads(storage.decode_text(data, "the file", SourceError))
    except SourceError as error:
        raise ValueError(f"not JSON: {error}") from error
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
        raise ValueError("its `imagePath` is not a path")
    if len(content["shapes"]) > MAX_SHAPES:
        raise ValueError(f"has {len(content['shapes']):,} shapes; at most {MAX_SHAPES:,} are read")
    return content


def _label(shape: Any) -> str:
    """The shape's label; empty if it has none or one that no class could have."""
    label = shape.get("label") if isinstance(shape, dict) else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    label = storage.clean_name(label) if isinstance(label, str) else None
    return label if is_name(label) else ""


def _images_root(images: str, folder: str, source: str) -> str:
    """The root of the images that are labelled in ``folder``, which is ``source`` or below it."""
    images = storage.normalize(images)
    if not folder.startswith(f"{source}/"):
        return images
    same = storage.join(images, folder.removeprefix(source))
    return same if list_uris(same) else images


def _image_uri(labels_uri: str, image_path: str, root: str | None) -> str:
    """The URI to which ``imagePath`` leads; the labels' own URI if it is empty."""
    has_scheme = storage.scheme_of(image_path)
    if has_scheme and root is None:
        return image_path
    path = PureWindowsPath(image_path)  # takes both kinds of slashes
    if not path.name:
        return labels_uri
    if root is not None:
        leads_away = has_scheme or path.anchor or ".." in path.parts
        return storage.join(root, path.name if leads_away else path.as_posix())
    is_local = storage.is_local(labels_uri)
    local = str(storage.local_path(labels_uri)) if is_local else ""
    bucket, key = ("", local) if is_local else storage.split_bucket(labels_uri)
    is_elsewhere = path.drive or (path.root and not is_local)  # on the labeller's computer
    below = path.name if is_elsewhere else path.as_posix()
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(key), below))
    found = f"{bucket}/{whole.lstrip('/')}"
    return local_uri(found) if is_local else found


# ------------------------------------------------------------------------------------------ reading


def read_labelme(image: AnnotatedImage, ids: Mapping[str, int], unlabelled: int) -> LabelledImage:
    """The image with its shapes drawn over each other, and why any of them is not.

    A skipped shape is called by its place in the file, from 1, and its label. Raises
    :class:`~segbatch.formats.format.Unusable` if the file or the image cannot be read or decoded,
    or the file gives another size, and :class:`~segbatch.errors.Incomplete` if storage does not
    answer.
    """
    try:
        content = _parse(read_sample_file(image.labels_uri))
    except ValueError as error:
        raise Unusable(f"{image.labels_uri}: {error}") from error

    json_size = _size(content)
    perhaps_turned = False
    if embedded := content.get("imageData"):
        photo = _decode_base64(embedded)
        # labelme turns the photographs that it opens, but shows imageData as it is.
        (width, height), orientation = stored_size(photo)
        if json_size is not None and json_size != (width, height):
            raise Unusable(
                f"the JSON is for {json_size[0]}×{json_size[1]} and imageData {width}×{height}"
            )
    else:
        photo = read_sample_file(image.file)
        (width, height), perhaps_turned = checked_size(photo, json_size, "the JSON")
        orientation = 1

    label_map = np.full((height, width), unlabelled, np.uint8)
    ids = {**ids, IGNORE: IGNORE_INDEX}
    skipped = []
    for number, shape in enumerate(content["shapes"], 1):
        try:
            _draw(label_map, shape, ids)
        except ValueError as error:
            label = f" ({_label(shape)})" if _label(shape) else ""
            skipped.append(Skipped(f"{image.labels_uri} shape {number}{label}", str(error)))
    num_drawn = len(content["shapes"]) - len(skipped)
    label_map = _turn_upright(label_map, orientation)
    height, width = label_map.shape
    return LabelledImage(photo, width, height, label_map, num_drawn, tuple(skipped), perhaps_turned)


def _size(content: Mapping[str, Any]) -> WidthHeight | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not isinstance(width, int) or not isinstance(height, int):
        return None  # early versions do not give it
    return width, height


def _decode_base64(image_data: Any) -> bytes:
    try:
        return base64.b64decode(re.sub(r"^data:[^,]*,", "", image_data))
    except (ValueError, TypeError) as error:
        raise Unusable("its imageData is not base64") from error


def _draw(label_map: LabelMap, shape: Any, ids: Mapping[str, int]) -> None:
    """Draw one shape; ``ValueError`` with the reason if that is not possible."""
    label = _label(shape)
    if not label:
        raise ValueError("has no label")
    if label not in ids:
        raise ValueError("its label is not one of the classes")
    kind = shape.get("shape_type") or "polygon"
    kind = kind.lower() if isinstance(kind, str) else kind
    points = _points(shape)
    if kind == "mask":
        draw.mask(label_map, _mask(shape), points, ids[label])
    elif isinstance(kind, str) and kind in DRAW_SHAPE:
        DRAW_SHAPE[kind](label_map, points, ids[label])
    else:
        raise ValueError(f"its shape_type {str(kind)[:40]} is unknown")


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
        raise ValueError("its mask is a colour picture")
    return is_inside


def _turn_upright(label_map: LabelMap, orientation: int) -> LabelMap:
    """The label map of an image as it is stored → that of the upright image."""
    if orientation == 1:
        return label_map
    turned = Image.fromarray(label_map)
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(ImageOps.exif_transpose(turned))


# ------------------------------------------------------------------------------------------ writing


def photo_and_polygons(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph, and its labelme file."""
    assert image.photo is not None
    height, width = image.label_map.shape
    labels = labelme_json(
        PurePosixPath(image.photo_name).name,
        (width, height),
        polygons(image.label_map),
        image.classes,
        {"uri": image.uri, "run": image.run, "image_id": image.image_id},
    )
    return {image.photo_name: image.photo.data, f"{image.name}.json": labels}


def labelme_json(
    image_path: str,
    size: WidthHeight,
    shapes: Iterable[Polygon],
    classes: Classes,
    provenance: Mapping[str, Any],
    *,
    suggested: bool = False,
) -> bytes:
    """The labelme file of an image of ``size`` (width, height).

    One that is ``suggested`` holds a digest of itself, see :func:`is_unchanged`.
    """
    content: dict[str, Any] = {
        "version": WRITTEN_VERSION,
        "flags": {},
        "shapes": [
            {
                "label": IGNORE if shape.class_id == IGNORE_INDEX else classes[shape.class_id].name,
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
    }
    content[PROVENANCE_KEY] = {**provenance, DIGEST_KEY: ""} if suggested else provenance
    blank = json.dumps(content, ensure_ascii=False, indent=1)
    if not suggested:
        return blank.encode()
    digest = hashlib.sha256(blank.encode()).hexdigest()
    head, tail = blank.rsplit(f'"{DIGEST_KEY}": ""', 1)
    return f'{head}"{DIGEST_KEY}": "{digest}"{tail}'.encode()


def is_unchanged(data: bytes, content: Mapping[str, Any]) -> bool:
    """Whether a file is byte for byte as :func:`labelme_json` wrote it: labelme writes it
    differently whenever a person saves it.
    """
    provenance = content.get(PROVENANCE_KEY)
    digest = provenance.get(DIGEST_KEY) if isinstance(provenance, dict) else None
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        return False
    head, _, tail = data.rpartition(digest.encode())
    return hashlib.sha256(head + tail).hexdigest() == digest


def labels_txt(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """The class names in the order of their ids, after ``__ignore__``."""
    return {"labels.txt": [f"{name}\n" for name in (IGNORE, *classes.names)]}


LABELME = Format(
    reader=Reader(find_labelme, read_labelme, options=["unlabelled"]),
    writer=Writer(Photos.FILES, photo_and_polygons, ("{name}.json",), labels_txt),
)
