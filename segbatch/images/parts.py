"""Parts of objects: images that are one piece of a file.

The URI of a part is that of its object with a fragment behind it:

    clip.mp4#t=12.480              a frame of a video (video.py)
    shard-0.tar#member=a/1.jpg     a member of a tar shard (shards.py)
    part-0.parquet#row=17          the image in a row of a table (tablerows.py)
    pano.jpg#yaw=90&pitch=0&…      a view of a panorama (panorama.py)

A kind of part says which URIs are its own, and reads several parts at once, so that an object is
opened once for all of its parts in a block. When the list of images is frozen,
:mod:`~segbatch.images.sources` lists the parts of an object. To add a kind, write its module and
add a line to :data:`KINDS`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from segbatch import storage
from segbatch.config.images import is_photograph_name
from segbatch.images import panorama, shards, tablerows, video
from segbatch.images.faults import Content
from segbatch.images.place import Part


@dataclass(frozen=True)
class PartKind:
    """A kind of part.

    ``fragment`` is a regular expression for the end of its URIs. ``read(parts, limits, raw_bytes)``
    returns the bytes of an image file for each of ``parts``, or why there are none, and raises
    nothing for what storage answers; up to ``raw_bytes`` of them may be uncompressed. A block of
    neighbours takes about ``requests`` requests; 0: one for each object.
    """

    fragment: str
    is_part: Callable[[str], bool]
    read: Callable[[Sequence[Part], storage.ReadLimits, int], list[Content]]
    requests: int


def _read_views(parts: Sequence[Part], limits: storage.ReadLimits, raw_bytes: int) -> list[Content]:
    return panorama.read_views(parts, limits, raw_bytes, read_parts)


KINDS = (
    PartKind(panorama.FRAGMENT, panorama.is_view, _read_views, requests=0),
    PartKind(shards.FRAGMENT, shards.is_member, shards.read_members, requests=2),
    PartKind(video.FRAGMENT, video.is_frame, video.read_frames, requests=8),
    PartKind(tablerows.FRAGMENT, tablerows.is_row, tablerows.read_rows, requests=5),
)


def part_kind(uri: str) -> PartKind | None:
    """The kind of part that ``uri`` names; ``None`` for an object of its own."""
    return next((kind for kind in KINDS if kind.is_part(uri)), None)


def part_extension(uri: str, content: bytes) -> str:
    """The extension for a copy of the part ``uri`` of an object, by its ``content``; empty where
    the URI ends in one.
    """
    if part_kind(uri) is None or is_photograph_name(uri):
        return ""
    try:
        with Image.open(io.BytesIO(content)) as image:
            name = str(image.format)
        return {"JPEG": ".jpg", "TIFF": ".tif"}.get(name, f".{name.lower()}")
    except Exception:  # Pillow raises almost anything for what is no image
        return ""


def _or_files(
    parts: Sequence[Part], contents: Sequence[Content], limits: storage.ReadLimits
) -> list[Content]:
    """``contents``, where a part that is not there is read as a file: its name may look like a
    part's. Parts that come with their places are parts.
    """
    found = list(contents)
    missing = [
        row
        for row, (part, content) in enumerate(zip(parts, contents, strict=True))
        if part.place is None and getattr(content, "kind", None) == "not_found"
    ]
    files = storage.read_many([parts[row].uri for row in missing], limits)
    for row, file in zip(missing, files, strict=True):
        found[row] = file if isinstance(file, bytes) else found[row]
    return found


def read_images(
    uris: Sequence[str], limits: storage.ReadLimits, raw_bytes: int = 0
) -> list[Content]:
    """:func:`read_parts` for images of which nothing but their URIs is known."""
    return read_parts([Part(uri) for uri in uris], limits, raw_bytes)


def read_parts(
    parts: Sequence[Part], limits: storage.ReadLimits, raw_bytes: int = 0
) -> list[Content]:
    """The bytes of images in their order, objects and parts of objects, or why they could not be
    read.

    Frames of videos become image files; up to ``raw_bytes`` of them are not compressed. Raises
    nothing for what storage answers.
    """
    kinds = [part_kind(part.uri) for part in parts]
    found: list[Content | None] = [None] * len(parts)
    for kind in set(kinds):
        rows = [row for row, known in enumerate(kinds) if known is kind]
        wanted = [parts[row] for row in rows]
        if kind is None:
            uris = [part.uri for part in wanted]
            contents: Sequence[Content] = storage.read_many(uris, limits)
        else:
            contents = _or_files(wanted, kind.read(wanted, limits, raw_bytes), limits)
        for row, content in zip(rows, contents, strict=True):
            found[row] = content
    return [content for content in found if content is not None]
