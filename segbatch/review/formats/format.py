"""Format: what an exported image is given as, and what is written of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from segbatch.classes import Classes
from segbatch.review.photograph import Photograph


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
    ``(height, width)`` uint8, empty with :attr:`Photos.NONE`, as ``photo`` then is ``None``.
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
        """The file name of its photograph."""
        assert self.photo is not None
        return f"{self.name}.{self.photo.extension}"


@dataclass(frozen=True)
class Product:
    """What one image gives: whole files by their paths, and entries of files that all images share,
    by :class:`Part`.
    """

    files: Mapping[str, bytes]
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A place in a shared file where the entries of all images stand, in their order."""

    name: str
    between: str = ""


@dataclass(frozen=True)
class Format:
    """``convert`` makes the product of an image; ``shared`` says what the files hold, by path, that
    all of them share: texts and parts, of the classes and the URI of the run.
    """

    photos: Photos
    convert: Callable[[Segmented], Product]
    shared: Callable[[Classes, str], Mapping[str, Sequence[str | Part]]]
