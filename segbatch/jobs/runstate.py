"""The driver's view of its run: ``run.json``, the frozen manifest and the two tables.

A run begins with its first ``run.json``, which is written after the last file of the manifest.
Every later write is checked against the lease, so a driver that was frozen while another took over
writes nothing.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch import storage
from segbatch.config.images import parse_sources
from segbatch.config.job import Predict, SegmentJob
from segbatch.config.keys import identity_of, recorded
from segbatch.console import say
from segbatch.errors import (
    Damaged,
    Fenced,
    Interrupted,
    JobFailed,
    RunError,
    SegbatchError,
)
from segbatch.images import manifest
from segbatch.jobs.preflight import SAMPLE_IMAGES, Prepared, Sizes, refuse_changes
from segbatch.jobs.progress import Progress
from segbatch.jobs.settings import schema_of
from segbatch.jobs.stamp import software, submission
from segbatch.masks.classes import Classes
from segbatch.model.bundle import bundle_sha256
from segbatch.model.engine import EngineChoice
from segbatch.model.quantize import drawn
from segbatch.results.encode import carried
from segbatch.results.finish import sweep, write_stats
from segbatch.results.lease import WorkerLease
from segbatch.results.ledger import Ledger
from segbatch.results.log import entry_uri
from segbatch.results.repair import apply_repair, plan_repair, quarantine, recover_info
from segbatch.results.runinfo import (
    Counts,
    Extension,
    ManifestInfo,
    ModelInfo,
    NodeTime,
    RunInfo,
    Start,
    Status,
    read_info,
    write_info,
)
from segbatch.results.schema import ERRORS, stats_schema
from segbatch.results.table import Table, kind_in_name
from segbatch.run import Run, open_run

NOTE_EVERY_S = 60.0


class RunState:
    """A run in the hands of its driver."""

    def __init__(self, uri: str, info: RunInfo) -> None:
        self.uri = uri
        self.info = info
        self.worker_lease: WorkerLease | None = None  # checked at every write, once it is set
        self._ledger: Ledger | None = None
        self._began = False  # whether info.starts[-1] is this start

    # ------------------------------------------------------------------------- beginnings

    @classmethod
    def read(cls, uri: str) -> RunState | None:
        """The run at ``uri``; ``None`` if there is none, or only an incomplete first start."""
        with storage.translate_errors("output", RunError):
            info = read_info(uri)
        if info is None:
            if any(storage.exists(entry_uri(storage.join(uri, t), 0)) for t in ("rows", "stats")):
                raise Damaged(f"{uri}/run.json", "it is gone, and the run's tables are there")
            return None
        return cls(uri, info)

    @classmethod
    def new(
        cls, uri: str, job: SegmentJob, prepared: Prepared, frozen: manifest.FrozenManifest
    ) -> RunState:
        """A run whose list of images is frozen; it begins with its first :meth:`write`."""
        config = prepared.config
        info = RunInfo(
            run_id=uuid.uuid4().hex,
            status="running",
            created=time.time(),
            job=recorded(job.model_dump(mode="json")),
            identity=job.identity(),
            model=ModelInfo(
                uri=job.model,
                sha256=prepared.model_sha256,
                arch=config.arch,
                backbone=config.backbone,
                long_side=prepared.reading.long_side,
                classes=config.classes.to_json(),
            ),
            manifest=_manifest_info(frozen),
            software=dict(software("deltalake")),
            starts=[],
        )
        info.kind = "segment"  # set, so that it is written
        return cls(uri, info)

    def extend(self, frozen: manifest.FrozenManifest) -> None:
        """Take up the images that were frozen behind the present ones.

        It takes effect with the next :meth:`write`.
        """
        added = Extension(
            at=time.time(), first_id=self.num_images, rows=frozen.rows - self.num_images
        )
        extensions = [*self.info.manifest.extensions, added]
        self.info.manifest = _manifest_info(frozen)
        self.info.manifest.extensions = extensions

    def refuse_changes(self, job: SegmentJob, model_sha256: str) -> None:
        """Raises :class:`~segbatch.errors.RunError` that names the identity key that changed."""
        # Keys may be younger than the run, also those of its sources.
        begun = identity_of(Predict(), "predict.") | self.info.identity
        with contextlib.suppress(ValueError):
            sources = parse_sources(_without_idle_exif(begun.get("images")))
            begun["images"] = recorded([source.model_dump(mode="json") for source in sources])
        refuse_changes(self.uri, begun, job.identity(), "one run holds one job")
        if self.info.model.sha256 != model_sha256:
            raise RunError(
                f"{self.uri}: the weights of {job.model} have changed since it began; one run"
                " holds one model: choose a new output"
            )

    # ------------------------------------------------------------------------- the manifest

    @property
    def num_images(self) -> int:
        return self.info.manifest.rows

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """``(first id, end id)`` of each file of the manifest: the slices of a pass."""
        return [(f.first_id, f.end_id) for f in self.info.manifest.files]

    def images_of(self, ids: npt.NDArray[np.int64]) -> pa.Table:
        """The manifest's rows of ``ids``, at least one, which all lie in one slice."""
        starts = [start for start, _ in self.bounds]
        file = self.info.manifest.files[bisect_right(starts, ids[0]) - 1]
        images = manifest.read_rows(storage.join(self.uri, "manifest"), file, ids)
        return images.rename_columns([carried(name) for name in images.column_names])

    @cached_property
    def first_images(self) -> pa.Table:
        """The first rows of the manifest."""
        return self.images_from(0)

    def images_from(self, first_id: int) -> pa.Table:
        """Some rows of the manifest from ``first_id`` on, where a slice begins."""
        end = dict(self.bounds)[first_id]
        return self.images_of(np.arange(first_id, min(first_id + SAMPLE_IMAGES, end)))

    def calibration_uris(self) -> list[str]:
        """The URIs of images of the run, drawn at random and always the same."""
        ids = np.array(drawn(self.num_images))
        parts = [ids[(first <= ids) & (ids < end)] for first, end in self.bounds]
        return [
            uri for part in parts if len(part) for uri in self.images_of(part)["uri"].to_pylist()
        ]

    def sample(self) -> pa.Table:
        """Some rows, evenly spaced over the manifest's first slice."""
        end = self.bounds[0][1]
        return self.images_of(np.linspace(0, end - 1, min(SAMPLE_IMAGES, end)).astype(np.int64))

    # ------------------------------------------------------------------------- working on it

    def schema(self, job: SegmentJob, classes: Classes) -> pa.Schema:
        """The schema of every file in ``rows/``."""
        return schema_of(job, classes, self.first_images)

    def refuse_damaged_logs(self) -> None:
        """Check both logs before anything is committed or deleted.

        Raises :class:`~segbatch.errors.Damaged`.
        """
        run = Run(self.uri, self.info)
        for log in (run.log("rows"), run.log("stats")):
            if log is not None:
                log.refuse_damage()

    def reset_failed(self, driver: str, only: Collection[str]) -> None:
        """Remove failed rows from the table, so that a resume does their images again."""
        rows = Table.open(storage.join(self.uri, "rows"))
        if rows is None:
            return
        self.write("running")
        wanted = set(only) or set(ERRORS)
        failed = [file for file in rows.files() if kind_in_name(file.name) in wanted]
        if failed:
            rows.commit(remove=failed, note={"driver": driver, "event": "retry failed"})
        say(f"retrying {sum(file.rows for file in failed)} failed images")

    def open_ledger(self, schema: pa.Schema, driver: str) -> Ledger:
        """Make this driver the one that commits. The first start creates the table."""
        uri = storage.join(self.uri, "rows")
        table = Table.open(uri) or Table.create(uri, schema, note={"run": self.info.frozen_copy()})
        # The table's first entry lists the images of the first start; later ones are listed here.
        opening = {"run": self.info.frozen_copy()} if self.info.manifest.extensions else {}
        self._ledger = Ledger(table, self.num_images, driver, opening)
        self.info.submission = submission()
        return self._ledger

    def begin_start(
        self, ledger: Ledger, device: str, choice: EngineChoice, *, workers: str, sizes: Sizes
    ) -> EngineChoice:
        """Record a start. Returns the engine and precision of the run, which its first start
        settled.
        """
        if self.info.precision is not None:
            choice = EngineChoice(self.info.engine or "torch", self.info.precision)
        self.info.engine, self.info.precision = choice
        ledger.facts.update(choice._asdict())
        self.info.starts.append(
            Start(
                at=time.time(),
                device=device,
                workers=workers,
                block_rows=sizes.block_rows,
                file_rows=sizes.file_rows,
            )
        )
        self._began = True
        self.write("running")
        return choice

    @property
    def int8_uri(self) -> str:
        """The folder of the model in int8 that this run made for itself."""
        return storage.join(self.uri, "int8")

    def keep_quantized(self, ledger: Ledger) -> None:
        """Record the model in :attr:`int8_uri`, or check that it is the one of earlier starts.

        Raises :class:`~segbatch.errors.RunError` if it is another one.
        """
        found = bundle_sha256(self.int8_uri)
        if self.info.quantized not in (None, found):
            raise RunError(
                f"{self.int8_uri}: is not the model that the run began with: choose a new output"
            )
        self.info.quantized = ledger.facts["quantized"] = found
        self.write()

    def write(self, status: Status | None = None) -> None:
        """Write ``run.json`` with the counts of the ledger.

        Raises ``Fenced`` if another driver has taken over meanwhile, and ``OSError``.
        """
        if self.worker_lease is not None:
            self.worker_lease.check()
        if self._ledger is not None:
            kinds = dict(sorted(self._ledger.kinds.items()))
            self.info.counts = Counts(ok=kinds.pop("ok", 0), failed=kinds)
            self.info.log = self.info.log | {"rows": self._ledger.table.proof}
        if status is not None:
            self.info.status = status
            if status not in ("interrupted", "incomplete"):
                self.info.reason = None
        write_info(self.uri, self.info)

    # ------------------------------------------------------------------------- endings

    @property
    def finished(self) -> bool:
        return self.info.is_finished

    def finish(self, ledger: Ledger, job: SegmentJob) -> None:
        """Fence the run, write ``stats/``, sweep, and set the status to complete or failed.

        Raises :class:`~segbatch.errors.JobFailed` if too many images failed.
        """
        say("writing the statistics table")
        began = time.monotonic()
        rows = ledger.table
        rows.commit(note={"driver": ledger.driver, "event": "finish"})  # the fence
        uri = storage.join(self.uri, "stats")
        stats = Table.open(uri) or Table.create(uri, stats_schema(rows.schema))
        write_stats(rows, stats, ledger.epoch)
        sweep(self.uri, rows, stats, ledger.epoch)
        self.info.finished, self.info.epoch = time.time(), ledger.epoch
        self.info.log = {"stats": stats.proof}
        if self._began:
            start = self.info.starts[-1]
            start.wall_s = round(start.wall_s + time.monotonic() - began, 1)
            self.info.images_per_second = pace_of(self.info.starts)
        self.write("complete")
        self._judge(job)

    def close(self, job: SegmentJob) -> Run:
        """A finished run is run again: delete uncommitted files, and check the job's limits."""
        self.refuse_damaged_logs()
        rows = Table.open(storage.join(self.uri, "rows"))
        stats = Table.open(storage.join(self.uri, "stats"))
        if rows is None or stats is None:
            raise Damaged(f"{self.uri}/{'stats' if rows else 'rows'}", "it is gone")
        swept = sweep(self.uri, rows, stats, self.info.epoch or 0)
        say(
            f"{self.uri}: already complete; nothing to do"
            + (f" (swept {swept} stray files)" if swept else "")
        )
        self._judge(job)
        return open_run(self.uri)

    def verdict(self, job: SegmentJob) -> Status:
        """The status of the run, once it is finished, by the limits of ``job``."""
        failed = sum(self.info.counts.failed.values())
        allowed = job.limits.max_failed_fraction * self.num_images
        return "failed" if failed > allowed else "complete"

    def _judge(self, job: SegmentJob) -> None:
        failed = self.info.counts.failed
        total = sum(failed.values())
        limit = job.limits.max_failed_fraction
        verdict = self.verdict(job)
        if self.info.status != verdict:
            self.write(verdict)
        if verdict == "failed":
            kinds = ", ".join(f"{count} {kind}" for kind, count in failed.items())
            raise JobFailed(
                f"{self.uri}: {total} of {self.num_images} images failed ({kinds}), more than"
                f" limits.max_failed_fraction {limit:g} allows; the results are kept, and running"
                " again with a higher limit makes the run complete"
            )

    @contextlib.contextmanager
    def note_end(self) -> Iterator[None]:
        """Note in ``run.json`` why a start ended early, unless another driver has taken over."""
        try:
            yield
        except Fenced:
            raise
        except (SegbatchError, OSError) as error:
            if not self.finished:
                self.info.reason = storage.one_line(error)
                with contextlib.suppress(OSError, Fenced):
                    # Incomplete after JobFailed, too: a run that is failed has every row.
                    self.write("interrupted" if isinstance(error, Interrupted) else "incomplete")
            raise


