"""Mask files: label maps that are image files of their own, each beside its photograph.

Their pixels hold class ids (a palette's indices or grey values) or colours. Any lossless format
that Pillow opens will do.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.errors import SourceError
from segbatch.formats.files import read_lines
from segbatch.formats.format import IGNORE, Item, Labelled, Skipped, Unusable
from segbatch.formats.photo import check_size, read_file, stored_size
from segbatch.masks.classes import IGNORE_INDEX, Color, voc_color

# Colours: the table that says which colour of a mask stands for which name.


ColorTable = Mapping[Color, str]


_RGB_NAME = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)")


_NAME_RGB = re.compile(r"(.+?)\s*:\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*(?::.*)?")  # CVAT's


UNKNOWN = -1


def read_colors(uri: str) -> dict[Color, str]:
    """A table of ``R G B name`` lines, or CVAT's ``labelmap.txt`` (``name:R,G,B:parts:actions``),
    in the order of its lines; ``#`` begins a comment line. Several colours may have one name.

    Raises :class:`~segbatch.errors.SourceError` for a line that is neither and for a colour that
    stands there twice.
    """
    colors: dict[Color, str] = {}
    lines = [(n, line) for n, line in enumerate(read_lines(uri), 1) if line]
    for position, (number, line) in enumerate((n, line) for n, line in lines if line[0] != "#"):
        where = f"{uri}: line {number}: {line}"
        color, name = _parse(line, position, where)
        if colors.setdefault(color, name) != name:
            raise SourceError(f"{where}: {colors[color]!r} has this colour already")
    if not colors:
        raise SourceError(f"{uri}: no colours: a line must be `R G B name`")
    return colors


def _parse(line: str, position: int, where: str) -> tuple[Color, str]:
    if match := _RGB_NAME.fullmatch(line):
        *values, name = match.groups()
    elif match := _NAME_RGB.fullmatch(line):
        name, *values = match.groups()
    else:
        raise SourceError(f"{where}: must be `R G B name`, or CVAT's `name:R,G,B:parts:actions`")
    if values[0] is None:  # CVAT: as in VOC, by position
        return voc_color(position), name
    red, green, blue = (int(value) for value in values)
    if max(red, green, blue) > 255:
        raise SourceError(f"{where}: a colour is three numbers from 0 to 255")
    return (red, green, blue), name


def colors_of(table: ColorTable) -> dict[str, Color]:
    """The names in the order of the table, each with its first colour; without ``__ignore__``."""
    colors: dict[str, Color] = {}
    for color, name in table.items():
        if name != IGNORE:
            colors.setdefault(name, color)
    return colors


def paint_ids(
    pixels: npt.NDArray[np.uint8], colors: ColorTable, ids: Mapping[str, int]
) -> npt.NDArray[np.uint8]:
    """Class ids of ``(height, width, 3)`` uint8 RGB: ``(height, width)`` uint8.

    Raises :class:`~segbatch.formats.format.Unusable` for colours that are not in the table.
    """
    by_code = np.full(1 << 24, UNKNOWN, np.int16)
    for (red, green, blue), name in colors.items():
        by_code[red << 16 | green << 8 | blue] = IGNORE_INDEX if name == IGNORE else ids[name]
    channels = pixels.astype(np.int32)
    codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    label_map = by_code[codes]
    if label_map.min() == UNKNOWN:
        unknown, counts = np.unique(codes[label_map == UNKNOWN], return_counts=True)
        most = int(unknown[counts.argmax()])
        raise Unusable(
            f"{counts.sum():,} pixels of its mask have colours that are not in the table, most"
            f" often {most >> 16} {most >> 8 & 255} {most & 255} ({counts.max():,} pixels;"
            f" {len(counts):,} such colours in all: many come of lossy compression or smooth edges)"
        )
    painted: npt.NDArray[np.uint8] = label_map.astype(np.uint8)
    return painted


LOSSY = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})


INDEX_MODES = frozenset({"P", "L", "1", "I", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True)
class IndexKey:
    """Pixels are indices into ``names``, and 255 is void. ``reduce_zero_label``: 0 is void, too,
    and every other index is one lower.
    """

    names: tuple[str, ...]
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class ColorKey:
    """Pixels are colours."""

    colors: ColorTable


@dataclass(frozen=True)
class File:
    """A photograph or a mask, by what both are called."""

    uri: str
    id: str
    split: str | None = None


def pair(
    images: Iterable[File], masks: Iterable[File], key: IndexKey | ColorKey
) -> tuple[list[Item], list[Skipped]]:
    """Each image with its mask, in the order of the images, and whatever has no other half."""
    skipped: list[Skipped] = []
    image_of, mask_of = _by_id(images, skipped), _by_id(masks, skipped)
    skipped += [
        Skipped(image.uri, "has no mask") for i, image in image_of.items() if i not in mask_of
    ]
    skipped += [
        Skipped(mask.uri, "has no image") for i, mask in mask_of.items() if i not in image_of
    ]
    items = [
        Item(image.uri, mask_of[i].uri, image.split or mask_of[i].split, key)
        for i, image in image_of.items()
        if i in mask_of
    ]
    return items, skipped


def _by_id(files: Iterable[File], skipped: list[Skipped]) -> dict[str, File]:
    by_id: dict[str, File] = {}
    for file in files:
        if (first := by_id.setdefault(file.id, file)) is not file:
            skipped.append(Skipped(file.uri, f"is called like {first.uri}, which is taken"))
    return by_id


def read(item: Item, ids: Mapping[str, int], unlabelled: int) -> Labelled:
    """One image with its mask, which says something of every pixel: none is ``unlabelled``.

    Raises :class:`~segbatch.formats.format.Unusable` where either is missing or damaged, their
    sizes differ, or the mask has ids or colours without a name.
    """
    image, mask = read_file(item.uri), read_file(item.labels_uri)
    try:
        mask_size, _ = stored_size(mask)
    except Unusable as error:
        raise Unusable(f"its mask {item.labels_uri}: {error}") from error
    width, height = check_size(image, mask_size, "its mask")
    with Image.open(io.BytesIO(mask)) as pixels:
        label_map = _label_map(pixels, item.detail, ids)
    return Labelled(image, width, height, label_map, shapes=1)


def _label_map(
    mask: Image.Image, key: IndexKey | ColorKey, ids: Mapping[str, int]
) -> npt.NDArray[np.uint8]:
    if mask.format in LOSSY:
        raise Unusable(
            f"its mask is {mask.format}, which changes pixels when it compresses: masks must be PNG"
        )
    if isinstance(key, ColorKey):
        mask.info.pop("transparency", None)  # a colour of which Pillow warns when it converts
        return paint_ids(np.asarray(mask.convert("RGB")), key.colors, ids)
    if mask.mode not in INDEX_MODES:
        raise Unusable(
            f"its mask holds colours (mode {mask.mode}) and no ids: say with --colors FILE which"
            " colour stands for which name"
        )
    return _by_index(np.asarray(mask), key, ids)


def _by_index(
    values: npt.NDArray[np.generic], key: IndexKey, ids: Mapping[str, int]
) -> npt.NDArray[np.uint8]:
    known = {index + key.reduce_zero_label: ids[name] for index, name in enumerate(key.names)}
    known |= {255: IGNORE_INDEX} | ({0: IGNORE_INDEX} if key.reduce_zero_label else {})
    present, counts = np.unique(values, return_counts=True)
    unknown = [index for index in present.tolist() if index not in known]
    if unknown:
        num_pixels = int(counts[np.isin(present, unknown)].sum())
        listed = ", ".join(str(index) for index in unknown[:10]) + " …" * (len(unknown) > 10)
        raise Unusable(
            f"{num_pixels:,} pixels of its mask have the ids {listed}: the classes end at"
            f" {len(key.names) - 1 + key.reduce_zero_label} ({key.names[-1]})"
        )
    class_ids = np.zeros(256, np.uint8)
    class_ids[list(known)] = list(known.values())
    label_map: npt.NDArray[np.uint8] = class_ids[values.astype(np.uint8)]
    return label_map
