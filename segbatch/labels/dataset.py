"""A labelled dataset on storage: images and masks in Parquet, one folder a split.

    classes.json        ids, names, colours, ignore index, sources, and which files belong to it
    README.md           the dataset card
    train/*.parquet     one row per image, image and mask encoded; also val/, test/

``classes.json`` is written last and names every file with its SHA-256. Other files do not belong to
the dataset, so an import that was killed leaves it as it was. Hugging Face's ``load_dataset`` reads
the folder as images.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import InputError, SourceError
from segbatch.masks.classes import IGNORE_INDEX, Classes

CLASSES = "classes.json"
CARD = "README.md"
SPLITS = ("train", "val", "test")

_FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})

FEATURES = {
    "image_id": {"dtype": "int64", "_type": "Value"},
    "uri": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
    "width": {"dtype": "int32", "_type": "Value"},
    "height": {"dtype": "int32", "_type": "Value"},
    "group": {"dtype": "string", "_type": "Value"},
    "split": {"dtype": "string", "_type": "Value"},
}

SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),  # unique over the splits
        "uri": pa.string(),  # of the image when it was imported
        "image": _FILE,  # the unchanged file
        "mask": _FILE,  # palette PNG of the upright image's size, palette index = class id
        "width": pa.int32(),  # of the upright image
        "height": pa.int32(),
        "group": pa.string(),  # images of one group are in one split; null without --group-by
        "split": pa.string(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)

SHARD_ROWS = 1000
SHARD_BYTES = 256 << 20
ROW_GROUP_ROWS = 64
ROW_GROUP_BYTES = 32 << 20
FEW_ROWS = 16  # rows that are Python objects at a time

# A shard's name is the hash of its content, so that the same import twice gives the same dataset.
SHARD_PATH = re.compile(rf"(?:{'|'.join(SPLITS)})/[0-9a-f]{{32}}\.parquet")


@dataclass(frozen=True)
class Shard:
    """One file of a dataset: its path in the dataset's folder, and what it must hold."""

    path: str
    rows: int
    sha256: str

    @property
    def split(self) -> str:
        """The split whose folder holds the file."""
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset, as its ``classes.json`` describes it.

    ``pixels`` counts the pixels of each id, by split; empty in datasets of earlier versions.
    """

    uri: str
    classes: Classes
    shards: Sequence[Shard] = ()
    sources: Sequence[Mapping[str, Any]] = field(default_factory=list)
    pixels: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with the images, the masks or the classes' names."""
        facts = [self.classes.names, sorted((shard.path, shard.sha256) for shard in self.shards)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def group_by(self) -> str | None:
        """The latest ``--group-by`` of its imports; earlier versions did not record any."""
        recorded = (source.get("group_by") for source in reversed(self.sources))
        return next((regex for regex in recorded if regex is not None), None)

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split that has any."""
        counts = {split: self.num_rows(split) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    def num_rows(self, split: str) -> int:
        """Number of images of the split."""
        return sum(shard.rows for shard in self.shards_of(split))

    def shards_of(self, split: str) -> list[Shard]:
        """The files of the split."""
        return [shard for shard in self.shards if shard.split == split]

    def read_shard(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard, after comparing its bytes with their SHA-256.

        Raises :class:`~segbatch.errors.SourceError` for a damaged or missing file and
        :class:`~segbatch.errors.Incomplete` if storage does not answer.
        """
        where = storage.join(self.uri, shard.path)
        data = _read(where)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise SourceError(
                f"{where}: is not the file that was imported: import the labels again"
            )
        try:
            return pq.read_table(pa.BufferReader(data), columns=columns or SCHEMA.names)
        except pa.ArrowException as error:
            why = storage.one_line(error)
            raise SourceError(f"{where}: not a labelled dataset's: {why}") from error

    def image_digests(self) -> dict[str, str]:
        """The SHA-256 of each image's bytes in hex, by the image's URI.

        Reads all of the dataset, one shard at a time. Raises as :meth:`read_shard`.
        """
        return {
            row["uri"]: hashlib.sha256(row["image"]["bytes"]).hexdigest()
            for shard in self.shards
            for batch in self.read_shard(shard, ["uri", "image"]).to_batches(FEW_ROWS)
            for row in batch.to_pylist()
        }

    def tables(self, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a split, shard by shard."""
        for shard in self.shards_of(split):
            yield self.read_shard(shard, columns)

    def to_json(self) -> dict[str, Any]:
        """The content of ``classes.json``."""
        return {
            "classes": self.classes.to_json(),
            "ignore_index": IGNORE_INDEX,
            "sources": list(self.sources),
            "pixels": {split: dict(counts) for split, counts in self.pixels.items()},
            "files": {
                shard.path: {"rows": shard.rows, "sha256": shard.sha256} for shard in self.shards
            },
        }

    def publish(self, card: str = "") -> None:
        """Write ``card`` and ``classes.json``, then delete the shards that it does not name; if
        that fails, they do no harm. Raises ``OSError``.
        """
        if card:
            storage.write_bytes(storage.join(self.uri, CARD), card.encode())
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        storage.write_bytes(storage.join(self.uri, CLASSES), f"{text}\n".encode())
        with suppress(OSError):
            storage.delete(
                storage.join(self.uri, path)
                for path in self.unnamed_files()
                if SHARD_PATH.fullmatch(path)
            )

    def unnamed_files(self) -> list[str]:
        """Paths of the files in the splits' folders that do not belong to the dataset: left behind
        by a killed import, or put there by somebody. Raises ``OSError``.
        """
        named = {shard.path for shard in self.shards}
        return [
            path
            for split in SPLITS
            for file in storage.list_files(storage.join(self.uri, split))
            if (path := f"{split}/{storage.name_of(file.uri)}") not in named
        ]


def open_dataset(uri: str) -> Dataset:
    """The dataset in the folder ``uri``.

    Raises :class:`~segbatch.errors.SourceError` if there is none, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    uri = storage.normalize(uri)
    where = storage.join(uri, CLASSES)
    try:
        values = json.loads(_read(where))
        if values["ignore_index"] != IGNORE_INDEX:
            raise InputError(f"ignore_index must be {IGNORE_INDEX}")
        shards = [
            Shard(path, entry["rows"], entry["sha256"]) for path, entry in values["files"].items()
        ]
        classes = Classes.from_json(values["classes"])
        pixels = {
            split: {int(class_id): int(number) for class_id, number in counts.items()}
            for split, counts in values.get("pixels", {}).items()
        }
        return Dataset(uri, classes, shards, values.get("sources", []), pixels)
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{where}: not a labelled dataset's: {error}") from error


def write_shard(uri: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Shard:
    """Write rows (:data:`SCHEMA`, ``split`` may be left out) as a new file, which does not belong
    to the dataset until :meth:`Dataset.publish` names it. Raises ``OSError``.

    Holds the encoded file and one row group in memory, in addition to ``rows``.
    """
    sink = io.BytesIO()
    num_rows = 0
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", use_dictionary=["split"]) as writer:
        for group in _row_groups(rows):
            writer.write_table(
                pa.Table.from_pylist([{**row, "split": split} for row in group], SCHEMA)
            )
            num_rows += len(group)
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{split}/{sha256[:32]}.parquet"
    storage.write_bytes(storage.join(uri, path), data)
    return Shard(path, num_rows, sha256)


def num_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of a row's image and mask."""
    return len(row["image"]["bytes"] or b"") + len(row["mask"]["bytes"] or b"")


def _row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        if group and (len(group) == ROW_GROUP_ROWS or size + num_bytes(row) > ROW_GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += num_bytes(row)
    if group:
        yield group


def _read(where: str) -> bytes:
    missing = "no such file; `segbatch labels import` makes a dataset"
    return storage.read_input(where, SourceError, missing)