def _without_idle_exif(images: Any) -> Any:
    """``images`` of an identity without ``exif`` in ``panorama``, where earlier versions took it
    and it had no effect.
    """
    if not isinstance(images, list):
        return images
    return [
        source | {"panorama": source["panorama"] | {"exif": False}}
        if isinstance(source, dict) and isinstance(source.get("panorama"), dict)
        else source
        for source in images
    ]


class StartRecord:
    """Keeps the pace, stage seconds and machines of one start in ``run.json``.

    ``progress`` counts what the workers have done, ``machines`` asks Ray which nodes there were
    and for how long.
    """

    def __init__(
        self,
        state: RunState,
        progress: Progress,
        machines: Callable[[], list[NodeTime]],
    ) -> None:
        self.state = state
        self.progress = progress
        self.machines = machines
        self._written = time.monotonic()

    def write_now_and_then(self) -> None:
        """Write ``run.json`` once a minute, so that ``status`` shows the pace."""
        if time.monotonic() - self._written >= NOTE_EVERY_S:
            self._written = time.monotonic()
            self.update()
            with contextlib.suppress(OSError):  # the next attempt follows in a minute
                self.state.write()

    def update(self) -> None:
        """Bring the start's record up to date; the next write of the state stores it."""
        start, progress = self.state.info.starts[-1], self.progress
        # A Ray that is gone must not replace the error that ended the work.
        with contextlib.suppress(Exception):
            start.nodes = self.machines()
        start.passes = progress.passes
        start.images = progress.finished
        start.wall_s = round(time.monotonic() - progress.started, 1)
        start.stage_s = {stage: round(s, 2) for stage, s in progress.seconds.items()}
        for name, number in progress.counted.items():
            setattr(start, name, round(number))
        self.state.info.images_per_second = pace_of(self.state.info.starts)


