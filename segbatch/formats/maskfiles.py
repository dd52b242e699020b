"""Mask files: label maps that are image files of their own, each beside its photograph.

Their pixels hold class ids (a palette's indices or grey values) or colours. Any lossless format
that Pillow opens will do.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.formats.colors import ColorTable, paint_ids
from segbatch.formats.format import Item, Labelled, Skipped, Unusable
from segbatch.formats.photo import read_file, stored_size
from segbatch.formats.sizes import check_size
from segbatch.masks.classes import IGNORE_INDEX

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
