"""What a server answers for an image: facts as JSON, the mask as PNG, or an overlay as JPEG."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from pydantic import BaseModel

from segbatch.images.decode import Decoded, decode_image
from segbatch.masks import encode_mask, encode_picture, with_legend
from segbatch.model.predict import Prediction

JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
OFFERED = (JSON, PNG, JPEG)  # by preference, where a client takes several alike


class ModelName(BaseModel):
    """Which model predicted."""

    uri: str
    sha256: str
    """64 hex digits that change with the model."""


class ClassName(BaseModel):
    """A class of the model; ``id`` is its value in masks."""

    id: int
    name: str
    color: str
    """``#rrggbb``."""


class Facts(BaseModel):
    """What the model sees in an image."""

    width: int
    """Width of the upright image and of its mask, in pixels."""
    height: int
    model_width: int
    """Width of the image as the network takes it, in pixels."""
    model_height: int
    pixels: dict[str, int]
    """Pixels of the mask by class."""
    coverage: dict[str, float]
    """Share of the mask by class, 0 to 1."""
    confidence: dict[str, float | None]
    """Mean probability with which a class won its pixels, 0 to 1; null for an absent class."""
    uncertainty: float | None
    """1 minus the mean margin between the two likeliest classes, 0 to 1."""
    classes: list[ClassName]
    model: ModelName


@dataclass(frozen=True, eq=False)
class Predicted:
    """An image file with what was predicted in it."""

    data: bytes
    max_pixels: int
    image: Decoded
    prediction: Prediction
    model: ModelName

    def facts(self) -> Facts:
        """The statistics, as they stand in the rows of a run."""
        prediction = self.prediction
        names = prediction.classes.names
        model_height, model_width, _ = self.image.pixels.shape
        return Facts(
            width=self.image.width,
            height=self.image.height,
            model_width=model_width,
            model_height=model_height,
            pixels=dict(zip(names, prediction.pixels.tolist(), strict=True)),
            coverage=prediction.coverage,
            confidence=prediction.confidence,
            uncertainty=None if isnan(prediction.uncertainty) else prediction.uncertainty,
            classes=[ClassName(id=c.id, name=c.name, color=c.hex) for c in prediction.classes],
            model=self.model,
        )

    def mask(self) -> bytes:
        """The label map as palette PNG, the bytes that a run stores."""
        return encode_mask(self.prediction.mask, self.prediction.classes.palette)

    def overlay(self) -> bytes:
        """The photograph under the colours of its classes, with a legend, as JPEG.

        Raises :class:`~segbatch.errors.InputError` for a picture that is too large for JPEG.
        """
        photograph = self.image.pixels
        if photograph.shape[:2] != self.prediction.mask.shape:
            whole = decode_image(self.data, max_pixels=self.max_pixels, long_side=None)
            assert isinstance(whole, Decoded)  # as it was for the model
            photograph = whole.pixels
        shares = np.array(list(self.prediction.coverage.values()))
        picture = replace(self.prediction, image=photograph).overlay()
        legend = with_legend(picture, self.prediction.classes, shares)
        return encode_picture(legend, "overlay.jpg")

    def body(self, media_type: str) -> bytes:
        """The answer of one of the :data:`OFFERED` types; raises what :meth:`overlay` raises."""
        if media_type == PNG:
            return self.mask()
        if media_type == JPEG:
            return self.overlay()
        return self.facts().model_dump_json().encode()


def accepted(accept: str | None) -> str | None:
    """The one of the :data:`OFFERED` types that a client prefers, by its header ``Accept``.

    ``None`` if it takes none of them. Source: RFC 9110, section 12.5.1.
    """
    if accept is None or not accept.strip():
        return JSON
    ranges = dict(_quality(part) for part in accept.lower().split(",") if part.strip())
    qualities = {
        offered: next(
            (
                ranges[known]
                for known in (offered, f"{offered.partition('/')[0]}/*", "*/*")
                if known in ranges
            ),
            0.0,
        )
        for offered in OFFERED
    }
    best = max(OFFERED, key=qualities.__getitem__)
    return best if qualities[best] > 0 else None


def _quality(part: str) -> tuple[str, float]:
    """A media range and its weight, 0 to 1; one that cannot be read weighs 1."""
    media_range, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, float(value)
            except ValueError:
                break
    return media_range, 1.0
