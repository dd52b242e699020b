"""``worst.html``: the images with the worst predictions and their truth, as one offline page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch import masks
from segbatch.masks import overlay
from segbatch.masks.classes import IGNORE_INDEX, Classes, SegClass
from segbatch.masks.drawing import highlight
from segbatch.masks.html import jpeg_uri
from segbatch.review.pages import page_environment

PICTURE_SIDE = 480  # pixels of a picture's longer side
QUALITY = 80
MAX_CLASSES = 20  # in the confusion matrix


@dataclass(frozen=True, eq=False)
class WorstImage:
    """One image of the page, with its scores. The label maps are drawn at the photo's size."""

    uri: str
    miou: float
    iou: Mapping[str, float | None]  # by class name
    photo: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    truth: npt.NDArray[np.uint8]  # (H, W) class ids
    prediction: npt.NDArray[np.uint8]  # likewise


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of ``classes``: of each row's pixels, the shares that are predicted as
    each of them. Classes without pixels, and the smallest of many, are ``left_out``.
    """

    classes: Sequence[SegClass]
    rows: Sequence[tuple[SegClass, Sequence[float]]]
    left_out: Sequence[str]


def worst_page(
    title: str,
    metrics: Mapping[str, Any],
    images: Sequence[WorstImage],
    classes: Classes,
    confusion: npt.NDArray[np.int64],
) -> str:
    """The page as HTML: the metrics of ``metrics.json``, then the images in their order.

    ``confusion`` is ``(classes, classes)``: pixels by class in truth, the row, and in prediction.
    """
    environment = page_environment("segbatch.jobs")
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["share"] = masks.share
    return environment.get_template("worst.html").render(
        title=title,
        metrics=metrics,
        confusion=_confusion(classes, confusion),
        classes=classes,
        images=[
            (image, _pictures(image, classes), _classes_in(image, classes)) for image in images
        ],
    )


def _confusion(classes: Classes, counts: npt.NDArray[np.int64]) -> Confusion:
    pixels = counts.sum(axis=1) + counts.sum(axis=0)
    largest = np.argsort(-pixels, kind="stable")[:MAX_CLASSES].tolist()
    shown = sorted(index for index in largest if pixels[index])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    return Confusion(
        [classes[index] for index in shown],
        [(classes[index], shares[index, shown].tolist()) for index in shown],
        [c.name for c in classes if c.id not in shown],
    )


def _pictures(image: WorstImage, classes: Classes) -> dict[str, str]:
    """The photo, truth and prediction over it, and where these differ, as data URIs by name."""
    size = image.photo.shape[1::-1]
    truth, prediction = (
        np.asarray(Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST))
        for label_map in (image.truth, image.prediction)
    )
    pictures = {
        "photograph": Image.fromarray(image.photo),
        "truth": overlay(image.photo, truth, classes),
        "prediction": overlay(image.photo, prediction, classes),
        "wrong": highlight(image.photo, (truth != prediction) & (truth != IGNORE_INDEX)),
    }
    return {name: jpeg_uri(picture, QUALITY) for name, picture in pictures.items()}


def _classes_in(image: WorstImage, classes: Classes) -> list[Any]:
    """The classes that are in truth or prediction of the image, worst first."""
    present = [c for c in classes if image.iou[c.name] is not None]
    return sorted(present, key=lambda c: image.iou[c.name] or 0.0)
