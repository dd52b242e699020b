"""Parts of objects: images that are one piece of a file.

The URI of a part is that of its object with a fragment behind it:

    clip.mp4#t=12.480         a frame of a video (video.py)
    part-0.parquet#row=17     the image in a row of a table (tablerows.py)

A kind of part says which URIs are its own, and reads several parts at once, so that an object is
opened once for all of its parts in a block. When the list of images is frozen,
:mod:`~segbatch.images.sources` lists the parts of an object. To add a kind, write its module and
add a line to :data:`KINDS`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from segbatch import storage
from segbatch.images import tablerows, video
from segbatch.images.faults import Undecodable

Content = bytes | Undecodable | storage.Unreadable


@dataclass(frozen=True)
class PartKind:
    """A kind of part.

    ``fragment`` is a regular expression for the end of its URIs. ``read(uris, limits, raw_bytes)``
    returns the bytes of an image file for each of ``uris``, or why there are none, and raises
    nothing for what storage answers; up to ``raw_bytes`` of them may be uncompressed.
    """

    fragment: str
    is_part: Callable[[str], bool]
    read: Callable[[Sequence[str], storage.ReadLimits, int], list[Content]]


KINDS = (
    PartKind(video.FRAGMENT, video.is_frame, video.read_frames),
    PartKind(tablerows.FRAGMENT, tablerows.is_row, tablerows.read_rows),
)

FRAGMENT = re.compile("|".join(f"{kind.fragment}$" for kind in KINDS))


def kind_of(uri: str) -> PartKind | None:
    """The kind of part that ``uri`` names; ``None`` for an object of its own."""
    return next((kind for kind in KINDS if kind.is_part(uri)), None)


def part_extension(uri: str, content: bytes) -> str:
    """The extension for a copy of the part ``uri`` of an object, by its ``content``; empty for an
    object of its own, whose name has one.
    """
    if kind_of(uri) is None:
        return ""
    try:
        with Image.open(io.BytesIO(content)) as image:
            name = str(image.format)
        return {"JPEG": ".jpg", "TIFF": ".tif"}.get(name, f".{name.lower()}")
    except Exception:  # Pillow raises almost anything for what is no image
        return ""


def read_images(
    uris: Sequence[str], limits: storage.ReadLimits, raw_bytes: int = 0
) -> list[Content]:
    """The bytes of the images at ``uris`` in their order, objects and parts of objects, or why they
    could not be read.

    Frames of videos become image files; up to ``raw_bytes`` of them are not compressed. Raises
    nothing for what storage answers.
    """
    kinds = [kind_of(uri) for uri in uris]
    found: list[Content | None] = [None] * len(uris)
    for kind in set(kinds):
        rows = [row for row, known in enumerate(kinds) if known is kind]
        wanted = [uris[row] for row in rows]
        if kind is None:
            contents: Sequence[Content] = storage.read_many(wanted, limits)
        else:
            contents = kind.read(wanted, limits, raw_bytes)
        for row, content in zip(rows, contents, strict=True):
            found[row] = content
    return [content for content in found if content is not None]
