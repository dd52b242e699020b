"""Annotated images: what every format of labels is read into, before it becomes a dataset.

A format is two functions. ``find`` lists what there is, cheaply; ``read`` turns one image with its
labels into a label map, somewhere else and at another time. Whatever either leaves out is said in
a :class:`Skipped`, for shapes that vanish silently are what people complain of most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch.masks.classes import Color


@dataclass(frozen=True)
class Skipped:
    """A shape or file that was left out: its URI (with the shape's place in it), and why."""

    where: str
    why: str


class Unusable(Exception):
    """One image that cannot become a sample; the import goes on without it and says so."""


@dataclass(frozen=True)
class Options:
    """What a user says besides where the labels are; each format takes what it knows."""

    images: str | None = None
    """Root folder of the images, or for ``pairs`` a pattern with ``{split}`` and ``{id}``."""
    masks: str | None = None
    """For ``pairs``: the pattern of the masks."""
    colors: str | None = None
    """For colour masks: a table of ``R G B name`` lines, or CVAT's ``labelmap.txt``; any URI."""
    reduce_zero_label: bool = False
    """For ``pairs``: id 0 is void and every other id one lower, as mmsegmentation does."""
    class_names: tuple[str, ...] | None = None
    """Names by id, where ``--classes`` gives them: index masks hold ids and no names."""


@dataclass(frozen=True)
class Item:
    """One annotated image, found and not yet read; small, since it goes to another process."""

    uri: str
    """The image's own URI: its identity in the dataset."""
    labels_uri: str
    """The file that holds its labels."""
    split: str | None = None
    """``train``, ``val`` or ``test`` where folder or file name says so (``valid`` is ``val``)."""
    detail: Any = None
    """Whatever the format's ``read`` needs: COCO's shapes of this image, a colour table."""
    copy: str | None = None
    """The copy that was labelled and whose bytes count, where it is not the image itself."""

    @property
    def file(self) -> str:
        """Where the image's bytes are."""
        return self.copy or self.uri


@dataclass(frozen=True)
class Found:
    """What ``find`` found. ``names``: the class names that occur, in the order of the format's own
    ids, or sorted where it has none; without ``__ignore__``. ``colors``: what the format says.
    """

    items: Sequence[Item]
    names: Sequence[str]
    colors: Mapping[str, Color] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()


@dataclass(frozen=True, eq=False)
class Labelled:
    """One image with its label map.

    ``image`` is the file as it was, ``width`` and ``height`` those of the upright picture,
    ``label_map`` HW uint8 of class ids of that size, with the ignore index. ``shapes`` counts what
    was drawn (a mask file is one).
    """

    image: bytes
    width: int
    height: int
    label_map: npt.NDArray[np.uint8]
    shapes: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Reader:
    """How labels of one format are found and drawn.

    ``find(source, options)`` raises :class:`~segbatch.errors.SourceError` where there is nothing
    of this format. ``read(item, ids, unlabelled)`` draws one image: ``ids`` has a class id, or the
    ignore index, for every name that ``find`` gave; pixels that no shape covers become
    ``unlabelled``. It raises :class:`Unusable` for an image that cannot be used.
    """

    find: Callable[[str, Options], Found]
    read: Callable[[Item, Mapping[str, int], int], Labelled]


IGNORE = "__ignore__"
