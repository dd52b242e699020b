"""Reads the classes that a user names: a preset, ``a,b,c``, or a file of one of many tools.

A file of names looks harmless, and a wrong guess moves every class id by one. So a file is only
read where its form is certain:

    classes.json     ``{"classes": [{"id": 0, "name": …, "color": …}, …]}``, or that list
    *.json           a list of names, or ``{"0": "wall", …}``
    *.yaml, *.yml    the key ``names`` of a YOLO dataset, a list or ``{0: wall, …}``; or a list
    labels.txt       a name a line (labelme); ``__ignore__`` is void and has no id
    numbered lines   ``0 wall``, ``1: window``, the ids in order from 0
    _classes.csv     ``Pixel Value, Class`` and ``0, wall`` (Roboflow)
    labelmap.txt     ``wall:222,203,164::`` (CVAT), with its colours
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from segbatch import storage
from segbatch.errors import InputError
from segbatch.masks.classes import PRESETS, Classes, Color, voc_color

VOID_NAME = "__ignore__"
NUMBERED = re.compile(r"(\d+)\s*[\s:,;=]\s*(\S.*)")
LABELMAP = re.compile(r"([^:]+?)\s*:\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*(?::.*)?")
COLORED = re.compile(r"\d+[\s,]+\d+[\s,]+\d+[\s,]+\S.*")


def read_classes(text: str) -> Classes:
    """The classes that ``--classes`` names; see the module's docstring for files, at any URI.

    Names are cleaned (:func:`~segbatch.storage.text.clean_name`). Raises
    :class:`~segbatch.errors.InputError` for a file that is missing or of another form.
    """
    if text in PRESETS:
        return PRESETS[text]
    if "," in text and not _is_file(text):
        return Classes(_names(text.split(",")))
    try:
        content = storage.decode_text(storage.read_bytes(text), f"--classes {text}")
    except OSError as error:
        raise InputError(
            f"--classes {text}: not a,b,c, not a preset ({', '.join(PRESETS)}), and not a file of"
            f" names: {storage.one_line(error)}"
        ) from error
    try:
        return _parse(content, storage.name_of(text).lower())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"--classes {text}: not a file of class names: {storage.one_line(error)}"
        ) from error


def _is_file(text: str) -> bool:
    try:
        return storage.is_local(text) and storage.local_path(text).is_file()
    except OSError:  # a name that is too long
        return False


def _names(values: Sequence[Any]) -> list[str]:
    """The cleaned names without void and empty ones; other values than texts as they are."""
    names = [storage.clean_name(value) if isinstance(value, str) else value for value in values]
    return [name for name in names if name not in ("", VOID_NAME)]


def _parse(content: str, file_name: str) -> Classes:
    """The classes in a file. Raises ``ValueError`` with the reason for an unknown form."""
    if file_name.endswith(".json"):
        return _from_values(json.loads(content), "JSON")
    if file_name.endswith((".yaml", ".yml")):
        return _from_values(yaml.safe_load(content), "YAML")
    return _from_lines([storage.clean_name(line) for line in content.split("\n")])


def _from_values(values: Any, kind: str) -> Classes:
    if isinstance(values, dict):
        values = next((values[key] for key in ("classes", "names") if key in values), values)
    if isinstance(values, dict):
        return Classes(_names(_in_order(values.items())))
    if not isinstance(values, list):
        raise ValueError(f"the {kind} is neither a list of names nor a mapping of ids to names")
    if values and all(isinstance(value, dict) for value in values):
        cleaned = [
            {**value, "name": storage.clean_name(value["name"])}
            if isinstance(value.get("name"), str)
            else value
            for value in values
        ]
        return Classes.from_json(cleaned)
    return Classes(_names(values))


def _from_lines(lines: Sequence[str]) -> Classes:
    comments = [line for line in lines if line.startswith("#")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if any("color_rgb" in comment for comment in comments):
        return _from_labelmap(lines)
    if lines and re.fullmatch(r"pixel value\s*,\s*class", lines[0].lower()):
        lines = lines[1:]
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        if all(COLORED.fullmatch(line) for line in lines):
            raise ValueError("its lines are `R G B name`, a table of colours: say --colors")
        return Classes(_names(_in_order((m[1], m[2]) for m in numbered if m)))
    if lines and all(line.count(":") >= 2 and LABELMAP.fullmatch(line) for line in lines):
        return _from_labelmap(lines)
    if commas := [line for line in lines if "," in line]:
        raise ValueError(f"{_short(commas[0])}: has a comma: write one name a line")
    return Classes(_names(lines))


def _in_order(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The names of ``(id, name)`` pairs by id; ``ValueError`` unless the ids are 0, 1, 2 …"""
    by_id: dict[int, Any] = {}
    for key, name in pairs:
        if not re.fullmatch(r"\d+", str(key)):
            raise ValueError(f"{_short(key)}: not an id: a mapping must be of ids to names")
        if by_id.setdefault(int(key), name) != name:
            raise ValueError(f"the id {key} has two names")
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(
            f"its ids are {_short(', '.join(map(str, sorted(by_id))))}: they must be 0 to"
            f" {len(by_id) - 1} without gaps: write one name a line, in the order of the ids"
        )
    return [by_id[class_id] for class_id in range(len(by_id))]


def _from_labelmap(lines: Sequence[str]) -> Classes:
    """CVAT's ``name:R,G,B:parts:actions``; without a colour, VOC's of the position."""
    colors: dict[str, Color] = {}
    for position, line in enumerate(lines):
        match = LABELMAP.fullmatch(line)
        if match is None:
            raise ValueError(f"{_short(line)}: not a line `name:R,G,B:parts:actions`")
        values = [int(value) for value in match.groups()[1:] if value is not None]
        if values and max(values) > 255:
            raise ValueError(f"{_short(line)}: a colour is three numbers from 0 to 255")
        red, green, blue = values or voc_color(position)
        colors[storage.clean_name(match[1])] = (red, green, blue)
    names = _names(list(colors))
    return Classes(names, [colors[name] for name in names])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
