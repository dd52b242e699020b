"""VOC: photographs in ``JPEGImages/``, masks of the same names in ``SegmentationClass/`` or
``SegmentationClassPNG/``, lists of their names in ``ImageSets/Segmentation/``.

Read as VOC itself, labelme2voc (names in ``class_names.txt``, one line per id) and CVAT (masks of
colours, with ``labelmap.txt``) lay it out. Written as CVAT does: the masks' indices are class ids
and their colours those of ``labelmap.txt``, so that readers of either see the same.

Source: section 3 of the VOC2012 development kit's documentation; ``labelme2voc.py`` of labelme;
CVAT's documentation of Pascal VOC.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from segbatch import storage
from segbatch.errors import InputError, SourceError
from segbatch.formats.folder import (
    is_image,
    list_uris,
    read_lines,
    split_of_word,
    without_extension,
)
from segbatch.formats.format import (
    Annotations,
    Format,
    Photos,
    Reader,
    ReadOptions,
    SegmentedImage,
    Skipped,
    Slot,
    Unusable,
    Writer,
)
from segbatch.formats.maskfiles import (
    ColorKey,
    IndexKey,
    NamedFile,
    pair_by_id,
    read_color_table,
    read_mask_file,
)
from segbatch.formats.photo import read_sample_file
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, VOC_NAMES, Classes, Color, voc_color
from segbatch.masks.classfile import names_by_id

MASK = re.compile(r"SegmentationClass(?:PNG)?/(?P<id>.+)\.(?i:png)")
PHOTO = re.compile(r"JPEGImages/(?P<id>.+)\.[^./]+")
LIST = re.compile(r"ImageSets/Segmentation/(?P<id>[^/]+)\.txt")
VOID = voc_color(255)

LISTED_NAMES = Slot("list")
LABELMAP_HEAD = "# label:color_rgb:parts:actions\n"


# ------------------------------------------------------------------------------------------ reading


def find_voc(source: str, options: ReadOptions) -> Annotations:
    """The masks in every ``SegmentationClass/`` or ``SegmentationClassPNG/`` below ``source``, each
    with its image from the ``JPEGImages/`` next to it, or from ``options.images``.

    The meaning of the masks' pixels is given by the first of ``options.colors``, ``labelmap.txt``,
    ``class_names.txt`` and ``options.class_names``; without any, masks in VOC's palette next to
    ``ImageSets/`` hold VOC's own classes. Raises :class:`~segbatch.errors.SourceError` if there
    are no such masks, no images for them, or nothing names their classes, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    source = storage.normalize(source)
    given_photos = None if options.images is None else _images_below(options.images)
    images = []
    skipped: list[Skipped] = []
    names: dict[str, None] = {}
    colors: dict[str, Color] = {}
    for folder in _folders(source):
        photos = folder.photos if given_photos is None else given_photos
        masks = folder.files(MASK)
        key = _key(folder, masks[0].uri, options)
        splits, not_used = _splits(folder, {file.id for file in [*photos, *masks]})
        masks = [replace(mask, split=splits.get(mask.id)) for mask in masks]
        paired, alone = pair_by_id(photos, masks, key)
        images += paired
        skipped += [*not_used, *alone]
        names |= dict.fromkeys(key.names)
        colors |= key.colors
    if not images:
        where = options.images or "JPEGImages/"
        raise SourceError(
            f"{source}: no mask has an image of its name in {where}: name the folder of the images"
            f" with --images; {skipped[-1].where}: {skipped[-1].why}"
        )
    return Annotations(images, list(names), colors, skipped)


@dataclass(frozen=True)
class VocFolder:
    """A folder that holds ``SegmentationClass/``, and the paths of all files below it."""

    uri: str
    paths: Sequence[str]

    @property
    def photos(self) -> list[NamedFile]:
        return [file for file in self.files(PHOTO) if is_image(file.uri)]

    def files(self, pattern: re.Pattern[str]) -> list[NamedFile]:
        matches = (pattern.fullmatch(path) for path in self.paths)
        return [NamedFile(storage.join(self.uri, m[0]), m["id"]) for m in matches if m]


def _folders(source: str) -> list[VocFolder]:
    uris = list_uris(source)
    found = sorted(
        {match[1] for uri in uris if (match := re.fullmatch(rf"(.*)/{MASK.pattern}", uri))}
    )
    if not found:
        raise SourceError(
            f"{source}: no *.png in a folder SegmentationClass/ or SegmentationClassPNG/"
        )
    return [
        VocFolder(
            folder, [uri.removeprefix(f"{folder}/") for uri in uris if uri.startswith(f"{folder}/")]
        )
        for folder in found
    ]


def _images_below(root: str) -> list[NamedFile]:
    root = storage.normalize(root)
    return [
        NamedFile(uri, without_extension(uri.removeprefix(f"{root}/")))
        for uri in list_uris(root)
        if is_image(uri)
    ]


