"""A line of a colour table: ``R G B name``, or CVAT's ``name:R,G,B:parts:actions``."""

from __future__ import annotations

import re

from segbatch.errors import shortened
from segbatch.masks.classes import Color, voc_color
from segbatch.storage.text import clean_name

RGB_NAME = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)")
NAME_RGB = re.compile(r"(.+?)\s*:\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*(?::.*)?")


def parse_color(line: str, position: int) -> tuple[Color, str]:
    """The colour and the name in ``line``, the one at ``position`` of its file, counted from 0.

    CVAT leaves out VOC's colour of the position. Raises ``ValueError`` for any other line.
    """
    if match := RGB_NAME.fullmatch(line):
        *values, name = match.groups()
    elif match := NAME_RGB.fullmatch(line):
        name, *values = match.groups()
    else:
        raise ValueError(
            f"{shortened(line)}: must be `R G B name`, or CVAT's `name:R,G,B:parts:actions`"
        )
    if values[0] is None:
        return voc_color(position), clean_name(name)
    red, green, blue = (int(value) for value in values)
    if max(red, green, blue) > 255:
        raise ValueError(f"{shortened(line)}: a colour is three numbers from 0 to 255")
    return (red, green, blue), clean_name(name)
