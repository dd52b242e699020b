"""The classes of a model, dataset or run: id, name, field and colour of each.

A class's *id* is its position, 0 to 254; 255 is the ignore index (void). Its *name* is what people
wrote (``traffic light``); its *field* is the same as a column name (``traffic_light``) that SQL,
Delta and attribute access all accept. Its colour is the same in every picture and in the palette of
every mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, overload

import numpy as np
import numpy.typing as npt

from segbatch.errors import InputError
from segbatch.masks.presets import PRESET_COLORS
from segbatch.storage.text import clean_name

Color = tuple[int, int, int]  # RGB, 0 to 255 each

IGNORE_INDEX = 255
IGNORE = "__ignore__"  # the name of the ignore index in annotations and files of class names
MAX_CLASSES = 255
MAX_NAME = 200  # characters
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# Colours of the classes of facades, by field; some are Okabe's and Ito's, Color Universal Design
# (2008). Any two can be distinguished with all common kinds of colour blindness, none is that of
# what it covers (beige walls, grey streets), and none but the background's vanishes at night.
FACADE_COLORS: dict[str, Color] = {
    "background": (0, 0, 0),
    "brick": (178, 84, 52),
    "wall": (145, 100, 235),
    "facade": (145, 100, 235),
    "window": (0, 114, 178),
    "door": (230, 159, 0),
    "roof": (45, 75, 255),
    "balcony": (204, 121, 167),
    "shop": (255, 240, 0),
    "sky": (166, 216, 240),
    "vegetation": (0, 158, 115),
    "street": (180, 180, 90),
    "car": (225, 45, 0),
    "fence": (240, 75, 105),
    "balcony_fence": (210, 0, 180),
    "infrastructure": (75, 195, 255),
}

VOC_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip


def field_name(name: str) -> str:
    """The column name of a class: lower case, every run of other characters turned into ``_``."""
    return re.sub(r"[\W_]+", "_", name.lower())


def is_name(value: object) -> TypeGuard[str]:
    """Whether ``value`` can be the name of a class."""
    if not isinstance(value, str) or not clean_name(value):
        return False
    return len(value) <= MAX_NAME and not CONTROL.search(value)


def voc_color(class_id: int) -> Color:
    """The colour of a class id, 0 to 255, in the Pascal VOC colour map.

    The bits of the id go to R, G and B in turn.

    Source: ``VOClabelcolormap.m`` of the Pascal VOC development kit.
    """
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (class_id & 1) << shift
        green |= (class_id >> 1 & 1) << shift
        blue |= (class_id >> 2 & 1) << shift
        class_id >>= 3
    return red, green, blue


@dataclass(frozen=True)
class SegClass:
    """One class; ``id`` is 0 to 254."""

    id: int
    name: str
    color: Color

    @property
    def field(self) -> str:
        return field_name(self.name)

    @property
    def hex(self) -> str:
        """The colour as HTML writes it: ``#rrggbb``."""
        return f"#{bytes(self.color).hex()}"


class Classes(Sequence[SegClass]):
    """The classes of a model, dataset or run, in the order of their ids.

    Raises :class:`~segbatch.errors.InputError` for no classes, more than 255, an empty name, or
    two names with one field.
    """

    def __init__(self, names: Sequence[str], colors: Sequence[Color | None] | None = None) -> None:
        if not names:
            raise InputError("no classes: a model needs at least one class name")
        if len(names) > MAX_CLASSES:
            raise InputError(
                f"{len(names)} classes: masks hold ids in one byte, at most {MAX_CLASSES}"
            )
        if colors is not None and len(colors) != len(names):
            raise InputError(f"{len(names)} class names but {len(colors)} colours")
        by_field: dict[str, str] = {}
        for name in names:
            if not is_name(name):
                raise InputError(
                    f"class name {str(name)[:MAX_NAME]!r}: must be a text of 1 to {MAX_NAME}"
                    " characters without control characters"
                )
            field = field_name(name)
            if field in by_field:
                raise InputError(
                    f"classes {by_field[field]!r} and {name!r} would share the column {field!r}:"
                    " rename one of them"
                )
            by_field[field] = name
        chosen = colors or [None] * len(names)
        self._classes = tuple(
            SegClass(class_id, name, color or _default_color(class_id, name))
            for class_id, (name, color) in enumerate(zip(names, chosen, strict=True))
        )

    @overload
    def __getitem__(self, index: int) -> SegClass: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SegClass]: ...
    def __getitem__(self, index: int | slice) -> SegClass | Sequence[SegClass]:
        return self._classes[index]

    def __len__(self) -> int:
        return len(self._classes)

    def __iter__(self) -> Iterator[SegClass]:
        return iter(self._classes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self._classes == other._classes

    def __hash__(self) -> int:
        return hash(self._classes)

    def __repr__(self) -> str:
        return f"Classes({self.names})"

    @property
    def names(self) -> list[str]:
        return [c.name for c in self._classes]

    @property
    def fields(self) -> list[str]:
        return [c.field for c in self._classes]

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours of all palette indices, ``(256, 3)`` uint8; ids without a class are as in VOC."""
        palette = np.array([voc_color(i) for i in range(256)], np.uint8)
        palette[: len(self)] = [c.color for c in self._classes]
        return palette

    def to_json(self) -> list[dict[str, Any]]:
        """The classes as ``config.json``, ``classes.json`` and ``run.json`` store them."""
        return [{"id": c.id, "name": c.name, "color": list(c.color)} for c in self._classes]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Classes:
        """The inverse of :meth:`to_json`. Raises ``InputError`` unless the ids are 0, 1, 2, …"""
        if isinstance(entries, list) and len(entries) > MAX_CLASSES:
            raise InputError(f"{len(entries)} classes: masks hold at most {MAX_CLASSES}")
        try:
            ordered = sorted(entries, key=lambda entry: entry["id"])
            ids = [entry["id"] for entry in ordered]
            names = [entry["name"] for entry in ordered]
            colors = [_color(entry.get("color")) for entry in ordered]
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"classes must be a list of {{id, name, color}}: {type(error).__name__} {error}"
            ) from error
        if ids != list(range(len(ids))):
            raise InputError(f"class ids must be 0 to {len(ids) - 1} without gaps, not {ids}")
        return cls(names, colors)


def _default_color(class_id: int, name: str) -> Color:
    return FACADE_COLORS.get(field_name(name), voc_color(class_id))


def _color(value: Any) -> Color | None:
    if value is None:
        return None
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"colour {value}: three numbers from 0 to 255")
    return red, green, blue


# Classes that a user can name instead of listing them.
PRESETS: dict[str, Classes] = {
    "facade": Classes(["background", "brick", "wall", "window", "door", "roof", "balcony", "sky"]),
    "voc": Classes(VOC_NAMES, [voc_color(i) for i in range(len(VOC_NAMES))]),
    **{
        name: Classes(list(colors), [_color(bytes.fromhex(c)) for c in colors.values()])
        for name, colors in PRESET_COLORS.items()
    },
}
