"""Repairs a run: moves damaged files away, so that an ordinary resume does their images again.

First :func:`plan_repair` reads everything and changes nothing; then :func:`apply_repair` makes the
changes. The run is unfinished afterwards: resuming it does the images that have no row, and writes
``stats/`` once more. A repair that was killed is simply started again.

Damaged entries of a Delta log are replaced here by hand. ``DeltaTable.repair`` cannot do it: it
opens no log that has a damaged or missing entry, and it only removes files that are missing, not
those with changed bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import RunError
from segbatch.results.audit import Audit, audit
from segbatch.results.log import DeltaLog, TableFile, entry_uri, read_columns
from segbatch.results.runfolder import RunFolder
from segbatch.results.runinfo import RunInfo, parse_info, write_info
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.results.table import Table

READERS = 16


@dataclass(frozen=True)
class RepairPlan:
    """What is damaged in a run, and how to repair it.

    ``remove`` holds the files that ``rows/`` must no longer hold, ``manifest`` the new content of
    damaged files of the manifest, by name.
    """

    run: RunFolder
    damage: Audit
    log: DeltaLog | None  # of rows/
    remove: list[TableFile]
    manifest: dict[str, bytes]

    @property
    def needed(self) -> bool:
        return self.damage.exit_code == 1


def recover_info(uri: str) -> RunInfo | None:
    """The first content of a lost ``run.json``, from the newest copy in the log of ``rows/``.

    ``None`` if there is no table. Raises :class:`~segbatch.errors.RunError` if the log does not
    hold it, ``OSError``.
    """
    log = DeltaLog.read(storage.join(uri, "rows"), {})
    if log is None:
        if storage.exists(entry_uri(storage.join(uri, "stats"), 0)):
            raise RunError(f"{uri}: its run.json and rows/ are gone: choose a new output")
        return None
    copies = [entry.note["run"] for entry in log.entries.values() if "run" in entry.note]
    if not copies:
        raise RunError(
            f"{uri}: its run.json is damaged or gone, and there is no copy of it in"
            f" {entry_uri(log.uri, 0)}: which images there were cannot be proved any more: choose"
            " a new output"
        )
    # The newest copy: an extended run has more images than the first one lists.
    info = parse_info(uri, {**json.loads(copies[-1]), "status": "running", "starts": []})
    if any(file.last_id >= info.manifest.rows for file in log.files()):
        raise RunError(
            f"{uri}: its run.json and the newest copies of it in {log.uri} are damaged: which"
            " images were added cannot be proved any more: choose a new output"
        )
    for entry in log.entries.values():
        if "precision" in entry.note:
            info.precision = entry.note["precision"]
            info.engine = entry.note.get("engine")
            info.quantized = entry.note.get("quantized")
    return info


def plan_repair(run: RunFolder) -> RepairPlan:
    """Find what is damaged in ``run``, and how to repair it; read-only.

    Raises :class:`~segbatch.errors.RunError` for what cannot be repaired, and
    :class:`~segbatch.errors.Incomplete` or ``OSError`` if storage fails, which is not damage.
    """
    damage = audit(run, deep=True)
    log = run.log("rows")
    remove = [] if log is None else _files_to_remove(log, run, damage)
    return RepairPlan(run, damage, log, remove, _rebuild_manifest(run, damage, log, remove))


def apply_repair(
    plan: RepairPlan,
    driver: str,
    schema: Callable[[], pa.Schema],
    say: Callable[[str], None],
) -> None:
    """Make the changes of ``plan``, as the driver that holds the run.

    ``schema`` returns the schema of ``rows/``; it is called if the first entry of the log is lost.
    """
    uri, info = plan.run.uri, plan.run.info
    info.status = "running"  # readers now use rows/, and the run is finished once more
    info.log = {}
    write_info(uri, info)
    for damaged in plan.damage.damaged:
        path = damaged.removeprefix(f"{uri}/")
        if path == "stats":
            say("stats: does not fit rows; written again")
        elif storage.exists(damaged):
            quarantine(uri, damaged)
            say(f"{path}: is damaged; moved to quarantine/{path}")
        else:
            say(f"{path}: is gone")
    for file in info.manifest.files:
        if (data := plan.manifest.get(file.name)) is not None:
            storage.write_bytes(storage.join(uri, "manifest", file.name), data)
            file.sha256, file.size = hashlib.sha256(data).hexdigest(), len(data)
            say(f"manifest/{file.name}: rebuilt from the rows")
    write_info(uri, info)
    checksums = {} if plan.log is None else _replace_entries(plan.log, info, driver, schema)
    if checksums or plan.remove:
        table = Table.open(storage.join(uri, "rows"))
        if table is None:
            raise RuntimeError("rows/ has a log and is not a table")
        note = {"driver": driver, "event": "repair", "log": checksums}
        table.commit(remove=plan.remove, note=note)
    if any(path.startswith(f"{uri}/stats") for path in plan.damage.damaged):
        files = list(storage.list_files(storage.join(uri, "stats")))
        storage.delete(file.uri for file in reversed(files))  # the newest log entries first


def quarantine(run_uri: str, uri: str) -> None:
    """Move a file to ``quarantine/``, under its path in the run."""
    data = storage.read_bytes(uri)
    place = storage.join(run_uri, "quarantine", uri.removeprefix(f"{run_uri}/"))
    if storage.exists(place) and storage.read_bytes(place) != data:
        place = f"{place}.{hashlib.sha256(data).hexdigest()[:8]}"  # it was damaged before, too
    storage.write_bytes(place, data)
    storage.delete([uri])


def _files_to_remove(log: DeltaLog, run: RunFolder, damage: Audit) -> list[TableFile]:
    """Damaged files of ``rows/``, and the older ones of files that have an id in common.

    Such an older file came back because the entry that had removed it is damaged.
    """
    damaged = _damaged_names(run, damage, "rows")
    files = log.files()
    remove = [file for file in files if file.name in damaged]
    if damage.twice or damage.unknown:
        intact = [file for file in files if file.name not in damaged]
        seen = np.zeros(damage.images, bool)
        for file in sorted(intact, key=lambda file: log.added_in[file.name], reverse=True):
            ids = read_columns(log.uri, file.name, ["image_id"])["image_id"].to_numpy()
            if ids.max() >= len(seen) or seen[ids].any():
                remove.append(file)
            else:
                seen[ids] = True
    return remove


def _rebuild_manifest(
    run: RunFolder, damage: Audit, log: DeltaLog | None, remove: list[TableFile]
) -> dict[str, bytes]:
    """Damaged files of the manifest, by name, rebuilt from the rows of their images."""
    damaged = _damaged_names(run, damage, "manifest")
    rebuilt = {}
    for file in run.info.manifest.files:
        if file.name in damaged:
            first, end = file.first_id, file.end_id
            images = None if log is None else _images(log, remove, first, end)
            if images is None:
                raise RunError(
                    f"{run.uri}/manifest/{file.name}: is damaged, and not every image in it has a"
                    " row yet: which they are cannot be proved any more: choose a new output"
                )
            sink = io.BytesIO()
            pq.write_table(images, sink, compression="zstd", row_group_size=65_536)
            rebuilt[file.name] = sink.getvalue()
    return rebuilt


def _images(log: DeltaLog, remove: list[TableFile], first: int, end: int) -> pa.Table | None:
    """The manifest's columns of ids ``first`` to ``end`` - 1; ``None`` if one has no row."""
    removed = set(remove)
    names = [
        file.name
        for file in log.files()
        if file not in removed and file.first_id < end and file.last_id >= first
    ]
    if not names:
        return None
    filesystem, path = storage.arrow_filesystem(storage.join(log.uri, names[0]))
    ours = RESERVED_COLUMNS - {"image_id", "uri", "frame", "time_s"}  # the manifest has these
    columns = [n for n in pq.read_schema(path, filesystem=filesystem).names if n not in ours]
    with ThreadPoolExecutor(READERS) as threads:
        parts = threads.map(lambda name: read_columns(log.uri, name, columns), names)
        images = pa.concat_tables(parts)
    ids = images["image_id"]
    images = images.filter(pc.and_(pc.greater_equal(ids, first), pc.less(ids, end)))
    images = images.sort_by("image_id")
    whole = np.array_equal(images["image_id"].to_numpy(), np.arange(first, end))
    return images if whole else None


