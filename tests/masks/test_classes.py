"""Presets of classes, and whether the colours of the facade classes are distinct."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from segbatch.errors import InputError
from segbatch.masks.classes import (
    FACADE_COLORS,
    IGNORE_INDEX,
    PRESETS,
    Classes,
    Color,
    voc_color,
)
from segbatch.masks.classfile import read_classes

# Linear RGB as seen without one kind of cones. Source: Machado, Oliveira and Fernandes, A
# Physiologically-based Model for Simulation of Color Vision Deficiency (2009), severity 1.0.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip

XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
WHITE = np.array([0.95047, 1.0, 1.08883])

SEEN = 10.0  # differences of 2.3 are just seen side by side


def lab(color: Color, vision: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of a colour as seen; distances approximate how different colours look."""
    srgb = np.array(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(vision) @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_facade_colours_are_distinct_with_any_kind_of_colour_blindness(vision: str) -> None:
    colors = {name: color for name, color in FACADE_COLORS.items() if name != "facade"}  # wall's
    seen = {name: lab(color, VISION[vision]) for name, color in colors.items()}
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)}
    closest = min(distances, key=lambda pair: distances[pair])
    assert distances[closest] > SEEN, (closest, distances[closest])


def test_facade_colours_differ_from_what_they_cover_and_do_not_vanish_at_night() -> None:
    seen = {name: lab(color, VISION["normal"]) for name, color in FACADE_COLORS.items()}
    beige, asphalt = (lab(color, VISION["normal"]) for color in ((222, 203, 164), (70, 70, 70)))
    for name in ("wall", "facade"):
        assert np.linalg.norm(seen[name] - beige) > 5 * SEEN
    assert np.linalg.norm(seen["street"] - asphalt) > 5 * SEEN
    assert min(lightness for name, (lightness, *_) in seen.items() if name != "background") > 35


def test_the_simulation_finds_colours_that_look_alike() -> None:
    red, green = (200, 0, 0), (95, 105, 0)
    assert np.linalg.norm(np.subtract(*(lab(c, VISION["normal"]) for c in (red, green)))) > 50
    assert np.linalg.norm(np.subtract(*(lab(c, VISION["deuteranopia"]) for c in (red, green)))) < 25


@pytest.mark.parametrize(
    ("preset", "number", "class_id", "name", "color"),
    [
        ("facade", 8, 3, "window", (0, 114, 178)),
        ("cmp", 12, 1, "facade", (0, 0, 255)),
        ("cmp", 12, 2, "window", (0, 85, 255)),
        ("voc", 21, 15, "person", (192, 128, 128)),
        ("cityscapes", 19, 0, "road", (128, 64, 128)),
        ("cityscapes", 19, 13, "car", (0, 0, 142)),
        ("cihp", 20, 13, "face", (0, 0, 255)),
        ("camvid", 11, 3, "road", (128, 64, 128)),
        ("camvid", 11, 10, "bicyclist", (0, 128, 192)),
        ("ade20k", 150, 0, "wall", (120, 120, 120)),
        ("ade20k", 150, 8, "windowpane", (230, 230, 230)),
        ("ade20k", 150, 149, "flag", (92, 0, 255)),
    ],
)
def test_presets_have_their_usual_ids_names_and_colours(
    preset: str, number: int, class_id: int, name: str, color: Color
) -> None:
    classes = read_classes(preset)
    assert len(classes) == number
    assert (classes[class_id].name, classes[class_id].color) == (name, color)


def test_two_classes_of_one_name_are_refused() -> None:
    name = "wall"
    for names in ([name, "door", name], ["wall", "door", "".join(["wa", "ll"])], ["wall", "Wall"]):
        with pytest.raises(InputError, match="would share the column"):
            Classes(names)
    with pytest.raises(InputError, match="would share the column"):
        read_classes("a,b,a")


def test_colours_of_a_preset_differ_from_each_other_and_from_void() -> None:
    for name, classes in PRESETS.items():
        colors = {c.color for c in classes}
        assert voc_color(IGNORE_INDEX) not in colors
        twice = {"ade20k": 1}.get(name, 0)  # road and skyscraper
        assert len(colors) == len(classes) - twice, name
