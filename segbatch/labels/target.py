"""Target: the folder that an import writes to, which is what it was until all of it is written."""

from __future__ import annotations

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
FEW_ROWS = 16  # that are Python's at a time
HIDDEN = re.compile(r"(.*/)?\..*")


class Target:
    """A dataset to be. ``kept`` is the dataset that images are added to, if there is one.

    Raises :class:`~segbatch.errors.InputError` where a dataset is and may not be touched, where
    one is missing, or where other files are in the way.
    """

    def __init__(self, uri: str, *, append: bool, overwrite: bool) -> None:
        if append and overwrite:
            raise InputError("--append and --overwrite exclude each other")
        self.uri = storage.normalize(uri)
        self._there = _dataset_at(self.uri)
        if self._there is None:
            if append:
                raise SourceError(f"{uri}: no labelled dataset to append to: leave out --append")
            _refuse_other_files(self.uri)
        elif not append and not overwrite:
            raise InputError(
                f"{uri}: is a labelled dataset already: add to it with --append, or make it anew"
                " with --overwrite"
            )
        self.kept = self._there if append else None
        self._rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._bytes: dict[str, int] = defaultdict(int)
        self._written: list[Shard] = []

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, rows are added and the dataset is published; what goes wrong leaves nothing.

        Raises :class:`~segbatch.errors.InputError` where the folder cannot be written to, and
        :class:`~segbatch.errors.Incomplete` where that is so later on.
        """
        self._probe()
        try:
            yield
        except BaseException as error:
            before = self._there.shards if self._there is not None else ()
            paths = {shard.path for shard in self._written} - {shard.path for shard in before}
            with suppress(OSError):
                storage.delete(storage.join(self.uri, path) for path in paths)
            if isinstance(error, OSError):
                raise Incomplete(f"{self.uri}: cannot be written to: {error}") from error
            raise

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """A row without ``split``; holds at most a shard's rows of each split."""
        size = num_bytes(row)
        if self._bytes[split] + size > SHARD_BYTES or len(self._rows[split]) == SHARD_ROWS:
            self._flush(split)
        self._rows[split].append(row)
        self._bytes[split] += size

    def finish(self, replaced: Mapping[str, Collection[int]]) -> list[Shard]:
        """All shards: those of the dataset before, without the image ids that were ``replaced``,
        by shard, and the new ones.
        """
        for split in list(self._rows):
            self._flush(split)
        added = list(self._written)
        kept = []
        for shard in self.kept.shards if self.kept is not None else ():
            ids = replaced.get(shard.path, ())
            rest = self._without(shard, ids) if ids else shard
            kept += [rest] if rest is not None else []
        return [*kept, *added]

    def publish(self, dataset: Dataset, card: str, skipped: bytes) -> None:
        """Make ``dataset`` what the folder holds. Raises ``OSError``, and
        :class:`~segbatch.errors.Incomplete` if another import was faster.
        """
        now = _dataset_at(self.uri)
        if _facts(now) != _facts(self._there):
            raise Incomplete(f"{self.uri}: another import changed it meanwhile")
        storage.write_bytes(storage.join(self.uri, SKIPPED), skipped)
        # A write that fails may have been done all the same: from here on nothing is taken back.
        self._written.clear()
        dataset.publish(card)

    def _probe(self) -> None:
        probe = storage.join(self.uri, PROBE)
        try:
            storage.write_bytes(probe, b"")
            storage.delete([probe])
        except OSError as error:
            reason = str(error).replace(f"{probe}: ", "")
            raise InputError(f"{self.uri}: cannot be written to: {reason}") from error

    def _flush(self, split: str) -> None:
        rows = self._rows.pop(split, [])
        self._bytes[split] = 0
        if rows:
            self._written.append(write_shard(self.uri, split, rows))

    def _without(self, shard: Shard, ids: Collection[int]) -> Shard | None:
        """The shard's other rows, as a new shard; ``None`` if there are none."""
        assert self.kept is not None
        table = self.kept.read_shard(shard)
        gone = pc.is_in(table["image_id"], pa.array(sorted(ids), pa.int64()))
        rest = table.filter(pc.invert(gone))
        if not len(rest):
            return None
        rows = (row for batch in rest.to_batches(FEW_ROWS) for row in batch.to_pylist())
        self._written.append(write_shard(self.uri, shard.split, rows))
        return self._written[-1]


def _facts(dataset: Dataset | None) -> Any:
    return dataset and dataset.to_json()


def _dataset_at(uri: str) -> Dataset | None:
    try:
        return open_dataset(uri) if storage.exists(storage.join(uri, CLASSES)) else None
    except PermissionError as error:
        raise InputError(f"{error}") from error
    except OSError as error:
        raise Incomplete(f"{error}") from error


def _refuse_other_files(uri: str) -> None:
    """A dataset goes into an empty folder, or over what a killed import left behind."""
    try:
        paths = (file.uri.removeprefix(f"{uri}/") for file in storage.list_files(uri))
        ours = {SKIPPED, CARD} if storage.exists(storage.join(uri, SKIPPED)) else set()
        other = next((path for path in paths if not _is_left_behind(path, ours)), None)
    except FileNotFoundError as error:
        raise InputError(f"{error}") from error
    except PermissionError as error:
        raise InputError(f"{error}") from error
    except OSError as error:
        raise Incomplete(f"{error}") from error
    if other is not None:
        raise InputError(
            f"{uri}: holds other files ({other}) and no labelled dataset: choose an empty folder"
        )


def _is_left_behind(path: str, ours: Collection[str]) -> bool:
    return path in ours or bool(SHARD_PATH.fullmatch(path) or HIDDEN.fullmatch(path))
