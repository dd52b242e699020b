"""Audits a run: every image of the manifest must have exactly one row, in intact files. Read-only.

An I/O error during the audit is raised as such and never taken for damage.
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
from segbatch.errors import Damaged
from segbatch.results.finish import unreferenced
from segbatch.results.log import DeltaLog, TableFile, entry_uri, read_columns, read_verified
from segbatch.results.table import Table

if TYPE_CHECKING:
    from segbatch.results.runfolder import RunFolder

EXAMPLES = 10
READERS = 8  # each holds one file


@dataclass
class Audit:
    """The result of an audit. ``missing`` images are no damage while the run is not finished.

    ``twice`` counts images with several rows, ``unknown`` rows of no image of the manifest.
    ``damaged`` holds the URIs of damaged files, ``uncommitted`` those of files that no commit
    refers to.
    """

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
    """Compare the committed rows of ``run`` with its manifest, and verify the logs of its tables.

    ``deep`` also reads every file and compares its SHA-256 with the one noted when it was written.
    Raises :class:`~segbatch.errors.Incomplete` if storage fails during the audit.
    """
    result = Audit(run.uri, run.status, run.info.manifest.rows)
    rows_of_image = np.zeros(result.images, np.uint32)
    with storage.translate_errors("audit stopped:"):
        rows, stats = run.log("rows"), run.log("stats")
        if rows is not None:
            _count_rows(rows, rows_of_image, result, deep=deep)
        for log in (rows, stats):
            if log is not None:
                result.damaged += _damaged_entries(log)
                result.uncommitted += [file.uri for file in unreferenced(log.uri, log.files())]
        if run.finished and rows is not None and not _stats_fit(rows, stats):
            result.damaged.append(storage.join(run.uri, "stats"))
        if deep:
            noted = {file.name: file.sha256 for file in run.info.manifest.files}
            result.damaged += _changed(storage.join(run.uri, "manifest"), noted)
            if stats is not None and not stats.damaged:
                noted = {file.name: stats.sha256.get(file.name, "") for file in stats.files()}
                result.damaged += _changed(stats.uri, noted)
    missing, twice = np.flatnonzero(rows_of_image == 0), np.flatnonzero(rows_of_image > 1)
    result.missing, result.missing_ids = len(missing), missing[:EXAMPLES].tolist()
    result.twice, result.twice_ids = len(twice), twice[:EXAMPLES].tolist()
    result.damaged = sorted(set(result.damaged))
    return result


def _count_rows(
    log: DeltaLog, rows_of_image: npt.NDArray[np.uint32], result: Audit, *, deep: bool
) -> None:
    """Add the rows of the table to ``rows_of_image``, and what is wrong with them to ``result``."""
    files = log.files()
    with ThreadPoolExecutor(READERS) as threads:
        id_arrays = threads.map(lambda file: _ids_of(log, file, deep=deep), files)
        for file, ids in zip(files, id_arrays, strict=True):
            if ids is None or len(ids) != file.rows:
                result.damaged.append(storage.join(log.uri, file.name))
                continue
            result.rows += len(ids)
            known = (ids >= 0) & (ids < result.images)
            result.unknown += int((~known).sum())
            np.add.at(rows_of_image, ids[known], 1)


def _ids_of(log: DeltaLog, file: TableFile, *, deep: bool) -> npt.NDArray[np.int64] | None:
    """The ids in a file of ``rows/``; ``None`` if the file is damaged."""
    try:
        if deep:
            uri = storage.join(log.uri, file.name)
            data = read_verified(uri, log.sha256.get(file.name, ""))
            if data is None:
                return None
            table = pq.read_table(pa.BufferReader(data), columns=["image_id"])
        else:
            table = read_columns(log.uri, file.name, ["image_id"])
    except Damaged:
        return None
    ids: npt.NDArray[np.int64] = table["image_id"].to_numpy()
    return ids


def _damaged_entries(log: DeltaLog) -> list[str]:
    """Entries of the log that are damaged or gone, and checkpoints that contradict the entries."""
    damaged = [entry_uri(log.uri, version) for version in log.damaged]
    if log.checkpoints and not damaged:  # we write none, but readers use those of others
        try:
            table = Table.open(log.uri, log.version)
        except Damaged:
            return log.checkpoints
        names = {file.name for file in log.files()}
        if table is None or {file.name for file in table.files()} != names:
            return log.checkpoints
    return damaged


def _stats_fit(rows: DeltaLog, stats: DeltaLog | None) -> bool:
    """Whether a finished run's ``stats/`` was made from this version of ``rows/``."""
    if stats is None:
        return False
    if stats.damaged:
        return True  # reported as damaged entries; which files count is unknown
    made_from: object = stats.entries[stats.version].note.get("rows")
    return made_from == rows.version


def _changed(folder: str, noted: dict[str, str]) -> list[str]:
    """URIs of the files in ``folder`` whose SHA-256 is not the noted one."""
    uris = {storage.join(folder, name): sha256 for name, sha256 in noted.items()}
    return [uri for uri, sha256 in uris.items() if read_verified(uri, sha256) is None]
