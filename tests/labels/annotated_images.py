"""Annotated images for tests: photographs, and labelme files with rectangles on them."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.collection import jpeg

WIDTH, HEIGHT = 64, 48

Box = tuple[str, tuple[int, int, int, int]]  # a label, and left, top, right, bottom

FRONT: Sequence[Box] = [("wall", (0, 0, 63, 31)), ("window", (8, 8, 23, 23))]


def annotate(
    folder: Path, name: str, boxes: Sequence[Box] = FRONT, *, seed: int | None = None
) -> Path:
    """``name.jpg`` and its ``name.json``; files of one ``seed`` are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = jpeg(0, HEIGHT, WIDTH, name.encode()) if seed is None else jpeg(seed, HEIGHT, WIDTH)
    (folder / f"{name}.jpg").write_bytes(picture)
    shapes = [
        {"label": label, "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}
        for label, (x0, y0, x1, y1) in boxes
    ]
    content = {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": f"{name}.jpg",
        "imageData": None,
        "imageWidth": WIDTH,
        "imageHeight": HEIGHT,
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
