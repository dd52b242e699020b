"""The driver's record of which images are committed, one bit per image.

This is the first half of the step *commit*: the ledger decides what :class:`.Table` commits. The
driver enters each written file (:mod:`segbatch.results.write`) and commits the entered files in
batches. A file with an image that is already entered or committed is refused, so each image is
committed exactly once, however often tasks were retried or executed again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from segbatch.results.log import TableFile, read_columns
from segbatch.results.schema import OK
from segbatch.results.table import DataFile, Table, kind_in_name
from segbatch.results.write import Account

COMMIT_EVERY_S = 60.0


class IdSet:
    """A set of the ids 0 to ``size`` - 1, in ``size`` ÷ 8 bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bytes = np.zeros((size + 7) // 8, np.uint8)

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        np.bitwise_or.at(self._bytes, ids >> 3, (1 << (ids & 7)).astype(np.uint8))

    def contains(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        bits: npt.NDArray[np.uint8] = self._bytes[ids >> 3] >> (ids & 7).astype(np.uint8) & 1
        return bits.astype(bool)

    def missing(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids from ``start`` to ``stop`` - 1 that are not in the set."""
        ids = np.arange(start, stop, dtype=np.int64)
        return ids[~self.contains(ids)]

    def count(self) -> int:
        return int(np.bitwise_count(self._bytes).sum())


class Ledger:
    """What is committed to the table ``rows/``, and what this driver will commit next.

    ``taken`` holds the images that are committed or entered, ``kinds`` counts them by kind.
    ``facts`` are noted in each commit of rows, ``opening`` in the first commit of this driver.
    """

    def __init__(
        self, table: Table, num_images: int, driver: str, opening: Mapping[str, str] | None = None
    ) -> None:
        self.table = table
        self.driver = driver
        self.taken = IdSet(num_images)
        self.kinds: Counter[str] = Counter()
        self.facts: dict[str, str] = {}
        self._entered: list[DataFile] = []
        self._last_commit = time.monotonic()
        # A driver begins with an empty commit, which fences off older drivers. Its version is this
        # driver's epoch, with which the name of each of its files begins.
        self.epoch = table.commit(note={"driver": driver, "event": "driver", **(opening or {})})
        self._read_committed()

    def _read_committed(self) -> None:
        files = self.table.files()
        with ThreadPoolExecutor(16) as threads:
            for file, ids in zip(files, threads.map(self._ids_of, files), strict=True):
                self._take(file.name, ids)

    def _ids_of(self, file: TableFile) -> npt.NDArray[np.int64]:
        if file.last_id - file.first_id + 1 == file.rows:  # without a gap
            return np.arange(file.first_id, file.last_id + 1, dtype=np.int64)
        column = read_columns(self.table.uri, file.name, ["image_id"])["image_id"]
        ids: npt.NDArray[np.int64] = column.to_numpy()
        return ids

    def _take(self, name: str, ids: npt.NDArray[np.int64]) -> None:
        self.taken.add(ids)
        self.kinds[kind_in_name(name)] += len(ids)

    def remaining(self) -> int:
        """The number of images without a row."""
        return self.taken.size - self.taken.count()

    def committed_id(self) -> int | None:
        """An image with a committed row, one without an error if there is any."""
        files = self.table.files()
        good = (file for file in files if kind_in_name(file.name) == OK)
        file = next(good, files[0] if files else None)
        return None if file is None else file.first_id

    def enter(self, account: Account) -> bool:
        """Enter a written file for the next commit; ``False`` if it is refused."""
        if account.file is None:
            raise ValueError("an account without a file cannot be committed")
        ids = np.array(account.image_ids, np.int64)
        if self.taken.contains(ids).any() or len(np.unique(ids)) != len(ids):
            return False
        self._entered.append(account.file)
        self._take(account.file.name, ids)
        return True

    @property
    def commit_is_due(self) -> bool:
        return time.monotonic() - self._last_commit >= COMMIT_EVERY_S

    def commit(self) -> int:
        """Commit the entered files, and return the number of their images.

        Raises :class:`~segbatch.errors.Fenced`, ``OSError``; the files then stay entered.
        """
        self._last_commit = time.monotonic()
        images = sum(file.rows for file in self._entered)
        if self._entered:
            note = {"driver": self.driver, "event": "rows", **self.facts}
            self.table.commit(self._entered, note=note)
            self._entered = []
        return images
