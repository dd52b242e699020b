"""Reads the classes that a user names: a preset, ``a,b,c``, or a file of one of many tools.

A file of names looks harmless, and a wrong guess moves every class id by one. So a file is only
read where its form is certain:

    classes.json     ``{"classes": [{"id": 0, "name": …, "color": …}, …]}``, or that list
    JSON             a list of names, ``{"0": "wall", …}``, or ``id2label`` of a ``config.json``
    *.yaml, *.yml    the key ``names`` of a YOLO dataset, a list or ``{0: wall, …}``; or a list
    labels.txt       a name a line (labelme); after ``__ignore__``, ``#`` and numbers are names, too
    numbered lines   ``0 wall``, ``1: window``, ``2;door``, with or without a line of headings
    _classes.csv     ``Pixel Value, Class`` and ``0, wall`` (Roboflow)
    labelmap.txt     ``wall:222,203,164::`` (CVAT), with its colours

``__ignore__`` is void: it has no id, or the id 255.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from segbatch import storage
from segbatch.errors import InputError, shortened
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, PRESETS, Classes
from segbatch.masks.colortable import NAME_RGB, RGB_NAME, parse_color

NUMBERED = re.compile(r"(\d+)\s*[\s:,;=]\s*(\S.*)")
NUMBER_LAST = re.compile(r".*\S\s*[\s:,;=]\s*(\d+)")
HEADINGS = re.compile(r"((class|pixel)[ _])?(id|index|value)\s*[\s,;]\s*(class|label)?[ _]?(name)?")


def read_classes(text: str) -> Classes:
    """The classes that ``--classes`` names; see the module's docstring for files, at any URI.

    Names are cleaned (:func:`~segbatch.storage.text.clean_name`). Raises
    :class:`~segbatch.errors.InputError` for a file that is missing or of another form.
    """
    if text in PRESETS:
        return PRESETS[text]
    if "," in text and not _is_file(text):
        try:
            return Classes(names_by_id(text.split(",")))
        except InputError as error:
            raise InputError(f"--classes {text}: {error}") from error
    try:
        content = storage.decode_text(storage.read_bytes(text), f"--classes {text}")
    except OSError as error:
        raise InputError(
            f"--classes {text}: not names by id (such as background,window), not a preset"
            f" ({', '.join(PRESETS)}), and not a file of names: {storage.one_line(error)}"
        ) from error
    try:
        return _parse(content, storage.name_of(text).lower())
    except (InputError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"--classes {text}: not a file of class names: {storage.one_line(error)}"
        ) from error


def _is_file(text: str) -> bool:
    try:
        return storage.is_local(text) and storage.local_path(text).is_file()
    except OSError:  # a name that is too long
        return False


def names_by_id(values: Iterable[Any]) -> list[Any]:
    """The cleaned names of a list, which may begin with void; other values than texts as they are.

    Raises :class:`~segbatch.errors.InputError` for void elsewhere: the ids of the names after it
    could count it or not. That is so also for shapes, which have names and no ids, because the ids
    of a dataset never change, and masks may be added to it later with the same list.
    """
    names = [storage.clean_name(value) if isinstance(value, str) else value for value in values]
    if names[:1] == [IGNORE]:  # as in labelme's list, where its id is -1
        names = names[1:]
    if IGNORE in names:
        raise InputError(f"{IGNORE} has no id and must be the first name, or be left out")
    return names


def _parse(content: str, file_name: str) -> Classes:
    """The classes in a file. Raises ``ValueError`` with the reason for an unknown form."""
    if file_name.endswith((".yaml", ".yml")):
        return _from_values(yaml.safe_load(content), "YAML")
    if file_name.endswith(".json") or content.lstrip().startswith(("[", "{")):
        return _from_values(json.loads(content), "JSON")
    return _from_lines([storage.clean_name(line) for line in content.split("\n")])


def _from_values(values: Any, kind: str) -> Classes:
    if isinstance(values, dict):
        keys = ("classes", "names", "id2label")
        values = next((values[key] for key in keys if key in values), values)
    if isinstance(values, dict):
        return Classes(_in_order(values.items()))
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
    return Classes(names_by_id(values))


def _from_lines(lines: Sequence[str]) -> Classes:
    lines = [line for line in lines if line]
    if lines[:1] == [IGNORE] and not _are_numbered(lines[1:]):
        return Classes(names_by_id(lines))  # labelme's list, in which every line is a name
    comments = [line for line in lines if line.startswith("#")]
    lines = [line for line in lines if not line.startswith("#")]
    if any("color_rgb" in comment for comment in comments):
        return _from_labelmap(lines)
    if any(NUMBERED.fullmatch(line) for line in lines):
        has_headings = HEADINGS.fullmatch(lines[0].lower())
        return _from_numbered_lines(lines[1:] if has_headings else lines)
    if lines and all(line.count(":") >= 2 and NAME_RGB.fullmatch(line) for line in lines):
        return _from_labelmap(lines)
    if markup := [line for line in lines if line.startswith("<")]:
        raise ValueError(f"{shortened(markup[0])}: is markup: write one name a line")
    numbers = [int(match[1]) for line in lines if (match := NUMBER_LAST.fullmatch(line))]
    if len(lines) > 1 and sorted(numbers) == list(range(len(lines))):
        raise ValueError(
            f"{shortened(lines[0])}: write the id first, as in `0 wall`, or one name a line"
        )
    if commas := [line for line in lines if "," in line or ";" in line]:
        raise ValueError(f"{shortened(commas[0])}: has a separator: write one name a line")
    return Classes(names_by_id(lines))


def _are_numbered(lines: Sequence[str]) -> bool:
    """Whether the lines begin with the ids 0, 1, 2 … in any order."""
    ids = [int(match[1]) for line in lines if (match := NUMBERED.fullmatch(line))]
    return sorted(ids) == list(range(len(lines)))


def _from_numbered_lines(lines: Sequence[str]) -> Classes:
    if all(RGB_NAME.fullmatch(line) for line in lines):
        raise ValueError("its lines are `R G B name`, a table of colours: say --colors")
    pairs = []
    for line in lines:
        match = NUMBERED.fullmatch(line)
        if match is None:
            raise ValueError(f"{shortened(line)}: has no id, unlike other lines")
        pairs.append((match[1], match[2]))
    return Classes(_in_order(pairs))


def _in_order(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The names of ``(id, name)`` pairs by id, void at 255 aside.

    Raises ``ValueError`` unless the ids are 0, 1, 2 …
    """
    by_id: dict[int, Any] = {}
    for key, value in pairs:
        if not re.fullmatch(r"\d+", str(key)):
            raise ValueError(f"{shortened(key)}: not an id: a mapping must be of ids to names")
        name = storage.clean_name(value) if isinstance(value, str) else value
        if by_id.setdefault(int(key), name) != name:
            raise ValueError(f"the id {key} has two names")
        if name == IGNORE and int(key) != IGNORE_INDEX:
            raise ValueError(
                f"the id {key} is {IGNORE}, which has no id but {IGNORE_INDEX}: write the other"
                " names, one a line, by their ids; for masks in which 0 is void, say"
                " --reduce-zero-label"
            )
    if by_id.get(IGNORE_INDEX) == IGNORE:
        del by_id[IGNORE_INDEX]
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(
            f"its ids are {shortened(', '.join(map(str, sorted(by_id))))}: they must be 0 to"
            f" {len(by_id) - 1} without gaps: write one name a line, in the order of the ids"
        )
    return [by_id[class_id] for class_id in range(len(by_id))]


def _from_labelmap(lines: Sequence[str]) -> Classes:
    """CVAT's ``name:R,G,B:parts:actions``, in the order of the lines."""
    parsed = [parse_color(line, position) for position, line in enumerate(lines)]
    classes = [(name, color) for color, name in parsed if name != IGNORE]
    return Classes([name for name, _ in classes], [color for _, color in classes])
