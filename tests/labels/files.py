"""Files of labelled images for tests: photographs, masks, and folders of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from segbatch.formats.format import Annotations
from segbatch.masks.classes import voc_color
from tests.collection import encoded

Array = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 30, 20


def photograph(width: int = WIDTH, height: int = HEIGHT, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(Image.new("RGB", (width, height), (90, 120, 60)), "JPEG", exif=exif)


def blank(value: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Array:
    return np.full((height, width), value, np.uint8)


def grey(ids: Array) -> bytes:
    return encoded(Image.fromarray(ids), "PNG")


def palette(ids: Array, colors: Any = voc_color) -> bytes:
    """A palette PNG, by default with VOC's colours."""
    mask = Image.fromarray(ids).convert("P")
    mask.putdata(ids.ravel().tolist())
    mask.putpalette([value for index in range(256) for value in colors(index)])
    return encoded(mask, "PNG")


def rgb(ids: Array, colors: Mapping[int, tuple[int, int, int]]) -> bytes:
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    for index, color in colors.items():
        pixels[ids == index] = color
    return encoded(Image.fromarray(pixels), "PNG")


def write(root: Path, files: Mapping[str, Any]) -> str:
    """``root`` with files in it: bytes, texts, or objects as JSON."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(to_bytes(content))
    return str(root)


def to_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def placed(root: Path, found: Annotations) -> list[tuple[str, str, str | None]]:
    return [
        (
            str(Path(annotated.uri).relative_to(root)),
            str(Path(annotated.labels_uri).relative_to(root)),
            annotated.split,
        )
        for annotated in found.images
    ]


def left_out(root: Path, found: Annotations) -> dict[str, str]:
    return {skipped.where.removeprefix(f"{root}/"): skipped.why for skipped in found.skipped}
