"""The rows of a dataset without their bytes: sizes, pixels and faults, found in parallel."""

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

CHUNK_ROWS = 16  # rows a task


@dataclass(frozen=True)
class DatasetRow:
    """A row without its image and mask: the SHA-256 of the image's bytes, the pixels of the mask by
    class id, and the row's faults. Faults of the image are known only if it was decoded.
    """

    image_id: int
    uri: str
    group: str | None
    split: str
    shard: str
    sha256: str
    pixels: Mapping[int, int]
    faults: tuple[str, ...]


def scan_rows(
    dataset: Dataset, *, decode: bool, on_damage: Callable[[Shard, SourceError], None]
) -> Iterator[list[DatasetRow]]:
    """The rows of all shards, some at a time. ``decode``: decode the images, too.

    Calls ``on_damage`` for each shard that cannot be read. Raises
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """

    def tasks() -> Iterator[tuple[str, list[dict[str, Any]], bool]]:
        for shard in dataset.shards:
            try:
                table = dataset.read_shard(shard, SCHEMA.names)
            except SourceError as error:
                on_damage(shard, error)
                continue
            for start in range(0, len(table), CHUNK_ROWS):
                yield shard.path, table.slice(start, CHUNK_ROWS).to_pylist(), decode

    with closing(in_order(_scan_chunk, tasks())) as chunks:
        yield from chunks


def _scan_chunk(task: tuple[str, list[dict[str, Any]], bool]) -> list[DatasetRow]:
    shard, rows, decode = task
    return [_scan_row(row, shard, decode) for row in rows]


def _scan_row(row: dict[str, Any], shard: str, decode: bool) -> DatasetRow:
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
        listed = (f"{what} {width}×{height}" for what, (width, height) in sizes.items())
        faults.append(f"sizes differ: {', '.join(listed)} pixels")
    return DatasetRow(
        image_id=row["image_id"],
        uri=row["uri"],
        group=row["group"],
        split=row["split"],
        shard=shard,
        sha256=hashlib.sha256(image).hexdigest(),
        pixels=pixels,
        faults=tuple(faults),
    )
