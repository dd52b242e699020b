"""Audit: rows in the manifest = rows in the results, each id once. Looks, and changes nothing.

An I/O error while looking is an error of its own and never taken for damage.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged, Incomplete
from segbatch.results.finish import unreferenced
from segbatch.results.log import Log, entry_uri, read_columns, read_whole
from segbatch.results.table import Table

if TYPE_CHECKING:
    from segbatch.results.runfolder import RunFolder

EXAMPLES = 10
READERS = 8  # each holds one file


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


def audit(run: RunFolder, *, deep: bool = False) -> Audit:
    """Count every committed row of ``run`` against its manifest, and prove the logs.

    ``deep`` reads every file and compares its SHA-256 with the one that was noted when it was
    written. Raises :class:`~segbatch.errors.Incomplete` if the storage failed while looking.
    """
    result = Audit(run.uri, run.status, run.info["manifest"]["rows"])
    try:
        rows, stats = run.log("rows"), run.log("stats")
        counts = np.zeros(result.images, np.uint32)
        if rows is not None:
            _count_rows(rows, counts, result, deep)
        for log in (rows, stats):
            if log is not None:
                result.damaged += _damaged_entries(log)
                strays = unreferenced(log.uri, log.files())
                result.uncommitted += [file.uri for file in strays]
        if run.finished and rows is not None:
            _compare_stats(rows, stats, result)
        if deep:
            files = run.info["manifest"]["files"]
            noted = {file["name"]: file["sha256"] for file in files}
            result.damaged += _changed(storage.join(run.uri, "manifest"), noted)
            if stats is not None and not stats.damaged:
                noted = {file["path"]: stats.sha256.get(file["path"], "") for file in stats.files()}
                result.damaged += _changed(stats.uri, noted)
    except OSError as error:
        raise Incomplete(f"audit stopped: {storage.one_line(error)}") from error
    missing, twice = np.flatnonzero(counts == 0), np.flatnonzero(counts > 1)
    result.missing, result.missing_ids = len(missing), missing[:EXAMPLES].tolist()
    result.twice, result.twice_ids = len(twice), twice[:EXAMPLES].tolist()
    result.damaged = sorted(set(result.damaged))
    return result


def _count_rows(log: Log, counts: npt.NDArray[np.uint32], result: Audit, deep: bool) -> None:
    def ids_of(file: dict[str, Any]) -> npt.NDArray[np.int64] | None:
        try:
            if not deep:
                table = read_columns(log.uri, file["path"], ["image_id"])
            else:
                uri = storage.join(log.uri, file["path"])
                data = read_whole(uri, log.sha256.get(file["path"], ""))
                if data is None:
                    return None
                table = pq.read_table(pa.BufferReader(data), columns=["image_id"])
        except Damaged:
            return None
        ids: npt.NDArray[np.int64] = table["image_id"].to_numpy()
        return ids

    files = log.files()
    with ThreadPoolExecutor(READERS) as threads:
        for file, ids in zip(files, threads.map(ids_of, files), strict=True):
            if ids is None or len(ids) != file["rows"]:
                result.damaged.append(storage.join(log.uri, file["path"]))
                continue
            result.rows += len(ids)
            known = (ids >= 0) & (ids < result.images)
            result.unknown += int((~known).sum())
            np.add.at(counts, ids[known], 1)


def _damaged_entries(log: Log) -> list[str]:
    """Entries of the log that are damaged or gone, and checkpoints that do not fit the others."""
    damaged = [entry_uri(log.uri, version) for version in log.damaged]
    if log.checkpoints and not damaged:  # not ours; but readers go by them
        try:
            table = Table.open(log.uri, log.version)
            fits = table is not None and _names(table.files()) == _names(log.files())
        except Damaged:
            fits = False
        return [] if fits else log.checkpoints
    return damaged


def _names(files: list[dict[str, Any]]) -> set[str]:
    return {file["path"] for file in files}


def _compare_stats(rows: Log, stats: Log | None, result: Audit) -> None:
    """A finished run's ``stats/`` must be made from the very version of ``rows/``."""
    if stats is not None and stats.damaged:
        return  # which files count is not known
    if stats is None or stats.entries[stats.version].note.get("rows") != rows.version:
        result.damaged.append(storage.join(result.run, "stats"))


def _changed(folder: str, noted: dict[str, str]) -> list[str]:
    """URIs of the files in ``folder`` whose SHA-256 is not the noted one."""
    return [
        uri
        for name, sha256 in noted.items()
        if read_whole(uri := storage.join(folder, name), sha256) is None
    ]
