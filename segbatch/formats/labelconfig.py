"""Label Studio's labelling configuration: the XML that a user pastes into a project.

It names the key of a task's data that holds the image, and the labels with their colours.

Source: https://labelstud.io/tags/brushlabels and https://labelstud.io/tags/image
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from segbatch.masks.classes import Classes, Color, is_name
from segbatch.storage import clean_name

LABEL_CONFIG = "label_config.xml"
IMAGE = "image"  # name of the tag, and key of the data
LABELS = "label"

MAX_CONFIG = 1 << 20  # characters
HEX_COLOR = re.compile(r"#([0-9a-fA-F]{6})")


def write_label_config(classes: Classes) -> str:
    """The configuration of a project in which the classes are painted with a brush."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
    labels = ET.SubElement(view, "BrushLabels", name=LABELS, toName=IMAGE)
    for c in classes:
        ET.SubElement(labels, "Label", value=c.name, background=c.hex)
    ET.indent(view)
    return f"{ET.tostring(view, encoding='unicode')}\n"


@dataclass(frozen=True)
class LabelConfig:
    """What a configuration says of images. ``keys`` are the keys of data that hold images;
    ``colors`` those of labels that give one as ``#rrggbb``. ``from_name`` is the name of the tag
    ``BrushLabels``, ``to_name`` that of the image that is painted; ``has_brush``: whether there is
    such a tag.
    """

    keys: tuple[str, ...] = ()
    colors: Mapping[str, Color] = field(default_factory=dict)
    from_name: str = LABELS
    to_name: str = IMAGE
    has_brush: bool = True


def read_label_config(text: str) -> LabelConfig | None:
    """The configuration in ``text``; ``None`` for any other XML, and for what is not XML."""
    if len(text) > MAX_CONFIG or "<!DOCTYPE" in text:  # no entities, which could grow without end
        return None
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return None
    values = [tag.get("value", "") for tag in root.iter("Image")]
    keys = tuple(value[1:] for value in values if value.startswith("$"))
    if not keys:
        return None
    colors = {}
    for label in root.iter("Label"):
        name = clean_name(label.get("alias") or label.get("value") or "")
        color = HEX_COLOR.fullmatch(label.get("background", ""))
        if is_name(name) and color:
            red, green, blue = bytes.fromhex(color[1])
            colors[name] = (red, green, blue)
    brush = root.find(".//BrushLabels")
    if brush is None:
        return LabelConfig(keys, colors, has_brush=False)
    return LabelConfig(keys, colors, brush.get("name", LABELS), brush.get("toName", IMAGE))
