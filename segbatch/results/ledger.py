"""Ledger: the driver's book of what is committed, one bit per image.

Files are entered as their accounts come in and committed in batches. A file that holds an id which
is committed or entered already is refused, so each id is committed exactly once, whatever was
retried, re-executed or written by a worker that outlived its driver.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch.results.log import read_columns
from segbatch.results.table import DataFile, Table, kind_of
from segbatch.results.write import Account

COMMIT_EVERY_S = 60.0


class Bits:
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
    """What one driver has committed and is about to commit to the table ``rows/``."""

    def __init__(self, table: Table, num_images: int, driver: str) -> None:
        self.table = table
        self.driver = driver
        self.taken = Bits(num_images)  # committed, or entered for the next commit
        self.kinds: Counter[str] = Counter()
        self.facts: dict[str, str] = {}  # noted with each commit of rows
        self._entered: list[DataFile] = []
        self._last_commit = time.monotonic()
        # A driver's first act. Its version is the epoch that begins the name of every file.
        self.epoch = table.commit(note={"driver": driver, "event": "driver"})
        self._read_committed()

    def _read_committed(self) -> None:
        files = self.table.files()
        with ThreadPoolExecutor(16) as threads:
            for file, ids in zip(files, threads.map(self._ids_of, files), strict=True):
                self._note(file["path"], ids)

    def _ids_of(self, file: dict[str, Any]) -> npt.NDArray[np.int64]:
        if file["last_id"] - file["first_id"] + 1 == file["rows"]:  # without a gap
            return np.arange(file["first_id"], file["last_id"] + 1, dtype=np.int64)
        column = read_columns(self.table.uri, file["path"], ["image_id"])["image_id"]
        ids: npt.NDArray[np.int64] = column.to_numpy()
        return ids

    def _note(self, name: str, ids: npt.NDArray[np.int64]) -> None:
        self.taken.add(ids)
        self.kinds[kind_of(name)] += len(ids)

    def remaining(self) -> int:
        """Images without a row."""
        return self.taken.size - self.taken.count()

    def enter(self, account: Account) -> bool:
        """Take a written file up for the next commit; ``False`` if it was refused."""
        if account.file is None:
            raise ValueError("an account without a file cannot be committed")
        ids = np.array(account.image_ids, np.int64)
        if self.taken.contains(ids).any() or len(np.unique(ids)) != len(ids):
            return False
        self._entered.append(account.file)
        self._note(account.file.name, ids)
        return True

    @property
    def commit_is_due(self) -> bool:
        return time.monotonic() - self._last_commit >= COMMIT_EVERY_S

    def commit(self) -> int:
        """Commit what was entered; returns the number of images. Raises ``Fenced``, ``OSError``."""
        self._last_commit = time.monotonic()
        images = sum(file.rows for file in self._entered)
        if self._entered:
            note = {"driver": self.driver, "event": "rows", **self.facts}
            self.table.commit(self._entered, note=note)
            self._entered = []
        return images
