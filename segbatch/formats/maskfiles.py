"""Mask files: label maps that are image files, each with a photograph of the same name.

Their pixels hold class ids (palette indices or grey values) or colours. Any lossless format that
Pillow opens works.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch import storage
from segbatch.errors import InputError, SourceError, shortened
from segbatch.formats.folder import read_lines
from segbatch.formats.format import (
    AnnotatedImage,
    LabelledImage,
    LabelMap,
    ReadOptions,
    Skipped,
    Unusable,
)
from segbatch.formats.photo import checked_size, read_sample_file, stored_size
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, Color
from segbatch.masks.colortable import parse_color

LOSSY = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
INDEX_MODES = frozenset({"P", "L", "1", "I", "I;16", "I;16B", "I;16L"})
UNKNOWN = -1


@dataclass(frozen=True)
class NamedFile:
    """A photograph or a mask; ``id`` is the name that both have, in Unicode's form NFC."""

    uri: str
    id: str
    split: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", storage.composed(self.id))


def pair_by_id(
    photos: Iterable[NamedFile], masks: Iterable[NamedFile], key: IndexKey | ColorKey
) -> tuple[list[AnnotatedImage], list[Skipped]]:
    """Each photograph with its mask, in the order of the photographs; and the files without a
    counterpart, and those whose id is taken.
    """
    photo_by_id, taken_photos = _by_id(photos)
    mask_by_id, taken_masks = _by_id(masks)
    images = [
        AnnotatedImage(photo.uri, mask.uri, photo.split or mask.split, key)
        for id, photo in photo_by_id.items()
        if (mask := mask_by_id.get(id))
    ]
    no_mask = [
        Skipped(photo.uri, "has no mask")
        for id, photo in photo_by_id.items()
        if id not in mask_by_id
    ]
    no_image = [
        Skipped(mask.uri, "has no image")
        for id, mask in mask_by_id.items()
        if id not in photo_by_id
    ]
    return images, [*taken_photos, *taken_masks, *no_mask, *no_image]


def _by_id(files: Iterable[NamedFile]) -> tuple[dict[str, NamedFile], list[Skipped]]:
    by_id: dict[str, NamedFile] = {}
    taken = []
    for file in files:
        if (first := by_id.setdefault(file.id, file)) is not file:
            taken.append(Skipped(file.uri, f"has the same name as {first.uri}, which is taken"))
    return by_id, taken


def read_mask_file(image: AnnotatedImage, ids: Mapping[str, int], unlabelled: int) -> LabelledImage:
    """One image with its mask. A mask covers every pixel, so no pixel becomes ``unlabelled``.

    Raises :class:`~segbatch.formats.format.Unusable` if either is missing or damaged, their sizes
    differ, or the mask has ids or colours without a name.
    """
    photo, mask = read_sample_file(image.uri), read_sample_file(image.labels_uri)
    try:
        mask_size, _ = stored_size(mask)
    except Unusable as error:
        raise Unusable(f"its mask {image.labels_uri}: {error}") from error
    (width, height), perhaps_turned = checked_size(photo, mask_size, "its mask")
    key: IndexKey | ColorKey = image.detail
    with Image.open(io.BytesIO(mask)) as opened:
        if opened.format in LOSSY:
            raise Unusable(
                f"its mask is {opened.format}, which changes pixels when it compresses: masks must"
                " be PNG"
            )
        label_map = key.label_map(opened, ids)
    return LabelledImage(photo, width, height, label_map, 1, perhaps_turned=perhaps_turned)


@dataclass(frozen=True)
class IndexKey:
    """Pixels are indices into ``names``, and 255 is void. With ``reduce_zero_label`` 0 is void,
    too, and every other index is one lower.
    """

    names: tuple[str, ...]
    reduce_zero_label: bool = False

    @property
    def colors(self) -> dict[str, Color]:
        """No colours: the palette of a mask says nothing about its classes."""
        return {}

    def label_map(self, mask: Image.Image, ids: Mapping[str, int]) -> LabelMap:
        """The class ids of ``mask``. Raises :class:`~segbatch.formats.format.Unusable` for a mask
        of colours and for indices without a name.
        """
        indices = _indices(mask)
        known = {i + self.reduce_zero_label: ids[name] for i, name in enumerate(self.names)}
        known |= {255: IGNORE_INDEX} | ({0: IGNORE_INDEX} if self.reduce_zero_label else {})
        present, counts = np.unique(indices, return_counts=True)
        unknown = [index for index in present.tolist() if index not in known]
        if unknown:
            num_pixels = int(counts[np.isin(present, unknown)].sum())
            listed = ", ".join(map(str, unknown[:10])) + " …" * (len(unknown) > 10)
            raise Unusable(
                f"{num_pixels:,} pixels of its mask have the ids {listed}: the classes end at"
                f" {len(self.names) - 1 + self.reduce_zero_label} ({self.names[-1]})"
            )
        class_ids = np.zeros(256, np.uint8)
        class_ids[list(known)] = list(known.values())
        label_map: LabelMap = class_ids[indices.astype(np.uint8)]
        return label_map


