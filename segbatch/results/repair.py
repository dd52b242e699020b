"""Repair: what ``audit --deep`` finds damaged is moved away, and its images are done again.

Everything is looked at before anything is changed. Afterwards the run is one that is not finished:
an ordinary resume does the images without rows, and writes ``stats/`` anew. Killed half-way, it
begins again.
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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import RunError
from segbatch.results.audit import audit
from segbatch.results.log import Log, entry_uri, read_columns
from segbatch.results.runfolder import RunFolder, frozen_copy, write_info
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.results.table import Table

READERS = 16


def quarantine(run_uri: str, uri: str) -> None:
    """Move a file to ``quarantine/``, under its path in the run."""
    data = storage.read_bytes(uri)
    place = storage.join(run_uri, "quarantine", uri.removeprefix(f"{run_uri}/"))
    if storage.exists(place) and storage.read_bytes(place) != data:
        place = f"{place}.{hashlib.sha256(data).hexdigest()[:8]}"  # it was damaged before, too
    storage.write_bytes(place, data)
    storage.delete([uri])


def recall(uri: str) -> dict[str, Any] | None:
    """What ``run.json`` said at first, from the copy of it in the log of ``rows/``.

    ``None`` if there is no table. Raises :class:`~segbatch.errors.RunError` if the log does not
    hold it, ``OSError``.
    """
    log = Log.read(storage.join(uri, "rows"), {})
    if log is None:
        if storage.exists(entry_uri(storage.join(uri, "stats"), 0)):
            raise RunError(f"{uri}: its run.json and rows/ are gone: choose a new output")
        return None
    first = log.entries.get(0)
    if first is None or "run" not in first.note:
        raise RunError(
            f"{uri}: its run.json is damaged or gone, and there is no copy of it in"
            f" {entry_uri(log.uri, 0)}: which images there were cannot be proved any more: choose"
            " a new output"
        )
    info: dict[str, Any] = json.loads(first.note["run"])
    for entry in log.entries.values():
        if "precision" in entry.note:
            info["precision"] = entry.note["precision"]
    return {**info, "status": "running", "starts": []}


class Repair:
    """Of one run, by the driver that holds it. Making one looks, and changes nothing.

    Raises :class:`~segbatch.errors.RunError` for what cannot be mended, and
    :class:`~segbatch.errors.Incomplete` or ``OSError`` if storage fails, which is no damage.
    """

    def __init__(self, run: RunFolder, driver: str, say: Callable[[str], None]) -> None:
        self.run = run
        self.driver = driver
        self.say = say
        self.found = audit(run, deep=True)
        self.log = run.log("rows")
        self.wrong = self._wrong_files()
        self.manifest = self._rebuilt_manifest()

    @property
    def needed(self) -> bool:
        return self.found.exit_code == 1

    def do(self, schema: Callable[[], pa.Schema]) -> None:
        """Mend it. ``schema`` gives that of ``rows/``, should its log have to begin anew."""
        uri, info = self.run.uri, self.run.info
        info["status"] = "running"  # readers go by the tables now, and the finish is done again
        info.pop("log", None)
        write_info(uri, info)
        for damaged in self.found.damaged:
            path = damaged.removeprefix(f"{uri}/")
            if path == "stats":
                self.say("stats: does not fit rows; written again")
            elif storage.exists(damaged):
                quarantine(uri, damaged)
                self.say(f"{path}: is damaged; moved to quarantine/{path}")
            else:
                self.say(f"{path}: is gone")
        self._write_manifest()
        proofs = self._replace_entries(schema)
        if proofs or self.wrong:
            table = Table.open(storage.join(uri, "rows"))
            if table is None:
                raise RuntimeError("a log that was mended has a table")
            note = {"driver": self.driver, "event": "repair", "log": proofs}
            table.commit(remove=self.wrong, note=note)
        if any(path.startswith(f"{uri}/stats") for path in self.found.damaged):
            files = list(storage.list_files(storage.join(uri, "stats")))
            storage.delete(file.uri for file in reversed(files))  # of the log, the newest first

    # --------------------------------------------------------------------------------- rows

    def _wrong_files(self) -> list[dict[str, Any]]:
        """Files of ``rows/`` that the table should not hold: damaged ones, and of files with an id
        in common the older: it came back with the entry of the log that had removed it.
        """
        if self.log is None:
            return []
        damaged = set(self._damaged_in("rows"))
        files = self.log.files()
        wrong = [file for file in files if file["path"] in damaged]
        if self.found.twice or self.found.unknown:
            seen = np.zeros(self.found.images, bool)
            good = [file for file in files if file["path"] not in damaged]
            for file in sorted(good, key=lambda file: file["added"], reverse=True):
                column = read_columns(self.log.uri, file["path"], ["image_id"])["image_id"]
                ids = column.to_numpy()
                if ids.max() >= len(seen) or seen[ids].any():
                    wrong.append(file)
                else:
                    seen[ids] = True
        return wrong

    def _replace_entries(self, schema: Callable[[], pa.Schema]) -> dict[str, str]:
        """Put entries without files in the places of damaged ones; version → SHA-256 of each.

        What such an entry had added is done again. What it had removed comes back, and is the
        older file of two.
        """
        proofs: dict[str, str] = {}
        if self.log is None:
            return proofs
        for version in self.log.damaged:
            data = self._first_entry(schema()) if version == 0 else self._empty_entry()
            storage.write_bytes(entry_uri(self.log.uri, version), data)
            proofs[str(version)] = hashlib.sha256(data).hexdigest()
        return proofs

    def _empty_entry(self) -> bytes:
        about = {
            "timestamp": int(time.time() * 1000),
            "operation": "WRITE",
            "operationParameters": {},
            "commit_id": uuid.uuid4().hex,
            "driver": self.driver,
            "event": "repair",
        }
        return json.dumps({"commitInfo": about}).encode()

    def _first_entry(self, schema: pa.Schema) -> bytes:
        with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
            Table.create(folder, schema, note={"run": frozen_copy(self.run.info)})
            return storage.read_bytes(entry_uri(folder, 0))

    # ----------------------------------------------------------------------------- manifest

    def _rebuilt_manifest(self) -> dict[str, bytes]:
        """Damaged files of the manifest, made anew from the rows of their images."""
        damaged = set(self._damaged_in("manifest"))
        rebuilt = {}
        for file in self.run.info["manifest"]["files"]:
            if file["name"] in damaged:
                images = self._images(file["first_id"], file["first_id"] + file["rows"])
                if images is None:
                    raise RunError(
                        f"{self.run.uri}/manifest/{file['name']}: is damaged, and not every image"
                        " in it has a row yet: which they are cannot be proved any more: choose a"
                        " new output"
                    )
                sink = io.BytesIO()
                pq.write_table(images, sink, compression="zstd", row_group_size=65_536)
                rebuilt[file["name"]] = sink.getvalue()
        return rebuilt

    def _images(self, first: int, end: int) -> pa.Table | None:
        """The manifest's columns of ids ``first`` to ``end`` - 1; ``None`` if one has no row."""
        if self.log is None:
            return None
        folder, wrong = self.log.uri, {file["path"] for file in self.wrong}
        names = [
            file["path"]
            for file in self.log.files()
            if file["path"] not in wrong and file["first_id"] < end and file["last_id"] >= first
        ]
        if not names:
            return None
        filesystem, path = storage.arrow_filesystem(storage.join(folder, names[0]))
        every = pq.read_schema(path, filesystem=filesystem)
        ours = RESERVED_COLUMNS - {"image_id", "uri"}
        columns = [name for name in every.names if name not in ours]
        with ThreadPoolExecutor(READERS) as threads:
            parts = threads.map(lambda name: read_columns(folder, name, columns), names)
            images = pa.concat_tables(parts)
        ids = images["image_id"]
        images = images.filter(pc.and_(pc.greater_equal(ids, first), pc.less(ids, end)))
        images = images.sort_by("image_id")
        whole = np.array_equal(images["image_id"].to_numpy(), np.arange(first, end))
        return images if whole else None

    def _write_manifest(self) -> None:
        info = self.run.info
        for file in info["manifest"]["files"]:
            if (data := self.manifest.get(file["name"])) is not None:
                storage.write_bytes(storage.join(self.run.uri, "manifest", file["name"]), data)
                file |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                self.say(f"manifest/{file['name']}: made again from the rows")
        write_info(self.run.uri, info)

    def _damaged_in(self, folder: str) -> list[str]:
        """Paths of damaged files, relative to a folder of the run."""
        inside = f"{storage.join(self.run.uri, folder)}/"
        return [u.removeprefix(inside) for u in self.found.damaged if u.startswith(inside)]
