"""A run's folder on storage: ``run.json``, its tables and its status. Read-only.

``run.json`` says what the run is and how far it got; ``rows/`` and ``stats/`` are its tables. Until
``run.json`` says ``complete`` only the table ``rows/`` tells what is committed; afterwards
``stats/`` holds the same rows without masks, sorted, in large files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from functools import cached_property
from typing import Any, Literal

from segbatch import storage
from segbatch.errors import Damaged, Incomplete, RunError
from segbatch.masks.classes import Classes
from segbatch.results.lease import alive, heartbeat_age_s, read_lease
from segbatch.results.log import Log
from segbatch.results.table import Table, kind_of

FORMAT = 2  # 1: without a checksum

# What is settled once, with the list of images; a copy of it stands in the first entry of the log.
FROZEN = (
    "format", "kind", "run_id", "created", "job", "identity", "model", "manifest", "software"
)  # fmt: skip

# running: a driver works on it, or died; interrupted: by a signal; incomplete: run it again;
# failed: too many failed images; complete: every image has its row, and stats/ is written.
Status = Literal["running", "interrupted", "incomplete", "failed", "complete"]


def read_info(uri: str) -> dict[str, Any] | None:
    """The content of ``run.json``; ``None`` if there is none.

    Raises :class:`~segbatch.errors.Damaged` if it is not what was written,
    :class:`~segbatch.errors.RunError` if it is not a run's, ``OSError`` if storage fails.
    """
    where = storage.join(uri, "run.json")
    try:
        data = storage.read_bytes(where)
    except FileNotFoundError:
        return None
    try:
        info = json.loads(data)
    except ValueError as error:
        raise Damaged(where, f"not valid JSON: {error}") from error
    if isinstance(info, dict) and "checksum" in info:
        del info["checksum"]
        if _rendered(info) != data:
            raise Damaged(where, "it does not fit its checksum")
    elif isinstance(info, dict) and info.get("format") == FORMAT:
        raise Damaged(where, "its checksum is gone")
    if not isinstance(info, dict) or "manifest" not in info or "identity" not in info:
        raise RunError(f"{uri}: its run.json is not one of segbatch's segment runs")
    if info.get("format") not in (1, FORMAT):
        raise RunError(
            f"{uri}: run.json has format {info.get('format')}, this version reads {FORMAT}"
        )
    return info


def write_info(uri: str, info: dict[str, Any]) -> None:
    """Replace ``run.json``, atomically."""
    whole = _rendered({**info, "format": FORMAT, "updated": time.time()})
    storage.write_bytes(storage.join(uri, "run.json"), whole)


def _rendered(info: dict[str, Any]) -> bytes:
    """The bytes of ``run.json``, with the checksum of all before it."""
    content = json.dumps(info, indent=2, ensure_ascii=False)
    checksum = hashlib.sha256(content.encode()).hexdigest()
    return json.dumps({**info, "checksum": checksum}, indent=2, ensure_ascii=False).encode()


def frozen_copy(info: dict[str, Any]) -> str:
    """What is settled of a run, as the log of ``rows/`` keeps it."""
    return json.dumps({key: info[key] for key in FROZEN if key in info}, ensure_ascii=False)


def open_folder(uri: str) -> RunFolder:
    """The run at ``uri``. Raises :class:`~segbatch.errors.RunError` if there is none."""
    uri = storage.normalize(uri)
    try:
        info = read_info(uri)
    except PermissionError as error:
        raise RunError(f"cannot read run {error}") from error
    except OSError as error:
        raise Incomplete(f"cannot read run {error}; ask again") from error
    if info is None:
        raise RunError(f"{uri}: no run here (no run.json in it)")
    return RunFolder(uri, info)


class RunFolder:
    """A run, as it was when it was opened; open it again to see how it went on."""

    def __init__(self, uri: str, info: dict[str, Any]) -> None:
        self.uri = uri
        self.info = info
        self.classes = Classes.from_json(info["model"]["classes"])

    def __repr__(self) -> str:
        return f"RunFolder({self.uri!r}, {self.status})"

    @property
    def name(self) -> str:
        return storage.name_of(self.uri)

    @property
    def status(self) -> Status:
        status: Status = self.info["status"]
        return status

    @property
    def finished(self) -> bool:
        """Whether ``stats/`` holds every row."""
        return self.status in ("complete", "failed")

    def table(self, name: Literal["rows", "stats"]) -> Table | None:
        """The newest version of one of the run's tables; ``None`` before there is one."""
        return Table.open(storage.join(self.uri, name))

    @cached_property
    def finished_stats(self) -> Table | None:
        """``stats/`` of a finished run, opened once; ``None`` before it is finished."""
        return self.table("stats") if self.finished else None

    def log(self, name: Literal["rows", "stats"]) -> Log | None:
        """The proved log of one of the tables; ``None`` before there is one."""
        noted = self.info.get("log", {}).get(name, {})
        return Log.read(storage.join(self.uri, name), noted)

    def summary(self) -> dict[str, Any]:
        """Where the run stands, from storage alone: rows by kind, pace, whether its driver lives.

        ``driver`` is ``None`` where nobody works on it; its ``alive`` where that cannot be told.
        ``rest_s`` is what the rest takes at this pace, in seconds; ``reason`` why the last start
        ended early.
        """
        table = self.table("rows")
        kinds: Counter[str] = Counter()
        for file in table.files() if table else []:
            kinds[kind_of(file["path"])] += file["rows"]
        total = self.info["manifest"]["rows"]
        remaining = total - kinds.total()
        lease = read_lease(self.uri)
        pace = self.info.get("images_per_second")
        starts = self.info.get("starts", [])
        return {
            "run": self.uri,
            "status": self.status,
            "reason": self.info.get("reason"),
            "images": total,
            "ok": kinds.pop("ok", 0),
            "failed": dict(sorted(kinds.items())),
            "remaining": remaining,
            "duplicates": self.info["manifest"]["duplicates"],
            "starts": len(starts),
            "pass": starts[-1].get("passes") if starts else None,
            "images_per_second": pace,
            "rest_s": round(remaining / pace) if pace and remaining else None,
            "driver": None if lease is None else _driver(lease),
            "submission": self.info.get("submission"),
            "model": self.info["model"]["uri"],
            "created": self.info["created"],
            "updated": self.info["updated"],
        }


def _driver(lease: dict[str, Any]) -> dict[str, Any]:
    age_s = heartbeat_age_s(lease)
    return {
        "alive": alive(lease),
        **{key: lease.get(key) for key in ("host", "pid", "since", "heartbeat")},
        "heartbeat_age_s": None if age_s is None else round(age_s, 1),
    }
