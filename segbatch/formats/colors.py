"""Colours: the table that says which colour of a mask stands for which name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from segbatch.errors import SourceError
from segbatch.formats import layout
from segbatch.formats.format import Unusable
from segbatch.labels.naming import IGNORE
from segbatch.masks.classes import IGNORE_INDEX, Color, voc_color

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
    lines = [(n, line) for n, line in enumerate(layout.read_lines(uri), 1) if line]
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
