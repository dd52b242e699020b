"""Trackers: the tools that people watch a training with. Adding one is a class and a line."""

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

Values = Mapping[str, float]


class Tracker(Protocol):
    """Where values go, by their TensorBoard names: ``train/loss``, ``val/miou``."""

    def log(self, step: int, values: Values) -> None: ...
    def save(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files below ``tensorboard/``; each start of a training writes one of its own.

    Events are written here and now: a ``SummaryWriter`` hands them to a thread, for which its
    ``flush`` does not wait, and class names would lose their spaces.
    """

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        self._uri = storage.join(uri, "tensorboard")
        self._folder = tempfile.TemporaryDirectory()
        self._writer = EventsWriter(str(Path(self._folder.name) / "events"), f".{step}")
        # What an earlier start wrote of later steps is not shown.
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
    """A run on the server of ``MLFLOW_TRACKING_URI``; its id stands in ``mlflow.txt``.

    Steps that are done again after a loss stand there twice: MLflow takes nothing back.
    """

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        where = storage.join(uri, "mlflow.txt")
        if storage.exists(where):
            self._mlflow.start_run(run_id=storage.read_bytes(where).decode())
            return
        run = self._mlflow.start_run(run_name=_name(uri))
        self._mlflow.log_params({key: str(value) for key, value in keys.items()})
        storage.write_bytes(where, run.info.run_id.encode())

    def log(self, step: int, values: Values) -> None:
        # It takes no other characters, and classes have any names.
        named = {re.sub(r"[^/\w.\- :]", "_", name): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def save(self) -> None:
        pass  # it has sent everything

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project of ``WANDB_PROJECT``; its id stands in ``wandb.txt``."""

    def __init__(self, uri: str, step: int, keys: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        where = storage.join(uri, "wandb.txt")
        known = storage.read_bytes(where).decode() if storage.exists(where) else None
        self._run = wandb.init(id=known, name=_name(uri), resume="allow", config=dict(keys))
        if known is None:
            storage.write_bytes(where, self._run.id.encode())

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def save(self) -> None:
        pass  # it sends by itself

    def close(self) -> None:
        self._run.finish()  # and loses what it has not sent without this


TRACKERS: dict[str, Callable[[str, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises :class:`~segbatch.errors.InputError` for one that is not installed."""
    for name in names:
        if name in ("mlflow", "wandb") and find_spec(name) is None:
            raise InputError(f"track: {name} is not installed: pip install 'segbatch[{name}]'")


def _name(uri: str) -> str:
    return storage.name_of(uri.rstrip("/").removesuffix("/training"))