def _replace_entries(
    log: DeltaLog, info: RunInfo, driver: str, schema: Callable[[], pa.Schema]
) -> dict[str, str]:
    """Replace damaged entries by entries without files; returns version → SHA-256 of each.

    Images in files that such an entry had added are done again. Files that it had removed come
    back; :func:`_files_to_remove` removes them again.
    """
    checksums: dict[str, str] = {}
    for version in log.damaged:
        data = _first_entry(info, schema()) if version == 0 else _empty_entry(driver)
        storage.write_bytes(entry_uri(log.uri, version), data)
        checksums[str(version)] = hashlib.sha256(data).hexdigest()
    return checksums


def _empty_entry(driver: str) -> bytes:
    commit_info = {
        "timestamp": int(time.time() * 1000),
        "operation": "WRITE",
        "operationParameters": {},
        "commit_id": uuid.uuid4().hex,
        "driver": driver,
        "event": "repair",
    }
    return json.dumps({"commitInfo": commit_info}).encode()


def _first_entry(info: RunInfo, schema: pa.Schema) -> bytes:
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        Table.create(folder, schema, note={"run": info.frozen_copy()})
        return storage.read_bytes(entry_uri(folder, 0))


def _damaged_names(run: RunFolder, damage: Audit, folder: str) -> set[str]:
    """Names of damaged files, relative to a folder of the run."""
    inside = f"{storage.join(run.uri, folder)}/"
    return {uri.removeprefix(inside) for uri in damage.damaged if uri.startswith(inside)}
