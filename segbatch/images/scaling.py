"""Downscaling to ``long_side``: one way for training and prediction, so that the scores of a
training hold in production. Also the multiple to which images are padded for the network.
"""

from __future__ import annotations

from PIL import Image

# Pillow's BILINEAR is a triangle filter over the whole footprint of a pixel, so it does not alias.
FILTER = Image.Resampling.BILINEAR

PADDING_MULTIPLE = 64  # pixels: prediction pads both sides of an image to a multiple of this


def scaled_size(width: int, height: int, long_side: int | None) -> tuple[int, int]:
    """``(width, height)`` after downscaling so that the longer side is at most ``long_side``.

    Never larger than given, never below one pixel; ``None`` changes nothing.
    """
    longer = max(width, height)
    if long_side is None or longer <= long_side:
        return width, height
    return max(1, round(width * long_side / longer)), max(1, round(height * long_side / longer))


def downscale(image: Image.Image, long_side: int | None) -> Image.Image:
    """``image`` with its longer side at most ``long_side`` pixels; the same object if it fits."""
    size = scaled_size(*image.size, long_side)
    return image if size == image.size else image.resize(size, FILTER)
