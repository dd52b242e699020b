"""Sizes: whether labels were made for the image as it is seen, upright."""

from __future__ import annotations

from segbatch.formats.format import Unusable
from segbatch.formats.photo import LYING, stored_size

Size = tuple[int, int]


def check_size(data: bytes, labelled: Size | None, what: str) -> Size:
    """Width and height of the upright image in ``data``.

    ``labelled`` is the size for which ``what`` (the mask, the JSON) was made, where it says so.
    Raises :class:`~segbatch.formats.format.Unusable` where it is another one.
    """
    stored, orientation = stored_size(data)
    width, height = stored[::-1] if orientation in LYING else stored
    if labelled in (None, (width, height)):
        return width, height
    if labelled == stored:
        raise Unusable(
            f"{what} is for {_text(stored)}, the image as it lies in its file, which EXIF turns to"
            f" {_text((width, height))}: take the orientation out of its EXIF, or label it upright"
        )
    raise Unusable(f"{what} is for {_text(labelled)} and the image is {_text((width, height))}")


def _text(size: Size | None) -> str:
    return "×".join(str(side) for side in size or ())