def _splits(folder: VocFolder, known: set[str]) -> tuple[dict[str, str], list[Skipped]]:
    """The split by id, from the lists named ``train``, ``val`` and ``test``; and the listed names
    that are not ``known``, or in two of these lists.
    """
    splits: dict[str, str] = {}
    skipped = []
    for file in folder.files(LIST):
        split = split_of_word(file.id)
        for line in filter(None, read_lines(file.uri)):
            name = _listed_id(line, known)
            if name is None:
                skipped.append(Skipped(f"{file.uri}: {line}", "has neither image nor mask"))
            elif split is not None and splits.setdefault(name, split) != split:
                skipped.append(
                    Skipped(f"{file.uri}: {name}", f"is in the list of {splits[name]} already")
                )
    return splits, skipped


def _listed_id(line: str, known: set[str]) -> str | None:
    """The name in ``known`` that a line of a list means; ``None`` if there is none.

    A line is a name (CVAT quotes it), a file or its path in the folder, or any of these before a
    second column: the mask's path, or whether the image has an object of a class.
    """
    for text in (line, line.partition(" ")[0], line.partition("\t")[0]):
        path = storage.composed(text.strip('"')).lstrip("./")
        inside = re.sub(r"^(JPEGImages|SegmentationClass(PNG)?)/", "", path)
        for name in (path, without_extension(path), inside, without_extension(inside)):
            if name in known:
                return name
    return None


def _key(folder: VocFolder, mask_uri: str, options: ReadOptions) -> IndexKey | ColorKey:
    """The meaning of the pixels in the folder's masks."""
    labelmap = storage.join(folder.uri, "labelmap.txt")
    class_names = storage.join(folder.uri, "class_names.txt")
    if options.colors is not None or "labelmap.txt" in folder.paths:
        return ColorKey({VOID: IGNORE, **read_color_table(options.colors or labelmap)})
    if "class_names.txt" in folder.paths:
        try:
            names = names_by_id(filter(None, read_lines(class_names)))
        except InputError as error:
            raise SourceError(f"{class_names}: {error}") from error
        if not names:
            raise SourceError(f"{class_names}: no names: a line is the name of an id, 0, 1, 2 …")
        return IndexKey(tuple(names))
    if options.class_names is not None:
        return IndexKey(options.class_names)
    if any(LIST.fullmatch(path) for path in folder.paths) and _has_voc_palette(mask_uri):
        return IndexKey(tuple(VOC_NAMES))
    raise SourceError(
        f"{folder.uri}: its masks hold ids or colours, and there is no class_names.txt or"
        " labelmap.txt that names them: give the names by id with --classes, or --colors FILE"
    )


def _has_voc_palette(mask_uri: str) -> bool:
    """Whether a mask has the colours of VOC's classes for its ids."""
    try:
        with Image.open(io.BytesIO(read_sample_file(mask_uri))) as mask:
            palette = mask.getpalette() or []
    except (Unusable, OSError, SyntaxError):
        return False
    wanted = [value for index in range(len(VOC_NAMES)) for value in voc_color(index)]
    return mask.mode == "P" and palette[: len(wanted)] == wanted


# ------------------------------------------------------------------------------------------ writing


def photo_and_mask(image: SegmentedImage) -> Mapping[str, bytes]:
    """The photograph as JPEG, and its mask at its size."""
    assert image.photo is not None
    mask = encode_mask(image.label_map, distinct_colors(image.classes).palette)
    return {
        f"JPEGImages/{image.photo_name}": image.photo.data,
        f"SegmentationClass/{image.name}.png": mask,
    }


def labelmap_and_list(classes: Classes, run: str) -> Mapping[str, Sequence[str | Slot]]:
    """The colours by name, and the list of all images."""
    lines = (f"{c.name}:{','.join(map(str, c.color))}::\n" for c in distinct_colors(classes))
    return {
        "labelmap.txt": [LABELMAP_HEAD, *lines],
        "ImageSets/Segmentation/default.txt": [LISTED_NAMES],
    }


def listed_name(image: SegmentedImage, last: str) -> Mapping[str, Sequence[str]]:
    """The image's line in the list."""
    return {LISTED_NAMES.name: [f"{image.name}\n"]}


def distinct_colors(classes: Classes) -> Classes:
    """``classes``, all in VOC's colours if two of them share a colour or one has that of void.

    Colours in ``labelmap.txt`` must be unique.
    """
    colors = {c.color for c in classes}
    if len(colors) == len(classes) and voc_color(IGNORE_INDEX) not in colors:
        return classes
    return Classes(classes.names, [voc_color(c.id) for c in classes])


VOC = Format(
    reader=Reader(find_voc, read_mask_file, options=["colors"]),
    writer=Writer(
        Photos.JPEG_FILES,
        photo_and_mask,
        ("SegmentationClass/{name}.png",),
        labelmap_and_list,
        listed_name,
    ),
)
