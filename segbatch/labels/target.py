"""Target: the folder that an import writes to, which is what it was until all of it is written."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.console import Pace
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
from segbatch.labels.rows import Row, survey
from segbatch.labels.splits import Splits

# Known: the images that a dataset has already, and what happens to them when others are added.


FEW_ROWS = 16  # that are Python's at a time


class Known:
    """Images of ``dataset``, of which some are replaced by images that come in.

    An image that comes in takes the place of the one with its URI, else of one with the same
    content whose own URI does not come in: so the same import twice changes nothing. Raises
    :class:`~segbatch.errors.SourceError` for a damaged dataset.
    """

    def __init__(self, dataset: Dataset | None, incoming: Collection[str]) -> None:
        self._rows = list(_rows_of(dataset)) if dataset is not None else []
        self._by_uri = {row.uri: row for row in self._rows}
        self._by_content: dict[str, Row] = {}
        for row in self._rows:
            if row.uri not in incoming:
                self._by_content.setdefault(row.sha256, row)
        self._replaced: set[int] = set()

    def __contains__(self, uri: str) -> bool:
        return uri in self._by_uri

    @property
    def next_id(self) -> int:
        return max((row.image_id for row in self._rows), default=-1) + 1

    def replace(self, uri: str, sha256: str) -> Row | None:
        """The image that this one takes the place of; each only once."""
        row = self._by_uri.get(uri) or self._by_content.pop(sha256, None)
        if row is not None:
            self._replaced.add(row.image_id)
        return row

    @property
    def replaced(self) -> Mapping[str, Collection[int]]:
        """Image ids that were replaced, by shard."""
        ids = defaultdict(list)
        for row in self._rows:
            if row.image_id in self._replaced:
                ids[row.shard].append(row.image_id)
        return ids

    @property
    def remaining(self) -> Iterator[Row]:
        """What was not replaced."""
        return (row for row in self._rows if row.image_id not in self._replaced)

    def splits_of_groups(self, rules: Splits) -> dict[str, str]:
        """The split in which most images of each group are."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self._rows:
            group = rules.group_of(row.uri) or row.group
            if group is not None:
                counts[group][row.split] += 1
        return {group: splits.most_common(1)[0][0] for group, splits in counts.items()}


def contents_of(uri: str) -> dict[str, str]:
    """The SHA-256 of each image in the dataset in the folder ``uri``, in hex, by the image's URI.

    Reads all of it, a shard at a time. Raises as :func:`~segbatch.labels.dataset.open_dataset` and
    :meth:`~segbatch.labels.dataset.Dataset.read_shard`.
    """
    dataset = open_dataset(uri)
    return {
        row["uri"]: sha256(row["image"]["bytes"]).hexdigest()
        for shard in dataset.shards
        for batch in dataset.read_shard(shard, ["uri", "image"]).to_batches(FEW_ROWS)
        for row in batch.to_pylist()
    }


def _rows_of(dataset: Dataset) -> Iterator[Row]:
    def damaged(_: Shard, error: SourceError) -> None:
        raise error

    with Pace("dataset", sum(dataset.splits.values())) as pace:
        for rows in survey(dataset, decode=False, damaged=damaged):
            pace.add(len(rows))
            yield from rows


SKIPPED = "skipped.jsonl"


PROBE = ".preflight"


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
