"""Run: a run's folder on storage, as everybody but its own driver sees it.

``run.json`` says what the run is and how far it got; ``rows/`` and ``stats/`` are its tables. Until
``run.json`` says ``complete`` only the table ``rows/`` tells what is committed; afterwards
``stats/`` holds the same rows without masks, sorted, in large files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from segbatch import storage
from segbatch.errors import Damaged, Incomplete, RunError
from segbatch.masks.classes import Classes
from segbatch.results.lease import alive, heartbeat_age_s, read_lease
from segbatch.results.log import Log
from segbatch.results.table import Table, kind_of

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from segbatch.results.audit import Audit
    from segbatch.results.diff import Diff
    from segbatch.review.export.export import Exported

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


def open_run(uri: str) -> Run:
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
    return Run(uri, info)


def open_runs(uris: Sequence[str]) -> list[Run]:
    """The runs at ``uris``, each once; a glob names the folders with a ``run.json``, by key.

    Raises :class:`~segbatch.errors.RunError` if there is none at one of them.
    """
    return [open_run(uri) for uri in dict.fromkeys(found for uri in uris for found in _named(uri))]


def _named(uri: str) -> list[str]:
    """The URIs of the runs that ``uri`` names: its own, unless it is a glob and no run's."""
    uri = storage.normalize(uri)
    where = storage.join(uri, "run.json")
    if not any(character in uri for character in "*?["):
        return [uri]
    try:
        if storage.exists(where):
            return [uri]
        fs, path = storage.filesystem(where)
        # By level and not all below: a run has as many files as it likes.
        found = [storage.normalize(fs.unstrip_protocol(name)) for name in fs.glob(path)]
    except FileNotFoundError:  # the bucket
        found = []
    except PermissionError as error:
        raise RunError(f"cannot look for runs {error}") from error
    except OSError as error:
        raise Incomplete(f"cannot look for runs {error}; ask again") from error
    if not found:
        raise RunError(f"{uri}: no run matches (no folder with a run.json in it)")
    return sorted(name.removesuffix("/run.json") for name in found)


class Run:
    """A run, as it was when it was opened; open it again to see how it went on."""

    def __init__(self, uri: str, info: dict[str, Any]) -> None:
        self.uri = uri
        self.info = info
        self.classes = Classes.from_json(info["model"]["classes"])

    def __repr__(self) -> str:
        return f"Run({self.uri!r}, {self.status})"

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

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the views ``images``, ``masks``, ``wide``, ``classes``,
        ``failures`` and ``runs``. Raises :class:`~segbatch.errors.InputError` for wrong SQL.
        """
        from segbatch.results.query import sql

        return sql([self], query)

    def to_pandas(self, query: str = "SELECT * FROM wide") -> pd.DataFrame:
        """The result of :meth:`sql` as a data frame; the flat view ``wide`` unless told."""
        frame: pd.DataFrame = self.sql(query).df()
        return frame

    def mask(self, image_id: int) -> npt.NDArray[np.uint8] | None:
        """The label map of one image, ``(mask_height, mask_width)`` uint8 class ids.

        ``None`` where the image failed or no masks are stored. Raises
        :class:`~segbatch.errors.RunError` for an id that has no row, and for a damaged mask.
        """
        from segbatch.results.lookup import label_map

        return label_map(self, image_id)

    def audit(self, *, deep: bool = False) -> Audit:
        """Count the rows against the manifest; ``deep`` compares every file's SHA-256 too."""
        from segbatch.results.audit import audit

        return audit(self, deep=deep)

    def diff(self, other: Run) -> Diff:
        """What changed from this run to ``other``, another one over the same images: coverages,
        pixels of another class, and which images changed most.
        """
        from segbatch.results.diff import diff

        return diff(self, other)

    def report(
        self,
        path: str,
        *,
        by: str | None = None,
        against: Run | None = None,
        prices: str | None = None,
    ) -> int:
        """Write one page to look at, to any URI: distributions, failures, images; its bytes.

        ``by`` is a column of the user's to group by, ``against`` a run over the same images,
        ``prices`` a table of prices other than ours.
        """
        from segbatch.review.report.page import report

        return report(self, path, by=by, against=against, prices=prices)

    def export(
        self, folder: str, to: str, *, where: str | None = None, limit: int | None = None
    ) -> Exported:
        """Write images into a folder, any URI, as other tools read them: ``to`` is ``png``,
        ``overlay``, ``voc``, ``labelme``, ``coco`` or ``fiftyone``; or rows: ``csv``, ``parquet``.
        """
        from segbatch.review.export.export import export

        return export(self, folder, to, where=where, limit=limit)

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
