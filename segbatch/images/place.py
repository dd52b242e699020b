"""The place of a part in its object, which the manifest keeps beside the part's URI.

It is found when the images are listed, so that a block of images asks storage for their bytes and
for nothing else, and notices an object that was replaced since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

PLACE = pa.field(
    "_place",
    pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("version", pa.string())]),
)


PART_URI = "__uri"  # in a list of parts, whose own columns may include one named `uri`


class Place(NamedTuple):
    """Where a part is: ``size`` bytes from ``offset`` on, of the object's ``version``.

    Without ``offset`` and ``size`` the part is found by its URI alone.
    """

    offset: int | None
    size: int | None
    version: str | None


@dataclass(frozen=True)
class Part:
    """The URI of a part and, if the manifest knows it, its place."""

    uri: str
    place: Place | None = None


def parts_of(table: pa.Table) -> list[Part]:
    """The rows of a manifest as parts, most of them objects of their own."""
    uris = table["uri"].to_pylist()
    if PLACE.name not in table.column_names:
        return [Part(uri) for uri in uris]
    places = table[PLACE.name].to_pylist()
    return [Part(uri, place and Place(**place)) for uri, place in zip(uris, places, strict=True)]


def has_places(table: pa.Table) -> bool:
    """Whether the rows of a manifest are, some of them, parts that come with their neighbours."""
    return any(part.place is not None for part in parts_of(table))


def places(rows: Sequence[Place]) -> pa.Array:
    """A column of places."""
    return pa.array([row._asdict() for row in rows], PLACE.type)
