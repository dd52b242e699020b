"""Format: what an exported image is given as, and what is written of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.masks.classes import Classes

QUALITY = 95


@dataclass(frozen=True, eq=False)
class Photograph:
    """``pixels`` are ``(height, width, 3)`` uint8 RGB, upright; ``data`` is a file of the same
    picture, ``extension`` ``jpg`` or ``png``.
    """

    pixels: npt.NDArray[np.uint8]
    extension: str
    data: bytes


def encoded(pixels: npt.NDArray[np.uint8], extension: str, quality: int = QUALITY) -> bytes:
    """A ``jpg`` or ``png`` file of ``(height, width, 3)`` uint8 RGB."""
    file = io.BytesIO()
    if extension == "jpg":
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Photos(Enum):
    """What a format needs of the photographs."""

    NONE = "none"
    PIXELS = "pixels"
    FILES = "files"  # JPEG or PNG
    JPEG_FILES = "jpeg files"


@dataclass(frozen=True, eq=False)
class Segmented:
    """One image. ``name`` is its path below the exported folder, unique and without an extension;
    ``mask`` its palette PNG as it is stored; ``label_map`` the same at the photograph's size,
    ``(height, width)`` uint8, empty with :attr:`Photos.NONE`. ``photo`` is ``None`` then, and where
    the files of the image are there already.
    """

    run: str
    image_id: int
    uri: str
    name: str
    classes: Classes
    mask: bytes
    photo: Photograph | None
    label_map: npt.NDArray[np.uint8]

    @property
    def photo_name(self) -> str:
        """The file name of its photograph, which must be there."""
        assert self.photo is not None
        return f"{self.name}.{self.photo.extension}"


@dataclass(frozen=True)
class Part:
    """A place in a shared file where the entries of all images stand, in their order."""

    name: str
    between: str = ""


def no_entries(image: Segmented, last: str) -> Mapping[str, Sequence[str]]:
    """Of a format whose images have nothing in a shared file."""
    return {}


@dataclass(frozen=True)
class Writer:
    """``files`` gives the files of an image by their paths, in the order in which they are written;
    ``last`` are the paths that the last of them may have, of ``{name}``. ``shared`` says what the
    files hold, by path, that all images share: texts and parts, of the classes and the URI of the
    run. ``entries`` is what an image, whose last file has the given path, adds to the parts, by
    their names.
    """

    photos: Photos
    files: Callable[[Segmented], Mapping[str, bytes]]
    last: Sequence[str]
    shared: Callable[[Classes, str], Mapping[str, Sequence[str | Part]]]
    entries: Callable[[Segmented, str], Mapping[str, Sequence[str]]] = no_entries
