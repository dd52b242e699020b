"""VOC: photographs in ``JPEGImages/``, masks of the same names in ``SegmentationClass/`` or
``SegmentationClassPNG/``, lists of their names in ``ImageSets/Segmentation/``.

So VOC itself, labelme2voc (names in ``class_names.txt``, a line an id) and CVAT (masks of colours,
with ``labelmap.txt``) lay them out.

Source: section 3 of the VOC2012 development kit's documentation; ``labelme2voc.py`` of labelme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats import maskfiles
from segbatch.formats.files import list_uris, read_lines, split_of, without_extension
from segbatch.formats.format import IGNORE, Found, Item, Options, Reader, Skipped, Unusable
from segbatch.formats.maskfiles import ColorKey, File, IndexKey, colors_of, read_colors
from segbatch.formats.photo import read_file
from segbatch.formats.writing import Part, Photos, Segmented, Writer
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX, VOC_NAMES, Classes, Color, voc_color

MASK = re.compile(r"SegmentationClass(?:PNG)?/(?P<id>.+)\.(?i:png)")


IMAGE = re.compile(r"JPEGImages/(?P<id>.+)\.[^./]+")


LIST = re.compile(r"ImageSets/Segmentation/(?P<id>[^/]+)\.txt")


VOID = voc_color(255)


@dataclass(frozen=True)
class Folder:
    """A folder that holds ``SegmentationClass/``, and the paths of all files below it."""

    uri: str
    paths: Sequence[str]

    def files(self, pattern: re.Pattern[str]) -> list[File]:
        matches = (pattern.fullmatch(path) for path in self.paths)
        return [File(storage.join(self.uri, match[0]), match["id"]) for match in matches if match]


def find(source: str, options: Options) -> Found:
    """The masks in every ``SegmentationClass/`` or ``SegmentationClassPNG/`` below ``source``, each
    with its image from ``JPEGImages/`` beside it, or from ``options.images``.

    What the masks hold is said by ``options.colors``, ``labelmap.txt``, ``class_names.txt`` or
    ``options.class_names``, the first of these; without any, masks in VOC's palette beside
    ``ImageSets/`` hold VOC's own classes. Raises :class:`~segbatch.errors.SourceError` where there
    are no such masks, no images for them, or nothing says what they hold, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    source = storage.normalize(source)
    images = None if options.images is None else _files_below(options.images)
    items: list[Item] = []
    skipped: list[Skipped] = []
    names: dict[str, None] = {}
    colors: dict[str, Color] = {}
    for folder in _folders(source):
        photographs = folder.files(IMAGE) if images is None else images
        masks = folder.files(MASK)
        key = _key(folder, masks[0].uri, options)
        splits, left_out = _splits(folder, {file.id for file in [*photographs, *masks]})
        masks = [replace(mask, split=splits.get(mask.id)) for mask in masks]
        paired, alone = maskfiles.pair(photographs, masks, key)
        items += paired
        skipped += [*left_out, *alone]
        if isinstance(key, ColorKey):
            colors |= colors_of(key.colors)
            names |= dict.fromkeys(colors_of(key.colors))
        else:
            names |= dict.fromkeys(key.names)
    if not items:
        where = options.images or "JPEGImages/"
        raise SourceError(
            f"{source}: no mask has an image of its name in {where}: say with --images where they"
            f" are; {skipped[-1].where}: {skipped[-1].why}"
        )
    return Found(items, list(names), colors, skipped)


def _folders(source: str) -> list[Folder]:
    uris = list_uris(source)
    found = sorted(
        {match[1] for uri in uris if (match := re.fullmatch(rf"(.*)/{MASK.pattern}", uri))}
    )
    if not found:
        raise SourceError(
            f"{source}: no *.png in a folder SegmentationClass/ or SegmentationClassPNG/"
        )
    return [
        Folder(uri, [path.removeprefix(f"{uri}/") for path in uris if path.startswith(f"{uri}/")])
        for uri in found
    ]


def _files_below(root: str) -> list[File]:
    root = storage.normalize(root)
    return [File(uri, without_extension(uri.removeprefix(f"{root}/"))) for uri in list_uris(root)]


def _splits(folder: Folder, known: set[str]) -> tuple[dict[str, str], list[Skipped]]:
    """Split by id, from the lists called ``train``, ``val`` and ``test``; and what is in a list
    only, or in two.
    """
    splits: dict[str, str] = {}
    skipped = []
    for file in folder.files(LIST):
        split = split_of(file.id)
        for line in filter(None, read_lines(file.uri)):
            name = line.strip('"')  # as CVAT writes names with a space
            if name not in known:
                skipped.append(Skipped(f"{file.uri}: {name}", "has neither image nor mask"))
            elif split is not None and splits.setdefault(name, split) != split:
                skipped.append(
                    Skipped(f"{file.uri}: {name}", f"is in the list of {splits[name]} already")
                )
    return splits, skipped


def _key(folder: Folder, mask_uri: str, options: Options) -> IndexKey | ColorKey:
    """What the masks of the folder hold."""
    labelmap, class_names = (
        storage.join(folder.uri, name) for name in ("labelmap.txt", "class_names.txt")
    )
    if options.colors is not None or "labelmap.txt" in folder.paths:
        return ColorKey({VOID: IGNORE, **read_colors(options.colors or labelmap)})
    if "class_names.txt" in folder.paths:
        names = [name for name in read_lines(class_names) if name not in ("", IGNORE)]
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
        with Image.open(io.BytesIO(read_file(mask_uri))) as mask:
            palette = mask.getpalette() or []
    except (Unusable, OSError, SyntaxError):
        return False
    wanted = [value for index in range(len(VOC_NAMES)) for value in voc_color(index)]
    return mask.mode == "P" and palette[: len(wanted)] == wanted


VOC_READER = Reader(find, maskfiles.read)


# VOC: ``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/default.txt`` and
# ``labelmap.txt``, as CVAT writes them.
#
# The masks' indices are class ids and their colours those of ``labelmap.txt``, so that readers of
# either see the same. There, no two classes may have one colour, nor any that of void: where some
# have, all get the colours of VOC.
#
# Source: the VOC2012 development kit's documentation; CVAT's documentation of Pascal VOC.


LISTED = Part("list")


HEAD = "# label:color_rgb:parts:actions\n"


def image_files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph as JPEG, and its mask at its size."""
    assert image.photo is not None
    mask = encode_mask(image.label_map, apart(image.classes).palette)
    return {
        f"JPEGImages/{image.photo_name}": image.photo.data,
        f"SegmentationClass/{image.name}.png": mask,
    }


def entries(image: Segmented, last: str) -> Mapping[str, Sequence[str]]:
    """Its line in the list."""
    return {LISTED.name: [f"{image.name}\n"]}


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The colours by name, and the list of all images."""
    lines = (f"{c.name}:{','.join(map(str, c.color))}::\n" for c in apart(classes))
    return {
        "labelmap.txt": [HEAD, *lines],
        "ImageSets/Segmentation/default.txt": [LISTED],
    }


def apart(classes: Classes) -> Classes:
    """The same classes in colours that are all different, from each other and from void."""
    colors = {c.color for c in classes}
    if len(colors) == len(classes) and voc_color(IGNORE_INDEX) not in colors:
        return classes
    return Classes(classes.names, [voc_color(c.id) for c in classes])


VOC_WRITER = Writer(
    Photos.JPEG_FILES, image_files, ("SegmentationClass/{name}.png",), shared, entries
)
