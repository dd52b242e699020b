"""Random access to the images and masks of a split, in a copy on the local disk.

Each epoch reads every image in another order, but Parquet files on storage are made for reading
from front to back. So a node copies a split once, into Arrow files that all its workers map into
memory: one image is one read, and the copy takes no memory of its own.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from segbatch.labels.dataset import Dataset, Shard


class Sample(NamedTuple):
    """One labelled image: its unchanged file, and its mask as a palette PNG."""

    image_id: int
    uri: str
    image: bytes
    mask: bytes


def copy_split(dataset: Dataset, split: str, folder: Path, share: slice = slice(None)) -> None:
    """Copy the ``share`` of the split's files to ``folder``, except those that are there already.

    Raises :class:`~segbatch.errors.SourceError` for a damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in dataset.shards_of(split)[share]:
        path = _path(folder, shard)
        if path.exists():
            continue
        table = dataset.read_shard(shard, ["image_id", "uri", "image", "mask"])
        columns = {
            "image_id": table["image_id"],
            "uri": table["uri"],
            **{name: pa.chunked_array([c.field("bytes") for c in table[name].chunks], pa.binary())
               for name in ("image", "mask")},
        }  # fmt: skip
        unfinished = path.with_suffix(f".{os.getpid()}")
        plain = pa.table(columns)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, plain.schema) as file:
            file.write_table(plain)
        unfinished.replace(path)


class Samples(Sequence[Sample]):
    """The samples of a split, from a folder that :func:`copy_split` has filled."""

    def __init__(self, dataset: Dataset, split: str, folder: Path) -> None:
        self._tables = [
            pa.ipc.open_file(pa.memory_map(str(_path(folder, shard)))).read_all()
            for shard in dataset.shards_of(split)
        ]
        self._ends = list(accumulate(table.num_rows for table in self._tables))
        self.image_ids: list[int] = [
            image_id for table in self._tables for image_id in table["image_id"].to_pylist()
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        table = self._tables[number]
        return Sample(*(table[name][row].as_py() for name in Sample._fields))


def _path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.sha256}.arrow"
