"""Reading: annotated images → rows of a dataset, a few at a time, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.formats.format import Item, Labelled, Skipped, Unusable
from segbatch.labels.balance import count_pixels
from segbatch.masks import encode_mask

CHUNK = 4  # images a task; each of its threads waits for storage while others draw


@dataclass(frozen=True)
class Reader:
    """What turns every item into a sample; it goes to other processes."""

    read: Callable[[Item, Mapping[str, int], int], Labelled]
    ids: Mapping[str, int]
    unlabelled: int
    palette: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """One image with its mask: the columns of its row that follow from it alone, and facts."""

    row: Mapping[str, Any]
    sha256: str
    pixels: Mapping[int, int]
    shapes: int
    skipped: tuple[Skipped, ...]


def read_chunk(task: tuple[Reader, Sequence[Item]]) -> list[Drawn | Skipped]:
    """What some items become, in their order; :class:`~segbatch.formats.format.Skipped` for an
    image that cannot be used. Raises what else the format's ``read`` raises.
    """
    reader, items = task
    with ThreadPoolExecutor(CHUNK) as threads:
        return list(threads.map(lambda item: _read(reader, item), items))


def _read(reader: Reader, item: Item) -> Drawn | Skipped:
    try:
        labelled = reader.read(item, reader.ids, reader.unlabelled)
    except Unusable as error:
        return Skipped(item.uri, str(error))
    name = storage.name_of(item.uri)
    mask = encode_mask(labelled.label_map, reader.palette)
    row = {
        "uri": item.uri,
        "image": {"bytes": labelled.image, "path": name},
        "mask": {"bytes": mask, "path": f"{PurePosixPath(name).stem}.png"},
        "width": labelled.width,
        "height": labelled.height,
    }
    return Drawn(
        row,
        hashlib.sha256(labelled.image).hexdigest(),
        count_pixels(labelled.label_map),
        labelled.shapes,
        labelled.skipped,
    )
