"""Journal: what a training says of itself, a line of JSON per step and per epoch.

A training that goes on after a loss takes back what it said of steps that it does again.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from segbatch import storage
from segbatch.errors import InputError

LINES = "metrics.jsonl"


class Journal:
    """The journal in the folder ``uri``, from ``step`` on; ``keys`` are the job's."""

    def __init__(self, uri: str, step: int, track: Sequence[str], keys: Mapping[str, Any]) -> None:
        self._where = storage.join(uri, LINES)
        self._lines = [line for line in read_journal(uri) if line["step"] <= step]
        self._trackers = [TRACKERS[name](uri, step, keys) for name in track]

    def step(self, **values: float) -> None:
        """A step, at ``step``; written with the next epoch."""
        self._lines.append({"kind": "step", **values})
        self._track(values, "train")

    def epoch(self, *, iou: Mapping[str, float | None], **values: float) -> None:
        """An epoch, at ``step``, with the IoU of each class."""
        self._lines.append({"kind": "epoch", **values, "iou": dict(iou)})
        per_class = {f"iou/{name}": value for name, value in iou.items() if value is not None}
        self._track(values | per_class, "val")
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in self._lines)
        storage.write_bytes(self._where, text.encode())
        for tracker in self._trackers:
            tracker.save()

    def close(self) -> None:
        """The end of the training, or of what this worker does of it."""
        for tracker in self._trackers:
            tracker.close()

    def _track(self, values: Mapping[str, float], prefix: str) -> None:
        named = {f"{prefix}/{key}": v for key, v in values.items() if key != "step"}
        for tracker in self._trackers:
            tracker.log(int(values["step"]), named)


def read_journal(uri: str) -> list[dict[str, Any]]:
    """The lines of the journal in the folder ``uri``; none where there is none."""
    try:
        data = storage.read_bytes(storage.join(uri, LINES))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


def curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The learning curves as a PNG: loss per step; mIoU and IoU per class and epoch."""
    from matplotlib.figure import Figure

    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([s["step"] for s in steps], [s["loss"] for s in steps], linewidth=0.4, alpha=0.5)
    left.plot(*_smooth(steps), linewidth=1.6, label="mean of the last 5 %")
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    left.legend()
    numbers = [epoch["epoch"] for epoch in epochs]
    for name in epochs[-1]["iou"] if epochs else ():
        values = [epoch["iou"][name] for epoch in epochs]
        right.plot(
            numbers, [float("nan") if v is None else v for v in values], linewidth=1, label=name
        )
    right.plot(numbers, [epoch["miou"] for epoch in epochs], "k", linewidth=2.2, label="mIoU")
    right.set(xlabel="epoch", ylabel="IoU on val", ylim=(0, 1))
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def _smooth(steps: Sequence[Mapping[str, Any]]) -> tuple[list[float], npt.NDArray[np.float64]]:
    width = max(1, len(steps) // 20)
    sums = np.cumsum([0.0, *(step["loss"] for step in steps)])
    return [step["step"] for step in steps[width - 1 :]], (sums[width:] - sums[:-width]) / width


# Trackers: the tools that people watch a training with. Adding one is a class and a line.


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
