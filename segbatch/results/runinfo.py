"""``run.json``: what a run is, how far it is, and what each of its starts took.

The file carries a format number and a SHA-256 of its own content. Keys that this version does not
know are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segbatch import storage
from segbatch.config.validation import explain
from segbatch.errors import Damaged, RunError
from segbatch.images.manifestfile import ManifestFile

FORMAT = 2  # 1: without a checksum

# Keys that change only when the list of images is extended. The first entry of the log of rows/
# holds a copy of them, and so does the first entry of each driver of an extended run.
FROZEN = (
    "format", "kind", "run_id", "created", "job", "identity", "model", "manifest", "software"
)  # fmt: skip

# running: a driver works on it, or died; interrupted: by a signal; incomplete: run it again;
# failed: too many failed images; complete: every image has its row, and stats/ is written.
Status = Literal["running", "interrupted", "incomplete", "failed", "complete"]


class _Recorded(BaseModel):
    """A part of ``run.json``. Fields that are not set are not written."""

    model_config = ConfigDict(extra="allow")


class ModelInfo(_Recorded):
    """The model of the run: where it was, its weights' SHA-256, its classes with their colours."""

    uri: str
    sha256: str = ""
    arch: str = ""
    backbone: str = ""
    long_side: int | None = None
    classes: list[dict[str, Any]]


class Extension(_Recorded):
    """Images that were added to the list, from ``first_id`` on."""

    at: float
    """Seconds since the epoch."""
    first_id: int
    rows: int


class ManifestInfo(_Recorded):
    """The frozen list of images. ``skipped`` counts what the listing left out, by extension."""

    rows: int
    duplicates: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    files: list[ManifestFile]
    extensions: list[Extension] = Field(default_factory=list)


class NodeTime(_Recorded):
    """How long the nodes of one kind were there during a start, in seconds over all of them."""

    cpus: float
    gpus: float
    instance: str | None
    spot: bool | None
    seconds: float


class Start(_Recorded):
    """One start of the job. ``None`` where a start ended before it was known."""

    at: float
    """Seconds since the epoch."""
    device: str | None = None
    workers: str | None = None
    block_rows: int | None = None
    file_rows: int | None = None
    nodes: list[NodeTime] = Field(default_factory=list)
    passes: int | None = None
    images: int = 0
    """Images that this start finished."""
    wall_s: float = 0.0
    stage_s: dict[str, float] = Field(default_factory=dict)
    """Seconds of all workers by stage."""
    read_bytes: float = 0
    requests: float = 0
    """To read images from remote storage; 0 in runs that did not count them."""
    written_bytes: float = 0
    batches: float = 0
    rows: float = 0
    """Rows written, also those that no commit took."""


class Counts(_Recorded):
    """Committed rows: ``ok``, and failed ones by kind of error."""

    ok: int = 0
    failed: dict[str, int] = Field(default_factory=dict)


class RunInfo(_Recorded):
    """The content of ``run.json``."""

    format: int = FORMAT
    kind: Literal["segment"] = "segment"
    run_id: str = ""
    status: Status
    created: float
    """When the list of images was first frozen, in seconds since the epoch, as other times are."""
    job: dict[str, Any]
    """The job file with its defaults, as the version that wrote it knew it."""
    identity: dict[str, Any]
    """Keys of the job that must stay the same for the whole run, dotted."""
    model: ModelInfo
    manifest: ManifestInfo
    software: dict[str, str | None] = Field(default_factory=dict)
    starts: list[Start] = Field(default_factory=list)
    submission: dict[str, Any] | None = None
    engine: str | None = None
    """Settled by the first start, as ``precision``; torch in runs that do not say."""
    precision: str | None = None
    """Settled by the first start, the same for all later ones."""
    quantized: str | None = None
    """SHA-256 of the model in int8 that the first start made, in the folder ``int8/``."""
    counts: Counts = Field(default_factory=Counts)
    log: dict[str, dict[str, str]] = Field(default_factory=dict)
    """SHA-256 of the newest entry of each table's log, by table and version."""
    reason: str | None = None
    """Why the last start ended early."""
    images_per_second: float | None = None
    """Pace of all starts together."""
    finished: float | None = None
    epoch: int | None = None
    """Epoch of the driver that finished the run."""
    updated: float = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether every image has its row; ``finished`` is when that was so."""
        return self.status in ("complete", "failed")

    @property
    def frozen_at(self) -> float:
        """When the list of images was frozen or last extended."""
        extensions = self.manifest.extensions
        return extensions[-1].at if extensions else self.created

    def to_json(self) -> dict[str, Any]:
        """The JSON that is written: only what is set; ``submission`` is null without a Ray job."""
        content = self.model_dump(mode="json", exclude_unset=True)
        ours = RunInfo.model_fields.keys() - {"submission"}
        return {k: v for k, v in content.items() if v is not None or k not in ours}

    def frozen_copy(self) -> str:
        """What a run is, as the log of ``rows/`` keeps it."""
        content = self.to_json()
        return json.dumps({k: content[k] for k in FROZEN if k in content}, ensure_ascii=False)


def read_info(uri: str) -> RunInfo | None:
    """The ``run.json`` of the run at ``uri``; ``None`` if there is none.

    Raises :class:`~segbatch.errors.Damaged` if it is not what was written,
    :class:`~segbatch.errors.RunError` if it belongs to no run, ``OSError`` if storage fails.
    """
    where = storage.join(uri, "run.json")
    try:
        data = storage.read_bytes(where)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Damaged(where, f"not valid JSON: {error}") from error
    if isinstance(content, dict) and "checksum" in content:
        del content["checksum"]
        if _rendered(content) != data:
            raise Damaged(where, "it does not fit its checksum")
    elif isinstance(content, dict) and content.get("format") == FORMAT:
        raise Damaged(where, "its checksum is gone")
    if not isinstance(content, dict) or "manifest" not in content or "identity" not in content:
        raise RunError(f"{uri}: its run.json is not one of segbatch's segment runs")
    if content.get("format") not in (1, FORMAT):
        raise RunError(
            f"{uri}: run.json has format {content.get('format')}, this version reads {FORMAT}"
        )
    return parse_info(uri, content)


def parse_info(uri: str, content: dict[str, Any]) -> RunInfo:
    """The typed content of a ``run.json``. Raises :class:`~segbatch.errors.RunError`."""
    try:
        return RunInfo.model_validate(content)
    except ValidationError as error:
        raise RunError(f"{uri}/run.json: {next(explain(error))}: not a segment run") from error


def write_info(uri: str, info: RunInfo) -> None:
    """Replace ``run.json``, atomically. Raises ``OSError``."""
    info.format, info.updated = FORMAT, time.time()
    storage.write_bytes(storage.join(uri, "run.json"), _rendered(info.to_json()))


def _rendered(content: dict[str, Any]) -> bytes:
    """The bytes of ``run.json``: ``content`` and a checksum of it."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=2, ensure_ascii=False).encode()
