"""The tools that people watch a training with. To add one, write a class and a line below.

All get the same values under the same names: ``train/loss``, ``val/miou``, ``val/iou/<class>``.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from segbatch import storage
from segbatch.errors import InputError

Values = Mapping[str, float]  # by name


class Tracker(Protocol):
    """A tool that shows values by step. It is made with the training's folder, the step that the
    training starts or resumes from, and the keys of the job.
    """

    def log(self, step: int, values: Values) -> None: ...
    def save(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files below ``tensorboard/``, one for each start of the training.

    They are written locally and uploaded by :meth:`save`. tensorboardX's own ``SummaryWriter`` does
    not fit: it replaces spaces in names, and its ``flush`` does not wait for the thread that
    writes.
    """

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        self._uri = storage.join(uri, "tensorboard")
        self._folder = tempfile.TemporaryDirectory()
        self._writer = EventsWriter(str(Path(self._folder.name) / "events"), f".{step}")
        # TensorBoard then hides what an earlier start wrote about the steps that are repeated.
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Values) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=scalars))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    def save(self) -> None:
        self._writer.flush()
        for file in Path(self._folder.name).iterdir():
            storage.write_bytes(storage.join(self._uri, file.name), file.read_bytes())

    def close(self) -> None:
        self._writer.close()
        self._folder.cleanup()


class MLflow:
    """A run on the server of ``MLFLOW_TRACKING_URI``; its id is kept in ``mlflow.txt``.

    Steps that are repeated after a loss are there twice: MLflow takes nothing back.
    """

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        id_file = storage.join(uri, "mlflow.txt")
        if storage.exists(id_file):
            self._mlflow.start_run(run_id=storage.read_bytes(id_file).decode())
            return
        run = self._mlflow.start_run(run_name=_run_name(uri))
        self._mlflow.log_params({key: str(value) for key, value in keys.items()})
        storage.write_bytes(id_file, run.info.run_id.encode())

    def log(self, step: int, values: Values) -> None:
        # MLflow accepts no other characters, and classes may have any name.
        named = {re.sub(r"[^/\w.\- :]", "_", name): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def save(self) -> None:
        pass  # everything has been sent

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project of ``WANDB_PROJECT``; its id is kept in ``wandb.txt``."""

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        id_file = storage.join(uri, "wandb.txt")
        known = storage.read_bytes(id_file).decode() if storage.exists(id_file) else None
        self._run = wandb.init(id=known, name=_run_name(uri), resume="allow", config=dict(keys))
        if known is None:
            storage.write_bytes(id_file, self._run.id.encode())

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def save(self) -> None:
        pass  # wandb sends in the background

    def close(self) -> None:
        self._run.finish()  # sends the rest, which would be lost without it


TRACKERS: dict[str, Callable[[str, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a tracker that is not installed."""
    for name in names:
        if name in ("mlflow", "wandb") and find_spec(name) is None:
            raise InputError(f"track: {name} is not installed: pip install 'segbatch[{name}]'")


def _run_name(uri: str) -> str:
    return storage.name_of(uri.rstrip("/").removesuffix("/training"))
