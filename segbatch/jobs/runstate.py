"""Run state: a run's folder as its own driver sees it, from ``run.json`` to the finished tables."""

from __future__ import annotations

import contextlib
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch import storage
from segbatch.config.job import Predict, SegmentJob
from segbatch.config.keys import identity_of
from segbatch.console import say
from segbatch.errors import (
    Damaged,
    Fenced,
    Incomplete,
    Interrupted,
    JobFailed,
    RunError,
    SegbatchError,
)
from segbatch.images import manifest
from segbatch.jobs.preflight import SAMPLE_IMAGES, Prepared
from segbatch.jobs.progress import Progress
from segbatch.jobs.stamp import software, submission
from segbatch.masks.classes import Classes
from segbatch.results.encode import carried, user_fields
from segbatch.results.finish import sweep, write_stats
from segbatch.results.lease import Tenure
from segbatch.results.ledger import Ledger
from segbatch.results.log import entry_uri
from segbatch.results.repair import Repair, quarantine, recall
from segbatch.results.runfolder import FORMAT, frozen_copy, read_info, write_info
from segbatch.results.schema import ERRORS, rows_schema, stats_schema
from segbatch.results.table import Table, kind_of
from segbatch.run import Run, open_run

NOTE_EVERY_S = 60.0


class RunState:
    """The driver's hold on ``run.json`` and the tables of one run."""

    def __init__(self, uri: str, info: dict[str, Any]) -> None:
        self.uri = uri
        self.info = info
        self.ledger: Ledger | None = None
        self.progress: Progress | None = None
        self.nodes: Callable[[], list[dict[str, Any]]] | None = None
        """Asks Ray which machines there were, and for how long, until now."""
        self._noted = time.monotonic()

    # ------------------------------------------------------------------------- beginnings

    @classmethod
    def read(cls, uri: str) -> RunState | None:
        """The run at ``uri``; ``None`` if there is none, or only a torn beginning of one."""
        try:
            info = read_info(uri)
        except PermissionError as error:
            raise RunError(f"output {error}") from error
        if info is None:
            if any(storage.exists(entry_uri(storage.join(uri, t), 0)) for t in ("rows", "stats")):
                raise Damaged(f"{uri}/run.json", "it is gone, and the run's tables are there")
            return None
        return cls(uri, info)

    @classmethod
    def repair(
        cls,
        uri: str,
        job: SegmentJob,
        prepared: Prepared,
        driver: str,
        confirm: Callable[[], None],
    ) -> None:
        """Move away what is damaged, so that reading and resuming the run mends it.

        ``confirm`` raises once the run is another's; it is asked before anything is changed. Raises
        :class:`~segbatch.errors.RunError` for what cannot be mended; then, and where storage fails,
        nothing is changed.
        """
        info, whole = None, True
        try:
            info = read_info(uri)
        except Damaged:
            whole = False
        known = info or recall(uri)
        state = repair = None
        if known is not None:
            state = cls(uri, known)
            state.refuse_changes(job, prepared.model_sha256)
            repair = Repair(Run(uri, known), driver, say)
        confirm()  # looking may have taken hours
        if not whole:
            quarantine(uri, storage.join(uri, "run.json"))
            say("run.json: is damaged; moved to quarantine/run.json")
        if state is None or repair is None:
            return  # a torn beginning, which starts over
        if repair.needed or info is None:
            repair.do(partial(state.schema, job, prepared.config.classes))
        else:
            say(f"{uri}: nothing is damaged")

    @classmethod
    def of(cls, uri: str, job: SegmentJob, prepared: Prepared, frozen: manifest.Frozen) -> RunState:
        """A new run, whose list of images was frozen; it begins with its first ``write``."""
        config = prepared.config
        info = {
            "format": FORMAT,
            "kind": job.kind,
            "run_id": uuid.uuid4().hex,
            "status": "running",
            "created": time.time(),
            "job": job.model_dump(mode="json"),
            "identity": job.identity(),
            "model": {
                "uri": job.model,
                "sha256": prepared.model_sha256,
                "arch": config.arch,
                "backbone": config.backbone,
                "long_side": prepared.reading.long_side,
                "classes": config.classes.to_json(),
            },
            "manifest": {
                "rows": frozen.rows,
                "duplicates": frozen.duplicates,
                "skipped": frozen.skipped,
                "files": frozen.files,
            },
            "software": software("deltalake"),
            "starts": [],
        }
        return cls(uri, info)

    def refuse_changes(self, job: SegmentJob, model_sha256: str) -> None:
        """Raises :class:`~segbatch.errors.RunError`, naming the identity key that changed."""
        begun = identity_of(Predict(), "predict.") | self.info["identity"]  # keys may be younger
        for key, new in job.identity().items():
            old = begun.get(key)
            if old != new:
                raise RunError(
                    f"{self.uri}: {key} was {_short(old)} and is {_short(new)} now; one run holds"
                    " one job: choose a new output"
                )
        if self.info["model"]["sha256"] != model_sha256:
            raise RunError(
                f"{self.uri}: the weights of {job.model} have changed since it began; one run"
                " holds one model: choose a new output"
            )

    def settle(self, device: str, precision: str) -> str:
        """Begin to work; the precision is settled once, so that every worker ever has the same."""
        self.info.setdefault("precision", precision)
        if self.ledger is not None:
            self.ledger.facts["precision"] = self.info["precision"]
        self.info["starts"].append({"at": time.time(), "device": device})
        self.write("running")
        settled: str = self.info["precision"]
        return settled

    def note_start(self, **facts: object) -> None:
        """What this start works with, for whoever reads ``run.json`` later."""
        self.info["starts"][-1] |= facts
        self.write()

    # ------------------------------------------------------------------------- the manifest

    @property
    def num_images(self) -> int:
        rows: int = self.info["manifest"]["rows"]
        return rows

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """``(first id, end id)`` of each file of the manifest: the slices of a pass."""
        files = self.info["manifest"]["files"]
        return [(file["first_id"], file["first_id"] + file["rows"]) for file in files]

    def images_of(self, ids: npt.NDArray[np.int64]) -> pa.Table:
        """The manifest's rows of ``ids``, at least one, which all lie in one slice."""
        starts = [start for start, _ in self.bounds]
        file = self.info["manifest"]["files"][bisect_right(starts, ids[0]) - 1]
        images = manifest.read(storage.join(self.uri, "manifest"), file, ids)
        return images.rename_columns([carried(name) for name in images.column_names])

    @cached_property
    def first_images(self) -> pa.Table:
        """The first rows of the manifest."""
        return self.images_of(np.arange(min(SAMPLE_IMAGES, self.bounds[0][1])))

    def sample(self) -> pa.Table:
        """Some rows from all over the manifest's first slice."""
        end = self.bounds[0][1]
        return self.images_of(np.linspace(0, end - 1, min(SAMPLE_IMAGES, end)).astype(np.int64))

    # ------------------------------------------------------------------------- while it works

    def schema(self, job: SegmentJob, classes: Classes) -> pa.Schema:
        """The schema of every file in ``rows/``."""
        return rows_schema(
            classes,
            stats=job.stats,
            formulas=list(job.formulas),
            user_columns=user_fields(self.first_images.schema),
        )

    def open_ledger(self, schema: pa.Schema, driver: str) -> Ledger:
        """Make this driver the one that commits; the table is created at the first start."""
        uri = storage.join(self.uri, "rows")
        table = Table.open(uri) or Table.create(uri, schema, note={"run": frozen_copy(self.info)})
        self.ledger = Ledger(table, self.num_images, driver)
        self.info["submission"] = submission()
        return self.ledger

    def prove_logs(self) -> None:
        """Raises :class:`~segbatch.errors.Damaged`: a driver commits and deletes nothing then."""
        run = Run(self.uri, self.info)
        for log in (run.log("rows"), run.log("stats")):
            if log is not None:
                log.refuse_damage()

    def note_progress(self) -> None:
        """Leave counts and pace in ``run.json``, once a minute, for whoever asks the storage."""
        if time.monotonic() - self._noted >= NOTE_EVERY_S:
            self.note_nodes()
            with contextlib.suppress(OSError):  # there is another in a minute
                self.write()

    def note_nodes(self) -> None:
        """Ask for the machines while Ray is there; the next :meth:`write` keeps them."""
        if self.nodes is not None:
            # A Ray that is gone must not take the place of the error that ended the work.
            with contextlib.suppress(Exception):
                self.info["starts"][-1]["nodes"] = self.nodes()

    def write(self, status: str | None = None) -> None:
        """Raises ``Fenced`` for a driver that slept, and must not write over what came after."""
        if self.ledger is not None:
            Tenure(self.uri, self.ledger.driver).check()
        self._noted = time.monotonic()
        if status is not None:
            self.info["status"] = status
            if status not in ("interrupted", "incomplete"):
                self.info.pop("reason", None)
        if self.ledger is not None:
            kinds = dict(sorted(self.ledger.kinds.items()))
            self.info["counts"] = {"ok": kinds.pop("ok", 0), "failed": kinds}
            self.info["log"] = self.info.get("log", {}) | {"rows": self.ledger.table.proof}
        if self.progress is not None and self.info["starts"]:
            self.info["images_per_second"] = round(self.progress.images_per_second, 3)
            self.info["starts"][-1] |= {
                "passes": self.progress.passes,
                "images": self.progress.finished,
                "wall_s": round(time.monotonic() - self.progress.started, 1),
                "stage_s": {k: round(v, 2) for k, v in self.progress.seconds.items()},
                **{name: round(number) for name, number in self.progress.counted.items()},
            }
        write_info(self.uri, self.info)

    # ------------------------------------------------------------------------- endings

    @property
    def finished(self) -> bool:
        return self.info["status"] in ("complete", "failed")

    def finish(self, job: SegmentJob) -> None:
        """Write ``stats/``, fence, sweep, and say ``complete`` or ``failed``.

        Raises :class:`~segbatch.errors.JobFailed` if too many images failed.
        """
        ledger = self.ledger
        if ledger is None:
            raise RuntimeError("a run is finished through its ledger")
        say("writing the statistics table")
        rows = ledger.table
        rows.commit(note={"driver": ledger.driver, "event": "finish"})  # the fence
        uri = storage.join(self.uri, "stats")
        stats = Table.open(uri) or Table.create(uri, stats_schema(rows.schema))
        write_stats(rows, stats, ledger.epoch)
        sweep(self.uri, rows, stats, ledger.epoch)
        self.info |= {"finished": time.time(), "epoch": ledger.epoch, "log": {"stats": stats.proof}}
        self.write("complete")
        self._judge(job)

    def close(self, job: SegmentJob) -> Run:
        """A finished run, run again: only strays are swept and the verdict is given anew."""
        self.prove_logs()
        rows = Table.open(storage.join(self.uri, "rows"))
        stats = Table.open(storage.join(self.uri, "stats"))
        if rows is None or stats is None:
            raise Damaged(f"{self.uri}/{'stats' if rows else 'rows'}", "it is gone")
        swept = sweep(self.uri, rows, stats, self.info["epoch"])
        say(f"{self.uri}: is finished already" + (f"; swept {swept} stray files" if swept else ""))
        self._judge(job)
        return open_run(self.uri)

    def _judge(self, job: SegmentJob) -> None:
        failed = self.info["counts"]["failed"]
        total = sum(failed.values())
        limit = job.limits.max_failed_fraction
        verdict = "failed" if total > limit * self.num_images else "complete"
        if self.info["status"] != verdict:
            self.write(verdict)
        if verdict == "failed":
            kinds = ", ".join(f"{count} {kind}" for kind, count in failed.items())
            raise JobFailed(
                f"{self.uri}: {total} of {self.num_images} images failed ({kinds}), more than"
                f" limits.max_failed_fraction {limit:g} allows; the results are kept, and running"
                " again with a higher limit makes the run complete"
            )

    def take_up_failed(self, driver: str, only: Collection[str]) -> None:
        """Take the failed rows out of the table, so that a resume does their images again."""
        rows = Table.open(storage.join(self.uri, "rows"))
        if rows is None:
            return
        self.write("running")
        wanted = set(only) or set(ERRORS)
        failed = [file for file in rows.files() if kind_of(file["path"]) in wanted]
        if failed:
            rows.commit(remove=failed, note={"driver": driver, "event": "retry failed"})
        say(f"taking up {sum(file['rows'] for file in failed)} failed images again")

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Whatever ends a run early is noted in ``run.json``, if that is still ours to write."""
        try:
            yield
        except Fenced:
            raise
        except (SegbatchError, OSError) as error:
            if not self.finished:
                self.info["reason"] = storage.one_line(error)
                with contextlib.suppress(OSError, Fenced):
                    self.write("interrupted" if isinstance(error, Interrupted) else "incomplete")
            raise


@contextlib.contextmanager
def outages() -> Iterator[None]:
    """Storage that does not answer is :class:`~segbatch.errors.Incomplete`: run it again."""
    try:
        yield
    except OSError as error:
        raise Incomplete(f"storage: {storage.one_line(error)}; run again") from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
