"""``worst.html``: the images with the worst predictions and their truth, as one offline page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from segbatch.masks import overlay
from segbatch.masks.classes import Classes
from segbatch.masks.html import jpeg_uri

PICTURE_SIDE = 480  # pixels of a picture's longer side
QUALITY = 80


@dataclass(frozen=True, eq=False)
class WorstImage:
    """One image of the page, with its scores. The label maps are drawn at the photo's size."""

    uri: str
    miou: float
    iou: Mapping[str, float | None]  # by class name
    photo: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    truth: npt.NDArray[np.uint8]  # (H, W) class ids
    prediction: npt.NDArray[np.uint8]  # likewise


def worst_page(
    title: str, metrics: Mapping[str, Any], images: Sequence[WorstImage], classes: Classes
) -> str:
    """The page as HTML: the metrics of ``metrics.json``, then the images in their order."""
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
            (image, _pictures(image, classes), _classes_in(image, classes)) for image in images
        ],
    )


def _pictures(image: WorstImage, classes: Classes) -> dict[str, str]:
    """The photo, and truth and prediction drawn over it, as data URIs by name."""
    photo = Image.fromarray(image.photo)
    pictures = {"photograph": photo}
    for name, label_map in (("truth", image.truth), ("prediction", image.prediction)):
        ids = Image.fromarray(label_map).resize(photo.size, Image.Resampling.NEAREST)
        pictures[name] = overlay(image.photo, np.asarray(ids), classes)
    return {name: jpeg_uri(picture, QUALITY) for name, picture in pictures.items()}


def _classes_in(image: WorstImage, classes: Classes) -> list[Any]:
    """The classes that are in truth or prediction of the image, worst first."""
    present = [c for c in classes if image.iou[c.name] is not None]
    return sorted(present, key=lambda c: image.iou[c.name] or 0.0)
