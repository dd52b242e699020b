"""A run's folder on storage: ``run.json``, its tables and its status. Read-only.

``run.json`` says what the run is and how far it got; ``rows/`` and ``stats/`` are its tables. Until
``run.json`` says ``complete`` only the table ``rows/`` tells what is committed; afterwards
``stats/`` holds the same rows without masks, sorted, in large files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from segbatch import storage
from segbatch.errors import RunError
from segbatch.images.place import Part
from segbatch.masks.classes import Classes
from segbatch.results.lease import heartbeat_age_s, holder_is_alive, read_lease
from segbatch.results.log import DeltaLog
from segbatch.results.runinfo import RunInfo, Status, read_info
from segbatch.results.table import Table, kind_in_name

DRIVER_GONE = "its driver is gone; run the same command to resume"


def open_folder(uri: str) -> RunFolder:
    """The run at ``uri``. Raises :class:`~segbatch.errors.RunError` if there is none."""
    uri = storage.normalize(uri)
    with storage.translate_errors("cannot read run", RunError):
        info = read_info(uri)
    if info is None:
        raise RunError(f"{uri}: no run here (no run.json in it)")
    return RunFolder(uri, info)


class RunFolder:
    """A run as it was when it was opened; open it again to see its progress."""

    def __init__(self, uri: str, info: RunInfo) -> None:
        self.uri = uri
        self.info = info
        self.classes = Classes.from_json(info.model.classes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r}, {self.info.status})"

    @property
    def name(self) -> str:
        return storage.name_of(self.uri)

    @cached_property
    def driver(self) -> dict[str, Any] | None:
        """The driver that holds the run, by its lease; ``None`` if there is none.

        ``alive`` is ``None`` if that cannot be known. Raises ``OSError``.
        """
        lease = read_lease(self.uri)
        if lease is None:
            return None
        age_s = heartbeat_age_s(lease)
        return {
            "alive": holder_is_alive(lease),
            **{key: lease.get(key) for key in ("host", "pid", "since", "heartbeat")},
            "heartbeat_age_s": None if age_s is None else round(age_s, 1),
        }

    @property
    def status(self) -> Status:
        """What ``run.json`` says, but ``interrupted`` for a run whose driver was killed."""
        return "interrupted" if self._is_orphaned else self.info.status

    @property
    def _is_orphaned(self) -> bool:
        is_running = self.info.status == "running"
        return is_running and (self.driver is None or self.driver["alive"] is False)

    @property
    def finished(self) -> bool:
        """Whether ``stats/`` holds every row."""
        return self.info.is_finished

    def parts(self, images: Sequence[tuple[int, str]]) -> list[Part]:
        """Images, given as ``(image_id, uri)``, with their places if they are parts of objects.

        Raises ``OSError``.
        """
        from segbatch.images.manifest import find_parts  # imports PyAV and OpenCV: that takes time

        folder = storage.join(self.uri, "manifest")
        return find_parts(folder, self.info.manifest.files, images)

    def table(self, name: Literal["rows", "stats"]) -> Table | None:
        """The newest version of one of the run's tables; ``None`` before there is one."""
        return Table.open(storage.join(self.uri, name))

    @cached_property
    def finished_stats(self) -> Table | None:
        """``stats/`` of a finished run, opened once; ``None`` before it is finished."""
        return self.table("stats") if self.finished else None

    def log(self, name: Literal["rows", "stats"]) -> DeltaLog | None:
        """The proved log of one of the tables; ``None`` before there is one."""
        noted = self.info.log.get(name, {})
        return DeltaLog.read(storage.join(self.uri, name), noted)

    def summary(self) -> dict[str, Any]:
        """The run's progress, read from storage alone: rows by kind, pace, state of its driver.

        ``rest_s``: seconds for the remaining images at the present pace. ``reason``: why
        the last start ended early.
        """
        table = self.table("rows")
        kinds: Counter[str] = Counter()
        for file in table.files() if table else []:
            kinds[kind_in_name(file.name)] += file.rows
        info = self.info
        remaining = info.manifest.rows - kinds.total()
        pace = info.images_per_second
        return {
            "run": self.uri,
            "status": self.status,
            "reason": DRIVER_GONE if self._is_orphaned else info.reason,
            "images": info.manifest.rows,
            "ok": kinds.pop("ok", 0),
            "failed": dict(sorted(kinds.items())),
            "remaining": remaining,
            "duplicates": info.manifest.duplicates,
            "starts": len(info.starts),
            "pass": info.starts[-1].passes if info.starts else None,
            "images_per_second": pace,
            "rest_s": round(remaining / pace) if pace and remaining else None,
            "driver": self.driver,
            "submission": info.submission,
            "model": info.model.uri,
            "created": info.created,
            "updated": info.updated,
        }
