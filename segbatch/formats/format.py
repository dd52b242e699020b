"""An annotation format: how its labels are read, how they are written, or both.

Reading takes two steps. ``find`` lists the annotated images of a folder, which is cheap; ``read``
draws the label map of one of them, later and in another process. Both report what they leave out
as :class:`Skipped`, because shapes that vanish silently are what people complain of most.

Writing turns one segmented image into its own files and into entries of the files that all images
share, such as a list of names or one JSON document.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.errors import presentable
from segbatch.masks.classes import Classes, Color

LabelMap = npt.NDArray[np.uint8]  # (height, width), class ids

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Format:
    """One annotation format. ``reader`` is ``None`` if segbatch cannot import it, ``writer`` if it
    cannot export it.
    """

    reader: Reader | None = None
    writer: Writer | None = None


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Reader:
    """Finds the annotated images of one format and draws their label maps.

    ``find(source, options)`` raises :class:`~segbatch.errors.SourceError` if ``source`` holds
    nothing of this format. ``read(image, ids, unlabelled)`` draws one image: ``ids`` has a class
    id, or the ignore index, for every name that ``find`` returned; pixels that no shape covers
    become ``unlabelled``. It raises :class:`Unusable` for an image that cannot be used.
    ``options`` names the command line options that only some formats have and this one takes.
    """

    find: Callable[[str, ReadOptions], Annotations]
    read: Callable[[AnnotatedImage, Mapping[str, int], int], LabelledImage]
    options: Sequence[str]


@dataclass(frozen=True)
class ReadOptions:
    """User options other than the location of the labels; each format uses those it knows."""

    images: str | None = None
    """Root folder of the images, or for ``pairs`` a pattern with ``{split}`` and ``{id}``."""
    masks: str | None = None
    """For ``pairs``: the pattern of the masks."""
    colors: str | None = None
    """For colour masks: a table of ``R G B name`` lines, or CVAT's ``labelmap.txt``; any URI."""
    reduce_zero_label: bool = False
    """For ``pairs``: id 0 is void and every other id one lower, as in mmsegmentation."""
    class_names: tuple[str, ...] | None = None
    """Names by id from ``--classes``: index masks hold ids and no names."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One annotated image, found but not read yet; small, because it goes to another process."""

    uri: str
    """The image's own URI: its identity in the dataset."""
    labels_uri: str
    """The file that holds its labels."""
    split: str | None = None
    """``train``, ``val`` or ``test`` if a folder or file name says so (``valid`` is ``val``)."""
    detail: Any = None
    """What the format's ``read`` needs: COCO's shapes of this image, a colour table."""
    copy: str | None = None
    """The copy that was labelled and whose bytes count, if it is not the image itself."""
    unchanged: bool = False
    """Whether its labels are a model's suggestion that nobody has changed."""

    @property
    def file(self) -> str:
        """The URI of the image's bytes."""
        return self.copy or self.uri


@dataclass(frozen=True)
class Annotations:
    """The annotated images in a source. ``names`` are the class names that occur, in the order of
    the format's own ids, or sorted if it has none; without ``__ignore__``. ``colors`` are those
    that the format gives, by name.
    """

    images: Sequence[AnnotatedImage]
    names: Sequence[str]
    colors: Mapping[str, Color] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image with its label map.

    ``image`` is the unchanged file, ``width`` and ``height`` are those of the upright picture.
    ``label_map`` has that size and holds class ids and the ignore index. ``shapes`` counts the
    shapes that were drawn (a mask file counts as one). ``perhaps_turned``: EXIF turns the image,
    and nothing shows that its labels were made for the turned one.
    """

    image: bytes
    width: int
    height: int
    label_map: LabelMap
    shapes: int
    skipped: tuple[Skipped, ...] = ()
    perhaps_turned: bool = False


@dataclass(frozen=True)
class Skipped:
    """A shape or file that was left out: its URI (and the shape's place in the file), and why."""

    where: str
    why: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", presentable(self.why))


class Unusable(Exception):
    """One image cannot become a sample; the import reports it and continues."""


# ------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Writer:
    """Writes segmented images in one format.

    ``photos`` says what the format needs of the photographs. ``files(image)`` returns the files of
    an image by path, in the order in which they are written; ``last`` lists the possible paths of
    the last one, with ``{name}`` for the image's name. ``shared(classes, run)`` returns the
    content of the files that all images share, by path, as texts and slots. ``entries(image,
    last)`` returns what an image, whose last file is ``last``, adds to the slots, by their names;
    it is ``None`` if the shared files have no slots; ``last`` is empty if the image has no files.
    ``has_address(uri)`` says whether the format names a photograph by its URI and needs no file.
    """

    photos: Photos
    files: Callable[[SegmentedImage], Mapping[str, bytes]]
    last: Sequence[str]
    shared: Callable[[Classes, str], Mapping[str, Sequence[str | Slot]]]
    entries: Callable[[SegmentedImage, str], Mapping[str, Sequence[str]]] | None = None
    has_address: Callable[[str], bool] = lambda uri: False


class Photos(Enum):
    """What a format needs of the photographs."""

    NONE = "none"
    PIXELS = "pixels"
    FILES = "files"  # JPEG or PNG
    JPEG_FILES = "jpeg files"


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """One image of a run, to be written. ``name`` is its path below the exported ``folder``, unique
    and without an extension. ``mask`` is its palette PNG as stored; ``label_map`` is the same at
    the photograph's size, empty with :attr:`Photos.NONE`. ``confidence`` is by class name, 0 to 1,
    ``None`` where the class is absent; empty if the run has none. ``model`` is the URI of the run's
    model. ``photo`` is ``None`` with :attr:`Photos.NONE`, if the photograph has an address, and if
    the files of the image exist already.
    """

    run: str
    image_id: int
    uri: str
    name: str
    classes: Classes
    mask: bytes
    photo: Photograph | None
    label_map: LabelMap
    folder: str
    model: str
    confidence: Mapping[str, float | None]

    @property
    def photo_name(self) -> str:
        """The file name of the photograph, which must not be ``None``."""
        assert self.photo is not None
        return f"{self.name}.{self.photo.extension}"


@dataclass(frozen=True, eq=False)
class Photograph:
    """An upright photograph: ``pixels`` are ``(height, width, 3)`` uint8 RGB; ``data`` is a file of
    the same picture, with the extension ``jpg`` or ``png``.
    """

    pixels: npt.NDArray[np.uint8]
    extension: str
    data: bytes


def encode_photo(
    pixels: npt.NDArray[np.uint8], extension: str, quality: int = JPEG_QUALITY
) -> bytes:
    """Encode ``(height, width, 3)`` uint8 RGB as a ``jpg`` or ``png`` file."""
    file = io.BytesIO()
    if extension == "jpg":
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Slot:
    """A place in a shared file that holds the entries of all images, in their order."""

    name: str
    separator: str = ""
