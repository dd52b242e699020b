"""Worst: a page of the images that a model sees worst, beside their truth; one file, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from segbatch.masks import overlay
from segbatch.masks.classes import Classes

PICTURE_SIDE = 480  # pixels of a picture's longer side
OPACITY = 0.6


@dataclass(frozen=True, eq=False)
class Seen:
    """One image of the page, with its scores; label maps of any one size, drawn at the photo's."""

    uri: str
    miou: float
    iou: Mapping[str, float | None]  # by class name
    photo: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]


def page(title: str, metrics: Mapping[str, Any], images: Sequence[Seen], classes: Classes) -> str:
    """The page as HTML: ``metrics`` (``metrics.json``), then ``images`` in their order."""
    environment = Environment(
        loader=PackageLoader("segbatch.jobs", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["hex"] = lambda color: f"#{bytes(color).hex()}"
    return environment.get_template("worst.html").render(
        title=title,
        metrics=metrics,
        classes=classes,
        images=[
            (image, _pictures(image, classes), _classes_of(image, classes)) for image in images
        ],
    )


def _classes_of(image: Seen, classes: Classes) -> list[Any]:
    """The classes that the image has in truth or prediction, worst first."""
    present = [c for c in classes if image.iou[c.name] is not None]
    return sorted(present, key=lambda c: image.iou[c.name] or 0.0)


def _pictures(image: Seen, classes: Classes) -> dict[str, str]:
    """The photograph, and truth and prediction over it, as data URIs."""
    photo = Image.fromarray(image.photo)
    pictures = {"photograph": photo}
    for name, label_map in (("truth", image.truth), ("prediction", image.prediction)):
        ids = Image.fromarray(label_map).resize(photo.size, Image.Resampling.NEAREST)
        pictures[name] = overlay(image.photo, np.asarray(ids), classes, OPACITY)
    return {name: _data_uri(picture) for name, picture in pictures.items()}


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
