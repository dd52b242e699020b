"""Overlays of a film: its frames under the colours of their classes, batch by batch.

The legend stands in a corner of the picture, so that the film keeps its size, and names every
class of the model at the same place in every frame: one that follows what is seen would flicker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from segbatch import masks
from segbatch.images.scaling import downscale
from segbatch.masks.classes import Classes
from segbatch.model.predict import Model

MIN_FONT = 9  # in pixels; below, nobody reads it
_BACKGROUND = (0, 0, 0, 150)  # RGBA: the picture shines through
_LARGEST_SHARE = 0.5  # of the picture's width that a legend may take


class Overlays:
    """Makes overlays of the frames of one film, which all have one size."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._legend: Image.Image | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Image.Image]:
        """RGB pictures of the size of ``frames``, ``(height, width, 3)`` uint8 RGB each."""
        long_side = self.model.long_side
        scaled = [np.asarray(downscale(Image.fromarray(frame), long_side)) for frame in frames]
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        predictions = self.model.predict_batch(scaled, sizes)
        return [
            self._labelled(masks.overlay(frame, prediction.mask, self.model.classes))
            for frame, prediction in zip(frames, predictions, strict=True)
        ]

    def _labelled(self, picture: Image.Image) -> Image.Image:
        if self._size != picture.size:
            self._size, self._legend = picture.size, legend(self.model.classes, picture.size)
        if self._legend is not None:
            picture.paste(self._legend, (0, picture.height - self._legend.height), self._legend)
        return picture


def legend(classes: Classes, size: tuple[int, int]) -> Image.Image | None:
    """Colour and name of each class, RGBA, for the corner of a picture of ``(width, height)``.

    ``None`` where they do not fit in: too many classes, or too small a picture.
    """
    width, height = size
    font_size = max(MIN_FONT, height // 45)  # every other length follows it
    line = round(font_size * 1.4)
    font = ImageFont.load_default(font_size)
    text_width = max(round(font.getlength(each.name)) for each in classes)
    needed = (text_width + 3 * font_size, line * len(classes) + font_size)
    if needed[0] > width * _LARGEST_SHARE or needed[1] > height:
        return None
    sheet = Image.new("RGBA", needed, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for each in classes:
        y = font_size // 2 + each.id * line
        box = (font_size // 2, y, font_size * 3 // 2, y + font_size)
        draw.rectangle(box, fill=each.color, outline="white")
        middle = y + font_size // 2
        draw.text((font_size * 2, middle), each.name, fill="white", font=font, anchor="lm")
    return sheet
