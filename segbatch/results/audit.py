"""Audit: rows in the manifest = rows in the results, each id once. Looks, and changes nothing.

An I/O error while looking is an error of its own and never taken for damage.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Incomplete
from segbatch.results.finish import unreferenced
from segbatch.results.table import Table

if TYPE_CHECKING:
    from segbatch.results.run import Run

EXAMPLES = 10


@dataclass
class Audit:
    """What was counted. ``missing`` is no damage while the run is not finished."""

    run: str
    status: str
    images: int
    rows: int = 0
    missing: int = 0
    twice: int = 0
    unknown: int = 0
    damaged: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    missing_ids: list[int] = field(default_factory=list)
    twice_ids: list[int] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 clean; 1 something lost, twice or damaged; 3 not complete but otherwise clean."""
        if self.twice or self.unknown or self.damaged:
            return 1
        if not self.missing:
            return 0
        return 1 if self.status in ("complete", "failed") else 3

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def audit(run: Run, *, deep: bool = False) -> Audit:
    """Count every committed row of ``run`` against its manifest.

    ``deep`` reads every file and compares its SHA-256 with the one that its commit noted. Raises
    :class:`~segbatch.errors.Incomplete` if the storage failed while looking.
    """
    result = Audit(run.uri, run.status, run.info["manifest"]["rows"])
    try:
        rows, stats = run.table("rows"), run.table("stats")
        counts = np.zeros(result.images, np.uint32)
        if rows is not None:
            _count_rows(rows, counts, result)
        tables = [table for table in (rows, stats) if table is not None]
        result.uncommitted = [file.uri for table in tables for file in unreferenced(table)]
        if run.finished and rows is not None:
            _compare_stats(rows, stats, result)
        if deep:
            _compare_manifest(run, result)
            for table in tables:
                result.damaged += _damaged(table)
    except OSError as error:
        raise Incomplete(f"audit stopped: {error}") from error
    missing, twice = np.flatnonzero(counts == 0), np.flatnonzero(counts > 1)
    result.missing, result.missing_ids = len(missing), missing[:EXAMPLES].tolist()
    result.twice, result.twice_ids = len(twice), twice[:EXAMPLES].tolist()
    result.damaged = sorted(set(result.damaged))
    return result


def _count_rows(table: Table, counts: np.ndarray[Any, Any], result: Audit) -> None:
    def ids_of(file: dict[str, Any]) -> np.ndarray[Any, Any] | None:
        uri = storage.join(table.uri, file["path"])
        filesystem, path = storage.arrow_filesystem(uri)
        try:
            column = pq.read_table(path, columns=["image_id"], filesystem=filesystem)["image_id"]
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        except OSError:
            storage.read_bytes(uri)  # raises if it was the storage's fault; else the file is bad
            return None
        ids: np.ndarray[Any, Any] = column.to_numpy()
        return ids

    files = table.files()
    with ThreadPoolExecutor(16) as threads:
        for file, ids in zip(files, threads.map(ids_of, files), strict=True):
            if ids is None or len(ids) != file["rows"]:
                result.damaged.append(storage.join(table.uri, file["path"]))
                continue
            result.rows += len(ids)
            known = (ids >= 0) & (ids < result.images)
            result.unknown += int((~known).sum())
            np.add.at(counts, ids[known], 1)


def _compare_stats(rows: Table, stats: Table | None, result: Audit) -> None:
    """A finished run's ``stats/`` must be made from the very version of ``rows/``."""
    if stats is None or stats.notes()[0].get("rows") != rows.version:
        result.damaged.append(storage.join(result.run, "stats"))


def _compare_manifest(run: Run, result: Audit) -> None:
    for file in run.info["manifest"]["files"]:
        uri = storage.join(run.uri, "manifest", file["name"])
        if not _matches(uri, file["sha256"]):
            result.damaged.append(uri)


def _damaged(table: Table) -> list[str]:
    expected: dict[str, str] = {}
    for note in table.notes():
        expected |= note.get("sha256", {})
    names = [file["path"] for file in table.files()]
    uris = [storage.join(table.uri, name) for name in names]
    with ThreadPoolExecutor(16) as threads:
        matches = threads.map(_matches, uris, [expected.get(name, "") for name in names])
        return [uri for uri, good in zip(uris, matches, strict=True) if not good]


def _matches(uri: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(storage.read_bytes(uri)).hexdigest() == sha256
    except FileNotFoundError:
        return False