def pace_of(starts: Sequence[Start]) -> float:
    """Images per second over all starts: the last one may have retried a few images only."""
    images, seconds = sum(s.images for s in starts), sum(s.wall_s for s in starts)
    return round(images / max(seconds, 1e-3), 3)


def repair_run(
    uri: str, job: SegmentJob, prepared: Prepared, driver: str, confirm: Callable[[], None]
) -> None:
    """Move damaged files of a run away, so that reading and resuming it does their images again.

    ``confirm`` raises if another driver has taken over; it is called before anything is changed.
    Raises :class:`~segbatch.errors.RunError` for what cannot be repaired; then, and if storage
    fails, nothing is changed.
    """
    info, whole = None, True
    try:
        info = read_info(uri)
    except Damaged:
        whole = False
    known = info or recover_info(uri)
    state = plan = None
    if known is not None:
        state = RunState(uri, known)
        state.refuse_changes(job, prepared.model_sha256)
        plan = plan_repair(Run(uri, known))
    confirm()  # the search may have taken hours
    if not whole:
        quarantine(uri, storage.join(uri, "run.json"))
        say("run.json: is damaged; moved to quarantine/run.json")
    if state is None or plan is None:
        return  # an incomplete first start, which starts over
    if plan.needed or info is None:
        apply_repair(plan, driver, partial(state.schema, job, prepared.config.classes), say)
    else:
        say(f"{uri}: nothing is damaged")


def _manifest_info(frozen: manifest.FrozenManifest) -> ManifestInfo:
    return ManifestInfo(
        rows=frozen.rows,
        duplicates=frozen.duplicates,
        skipped=frozen.skipped,
        files=frozen.files,
    )
