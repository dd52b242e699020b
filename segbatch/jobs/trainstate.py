"""State of one training on storage: its ``run.json``, and whether its output may be used."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from segbatch import storage
from segbatch.config.job import FinetuneJob
from segbatch.errors import Fenced, Interrupted, JobFailed, RunError, SegbatchError
from segbatch.jobs.preflight import refuse_changes
from segbatch.jobs.runtime.workers import Workers
from segbatch.jobs.stamp import software, submission
from segbatch.labels.dataset import Dataset
from segbatch.results.lease import WorkerLease


class TrainState:
    """What the driver keeps in ``run.json`` (``info``).

    ``status`` is running, interrupted (by a signal), incomplete (run it again), failed (it
    diverged), or complete (the model is there).
    """

    def __init__(self, uri: str, info: dict[str, Any]) -> None:
        self.uri = uri
        self.info = info
        self.worker_lease: WorkerLease | None = None  # checked at every write, once it is set
        self._began: float | None = None  # of this start, on the monotonic clock

    @classmethod
    def open(
        cls, uri: str, job: FinetuneJob, dataset: Dataset, start_sha256: str | None
    ) -> TrainState:
        """The training in the folder ``uri``, or a new one, which is not written yet.

        Raises :class:`~segbatch.errors.RunError` where the folder holds something else, or a
        training of other labels, from other weights or with other keys.
        """
        fresh = {
            "kind": job.kind,
            "status": "running",
            "created": time.time(),
            "job": job.model_dump(mode="json", by_alias=True),
            "identity": job.identity(),
            "dataset": {
                "uri": job.dataset,
                "fingerprint": dataset.fingerprint,
                "images": dataset.splits,
            },
            "start_sha256": start_sha256,
            "normalisation": "backbone",  # earlier versions: that of ImageNet, without this key
            "software": software(),
            "starts": [],
        }
        file = storage.join(uri, "run.json")
        with storage.translate_errors("output", RunError):
            try:
                info = json.loads(storage.read_bytes(file))
            except FileNotFoundError:
                if storage.exists(storage.join(uri, "config.json")):
                    raise RunError(f"{uri}: already holds a model: choose a new output") from None
                return cls(uri, fresh)
            except ValueError as error:
                raise RunError(f"{file}: not valid JSON: {error}; choose a new output") from error
        if not isinstance(info, dict) or info.get("kind") != job.kind:
            raise RunError(f"{uri}: holds something other than a training: choose a new output")
        state = cls(uri, info)
        state._refuse_changes(fresh)
        return state

    def _refuse_changes(self, fresh: dict[str, Any]) -> None:
        old = self.info["identity"]
        new = dict.fromkeys(old) | fresh["identity"]  # a key that is gone counts as null
        refuse_changes(self.uri, old, new, "one output holds one training")
        if self.info["dataset"]["fingerprint"] != fresh["dataset"]["fingerprint"]:
            raise RunError(
                f"{self.uri}: was trained on other labels than {fresh['dataset']['uri']} holds now:"
                " choose a new output"
            )
        if self.info["start_sha256"] != fresh["start_sha256"]:
            raise RunError(
                f"{self.uri}: started from other weights than model: names now: choose a new output"
            )

    @property
    def finished(self) -> bool:
        return bool(self.info["status"] == "complete")

    @property
    def normalises_as_backbone(self) -> bool:
        """Whether pixels are normalised as for the weights of the backbone; a training that an
        earlier version began goes on with the numbers of ImageNet.
        """
        return self.info.get("normalisation") == "backbone"

    @property
    def training_uri(self) -> str:
        """Folder of metrics, curves and checkpoints."""
        return storage.join(self.uri, "training")

    def write(self, status: str, **facts: Any) -> None:
        """Replace ``run.json``, atomically.

        Raises ``Fenced`` if another driver has taken over meanwhile, and ``OSError``.
        """
        if self.worker_lease is not None:
            self.worker_lease.check()
        if self._began is not None:
            self.info["starts"][-1]["seconds"] = round(time.monotonic() - self._began, 1)
        now = {"status": status, "submission": submission(), "updated": time.time()}
        self.info = {**self.info, **facts, **now}
        text = json.dumps(self.info, indent=2, ensure_ascii=False)
        storage.write_bytes(storage.join(self.uri, "run.json"), f"{text}\n".encode())

    @contextlib.contextmanager
    def start(self, workers: Workers) -> Iterator[None]:
        """Note in ``run.json`` a start on ``workers``, how long it took, and how it ended early."""
        self._began = time.monotonic()
        start = {"at": time.time(), "workers": str(workers), "device": workers.device}
        self.info["starts"].append(start)
        try:
            with storage.translate_errors("storage:"):  # run.json notes how these errors end it
                self.write("running")
                yield
        except Fenced:
            raise  # run.json is another driver's now
        except SegbatchError as error:
            ended = {Interrupted: "interrupted", JobFailed: "failed"}
            kinds = (status for kind, status in ended.items() if isinstance(error, kind))
            with contextlib.suppress(OSError, Fenced):
                self.write(next(kinds, "incomplete"))
            raise

    def summary(self) -> dict[str, Any]:
        """What the command line prints at the end."""
        metrics = self.info.get("metrics", {})
        return {
            "model": self.uri,
            "status": self.info["status"],
            "epoch": metrics.get("epoch"),
            "miou": metrics.get("miou"),
            "iou": metrics.get("iou", {}),
            "pixel_accuracy": metrics.get("pixel_accuracy"),
            "seconds": sum(start.get("seconds", 0) for start in self.info["starts"]),
        }
