"""Overlays of the frames of one video: each frame under the colours of its classes.

The legend stands in a corner of the picture, so that the film keeps its size. It lists every class
of the model in the same place in every frame; a legend of the visible classes would flicker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.images.scaling import downscale
from segbatch.masks import FILL, overlay
from segbatch.masks.drawing import legend
from segbatch.model.predict import Model


class FrameOverlays:
    """Draws overlays of the frames of one video, all of one size.

    ``fill`` is the opacity of the class colours, 0 to 1; with 0 there are only outlines.
    """

    def __init__(self, model: Model, fill: float = FILL) -> None:
        self.model = model
        self.fill = fill
        self._legend: Image.Image | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Image.Image]:
        """RGB overlays of ``frames``, each ``(height, width, 3)`` uint8 RGB, at their size."""
        long_side = self.model.long_side
        scaled = [np.asarray(downscale(Image.fromarray(frame), long_side)) for frame in frames]
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        predictions = self.model.predict_batch(scaled, sizes)
        return [
            self._with_legend(overlay(frame, prediction.mask, self.model.classes, self.fill))
            for frame, prediction in zip(frames, predictions, strict=True)
        ]

    def _with_legend(self, picture: Image.Image) -> Image.Image:
        if self._size != picture.size:
            self._size, self._legend = picture.size, legend(self.model.classes, picture.size)
        if self._legend is not None:
            picture.paste(self._legend, (0, picture.height - self._legend.height), self._legend)
        return picture
