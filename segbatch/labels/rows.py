"""Survey: what the rows of a dataset hold, looked at in parallel, without keeping their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from segbatch.errors import SourceError
from segbatch.formats.format import Unusable
from segbatch.formats.photo import upright_size
from segbatch.labels.balance import count_pixels
from segbatch.labels.dataset import SCHEMA, Dataset, Shard
from segbatch.labels.pool import in_order
from segbatch.masks import decode_mask

CHUNK_ROWS = 16


@dataclass(frozen=True)
class Row:
    """A row without its image and mask: SHA-256 of the image's bytes, pixels of the mask by id,
    and what is wrong with it, which is known of ``decoded`` images only.
    """

    image_id: int
    uri: str
    group: str | None
    split: str
    shard: str
    sha256: str
    pixels: Mapping[int, int]
    faults: tuple[str, ...]


def survey(
    dataset: Dataset, *, decode: bool, damaged: Callable[[Shard, SourceError], None]
) -> Iterator[list[Row]]:
    """The rows of all shards, some at a time. ``decode``: whether images are decoded, too.

    ``damaged`` is told of shards that cannot be read. Raises
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """

    def chunks() -> Iterator[tuple[str, list[dict[str, Any]], bool]]:
        for shard in dataset.shards:
            try:
                table = dataset.read_shard(shard, SCHEMA.names)
            except SourceError as error:
                damaged(shard, error)
                continue
            for start in range(0, len(table), CHUNK_ROWS):
                yield shard.path, table.slice(start, CHUNK_ROWS).to_pylist(), decode

    with closing(in_order(_look, chunks())) as results:
        yield from results


def _look(task: tuple[str, list[dict[str, Any]], bool]) -> list[Row]:
    shard, rows, decode = task
    return [_look_at(row, shard, decode) for row in rows]


def _look_at(row: dict[str, Any], shard: str, decode: bool) -> Row:
    image, mask = ((row[name] or {}).get("bytes") or b"" for name in ("image", "mask"))
    faults = []
    pixels: dict[int, int] = {}
    sizes = {"its row": (row["width"], row["height"])}
    try:
        label_map = decode_mask(mask)
        pixels = count_pixels(label_map)
        sizes["the mask"] = (label_map.shape[1], label_map.shape[0])
    except SourceError as error:
        faults.append(str(error))
    if decode:
        try:
            sizes["the upright image"] = upright_size(image)
        except Unusable as error:
            faults.append(str(error))
    if len(set(sizes.values())) > 1:
        said = (f"{what} {width}×{height}" for what, (width, height) in sizes.items())
        faults.append(f"sizes differ: {', '.join(said)} pixels")
    known = {name: row[name] for name in ("image_id", "uri", "group", "split")}
    digest = hashlib.sha256(image).hexdigest()
    return Row(**known, shard=shard, sha256=digest, pixels=pixels, faults=tuple(faults))