def _indices(mask: Image.Image) -> npt.NDArray[Any]:
    """The numbers in a mask, ``(height, width)``: of its one channel, or of equal channels.

    Raises :class:`~segbatch.formats.format.Unusable` for colours, transparency and fractions.
    """
    pixels = np.asarray(mask)
    if mask.mode in INDEX_MODES:
        return pixels
    if mask.mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise Unusable("its mask is transparent in places: save it without an alpha channel")
        pixels = pixels[..., :-1]
    if mask.mode == "F":
        if not (pixels == np.round(pixels)).all():
            raise Unusable("its mask holds fractions and not ids: save it as whole numbers")
        return pixels.astype(np.int32)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    raise Unusable(
        f"its mask holds colours (mode {mask.mode}) and not ids: name the class of each"
        " colour with --colors FILE"
    )


@dataclass(frozen=True)
class ColorKey:
    """Pixels are colours; several colours may have one name, and ``__ignore__`` is void."""

    table: Mapping[Color, str]

    @property
    def colors(self) -> dict[str, Color]:
        """The first colour of each name, in the order of the table; without ``__ignore__``."""
        colors: dict[str, Color] = {}
        for color, name in self.table.items():
            if name != IGNORE:
                colors.setdefault(name, color)
        return colors

    @property
    def names(self) -> list[str]:
        """The names in the order of the table; without ``__ignore__``."""
        return list(self.colors)

    def label_map(self, mask: Image.Image, ids: Mapping[str, int]) -> LabelMap:
        """The class ids of ``mask``. Raises :class:`~segbatch.formats.format.Unusable` for colours
        that are not in the table.
        """
        by_code = np.full(1 << 24, UNKNOWN, np.int16)
        for (red, green, blue), name in self.table.items():
            by_code[red << 16 | green << 8 | blue] = IGNORE_INDEX if name == IGNORE else ids[name]
        mask.info.pop("transparency", None)  # a colour about which Pillow warns when it converts
        channels = np.asarray(mask.convert("RGB")).astype(np.int32)
        codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        label_map = by_code[codes]
        if label_map.min() == UNKNOWN:
            unknown, counts = np.unique(codes[label_map == UNKNOWN], return_counts=True)
            most = int(unknown[counts.argmax()])
            raise Unusable(
                f"{counts.sum():,} pixels of its mask have colours that are not in the table, most"
                f" often {most >> 16} {most >> 8 & 255} {most & 255} ({counts.max():,} pixels;"
                f" {len(counts):,} such colours in all: many come from lossy compression or smooth"
                " edges)"
            )
        painted: npt.NDArray[np.uint8] = label_map.astype(np.uint8)
        return painted


def mask_key(source: str, options: ReadOptions) -> IndexKey | ColorKey:
    """What the pixels of masks mean, as the command line says.

    Raises :class:`~segbatch.errors.InputError` for options that do not fit, and
    :class:`~segbatch.errors.SourceError` if the masks have no names.
    """
    if options.colors is not None:
        if options.reduce_zero_label:
            raise InputError(
                "--reduce-zero-label is for masks of ids: leave it out, or leave out --colors"
            )
        return ColorKey(read_color_table(options.colors))
    if options.class_names is None:
        raise SourceError(
            f"{source}: masks have no names: give those of the ids 0, 1, 2 … with --classes, or"
            " those of colours with --colors FILE"
        )
    return IndexKey(options.class_names, options.reduce_zero_label)


def read_color_table(uri: str) -> dict[Color, str]:
    """The names by colour in a file of ``R G B name`` lines, or in CVAT's ``labelmap.txt``
    (``name:R,G,B:parts:actions``), in the order of its lines; ``#`` begins a comment line. Several
    colours may have one name.

    Raises :class:`~segbatch.errors.SourceError` for any other line and for a colour with two names.
    """
    table: dict[Color, str] = {}
    lines = [(n, line) for n, line in enumerate(read_lines(uri), 1) if line and line[0] != "#"]
    for position, (number, line) in enumerate(lines):
        try:
            color, name = parse_color(line, position)
            if table.setdefault(color, name) != name:
                raise ValueError(f"{shortened(line)}: {table[color]!r} has this colour already")
        except ValueError as error:
            raise SourceError(f"{uri}: line {number}: {error}") from error
    if not table:
        raise SourceError(f"{uri}: no colours: a line must be `R G B name`")
    return table
