"""Writes an import into a dataset's folder; the dataset changes with the last file only."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.errors import Incomplete, InputError, SourceError
from segbatch.labels.dataset import (
    CARD,
    CLASSES,
    FEW_ROWS,
    SHARD_BYTES,
    SHARD_PATH,
    SHARD_ROWS,
    Dataset,
    Shard,
    num_bytes,
    open_dataset,
    write_shard,
)

SKIPPED = "skipped.jsonl"
PROBE = ".preflight"
HIDDEN = re.compile(r"(.*/)?\..*")


class DatasetWriter:
    """Writes the shards of a new version of the dataset at ``uri``, then publishes it. ``base`` is
    the dataset to which images are added, ``None`` without ``append``.

    Raises :class:`~segbatch.errors.InputError` if there is a dataset that must not be changed, if
    the one to append to is missing, or if the folder holds other files.
    """

    def __init__(self, uri: str, *, append: bool, overwrite: bool) -> None:
        if append and overwrite:
            raise InputError("--append and --overwrite exclude each other")
        self.uri = storage.normalize(uri)
        if storage.is_local(self.uri) and "/../" in f"{self.uri}/":
            self.uri = os.path.realpath(self.uri)  # printed, and written into the card
        self._before = _dataset_at(self.uri)
        if self._before is None:
            if append:
                raise SourceError(f"{uri}: no labelled dataset to append to: leave out --append")
            _refuse_other_files(self.uri)
        elif not append and not overwrite:
            raise InputError(
                f"{uri}: is a labelled dataset already: add to it with --append, or replace it with"
                " --overwrite"
            )
        self.base = self._before if append else None
        self._rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._bytes: dict[str, int] = defaultdict(int)
        self._written: list[Shard] = []

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context in which rows are added and the dataset is published; if it fails, the shards
        that it wrote are deleted.

        Raises :class:`~segbatch.errors.InputError` if the folder cannot be written to, and
        :class:`~segbatch.errors.Incomplete` if that happens later on.
        """
        self._probe()
        try:
            yield
        except BaseException as error:
            before = self._before.shards if self._before is not None else ()
            paths = {shard.path for shard in self._written} - {shard.path for shard in before}
            with suppress(OSError):
                storage.delete(storage.join(self.uri, path) for path in paths)
            if isinstance(error, OSError):
                raise Incomplete(f"{self.uri}: cannot be written to: {error}") from error
            raise

    def _probe(self) -> None:
        probe = storage.join(self.uri, PROBE)
        try:
            storage.write_bytes(probe, b"")
            storage.delete([probe])
        except OSError as error:
            reason = str(error).replace(f"{probe}: ", "")
            raise InputError(f"{self.uri}: cannot be written to: {reason}") from error

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Add a row without ``split``; holds at most a shard's rows of each split."""
        size = num_bytes(row)
        if self._bytes[split] + size > SHARD_BYTES or len(self._rows[split]) == SHARD_ROWS:
            self._flush(split)
        self._rows[split].append(row)
        self._bytes[split] += size

    def finish(self, replaced: Mapping[str, Collection[int]]) -> list[Shard]:
        """Write the last shards, and those of the base that lose rows: ``replaced`` has image ids
        by the path of their shard. Returns the shards of the new dataset.
        """
        for split in list(self._rows):
            self._flush(split)
        added = list(self._written)
        kept = []
        for shard in self.base.shards if self.base is not None else ():
            ids = replaced.get(shard.path, ())
            rest = self._without(shard, ids) if ids else shard
            kept += [rest] if rest is not None else []
        return [*kept, *added]

    def publish(self, dataset: Dataset, card: str, skipped: bytes) -> None:
        """Make ``dataset`` the content of the folder. Raises ``OSError``, and
        :class:`~segbatch.errors.Incomplete` if another import changed the folder meanwhile.
        """
        if _facts(_dataset_at(self.uri)) != _facts(self._before):
            raise Incomplete(f"{self.uri}: another import changed it meanwhile")
        storage.write_bytes(storage.join(self.uri, SKIPPED), skipped)
        # A write that fails may still have taken effect: from here on no shard is deleted.
        self._written.clear()
        dataset.publish(card)

    def _flush(self, split: str) -> None:
        rows = self._rows.pop(split, [])
        self._bytes[split] = 0
        if rows:
            self._written.append(write_shard(self.uri, split, rows))

    def _without(self, shard: Shard, ids: Collection[int]) -> Shard | None:
        """Write the shard's other rows as a new shard; ``None`` if there are no others."""
        assert self.base is not None
        table = self.base.read_shard(shard)
        is_replaced = pc.is_in(table["image_id"], pa.array(sorted(ids), pa.int64()))
        rest = table.filter(pc.invert(is_replaced))
        if not len(rest):
            return None
        rows = (row for batch in rest.to_batches(FEW_ROWS) for row in batch.to_pylist())
        self._written.append(write_shard(self.uri, shard.split, rows))
        return self._written[-1]


def _facts(dataset: Dataset | None) -> Any:
    return dataset and dataset.to_json()


def _dataset_at(uri: str) -> Dataset | None:
    with storage.translate_errors("cannot read", InputError):
        return open_dataset(uri) if storage.exists(storage.join(uri, CLASSES)) else None


def _refuse_other_files(uri: str) -> None:
    """Accept an empty folder, and what a killed import left behind. Raises
    :class:`~segbatch.errors.InputError` for any other file.
    """
    with storage.translate_errors("cannot list", InputError):
        paths = (file.uri.removeprefix(f"{uri}/") for file in storage.list_files(uri))
        ours = {SKIPPED, CARD} if storage.exists(storage.join(uri, SKIPPED)) else set()
        other = next((path for path in paths if not _is_left_behind(path, ours)), None)
    if other is not None:
        raise InputError(
            f"{uri}: holds other files ({other}) and no labelled dataset: choose an empty folder"
        )


def _is_left_behind(path: str, ours: Collection[str]) -> bool:
    return path in ours or bool(SHARD_PATH.fullmatch(path) or HIDDEN.fullmatch(path))
