"""The journal of a training: a line of JSON per step and per epoch, and the learning curves.

A training that resumes drops the lines of steps after its checkpoint, because it repeats them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.training.trackers import TRACKERS

LINES = "metrics.jsonl"
FEW_EPOCHS = 30  # whose points are marked


class Journal:
    """Writes ``metrics.jsonl`` in the folder ``uri``, and passes all values on to the trackers.

    ``step`` is where the training starts or resumes, ``track`` names the trackers, and ``keys`` are
    the job's.
    """

    def __init__(self, uri: str, step: int, track: Sequence[str], keys: Mapping[str, Any]) -> None:
        self._file = storage.join(uri, LINES)
        self._lines = [line for line in read_journal(uri) if line["step"] <= step]
        self._trackers = [TRACKERS[name](uri, step, keys) for name in track]

    def step(self, **values: float) -> None:
        """Note the values of a step, ``step`` among them; they are saved with the next epoch."""
        self._lines.append({"kind": "step", **values})
        self._track(values, "train")

    def epoch(self, *, iou: Mapping[str, float | None], **values: float) -> None:
        """Note the values of an epoch, ``step`` among them, and the IoU by class; saves all."""
        self._lines.append({"kind": "epoch", **values, "iou": dict(iou)})
        per_class = {f"iou/{name}": value for name, value in iou.items() if value is not None}
        self._track(values | per_class, "val")
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in self._lines)
        storage.write_bytes(self._file, text.encode())
        for tracker in self._trackers:
            tracker.save()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def _track(self, values: Mapping[str, float], prefix: str) -> None:
        named = {f"{prefix}/{key}": v for key, v in values.items() if key != "step"}
        for tracker in self._trackers:
            tracker.log(int(values["step"]), named)


def read_journal(uri: str) -> list[dict[str, Any]]:
    """The lines of the journal in the folder ``uri``; empty if there is no journal."""
    try:
        data = storage.read_bytes(storage.join(uri, LINES))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of the loss per step, and of the mIoU and the IoU by class per epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([s["step"] for s in steps], [s["loss"] for s in steps], linewidth=0.4, alpha=0.5)
    left.plot(*_smoothed(steps), linewidth=1.6, label="mean of the last 5 %")
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    left.legend()
    numbers = [epoch["epoch"] for epoch in epochs]
    marker = "." if len(epochs) <= FEW_EPOCHS else ""  # a line of one point is not seen
    for name in epochs[-1]["iou"] if epochs else ():
        values = [epoch["iou"][name] for epoch in epochs]
        right.plot(
            numbers,
            [float("nan") if v is None else v for v in values],
            marker=marker,
            linewidth=1,
            label=name,
        )
    mious = [epoch["miou"] for epoch in epochs]
    right.plot(numbers, mious, "k", marker=marker, linewidth=2.2, label="mIoU")
    end = max(numbers, default=1) + 0.5
    right.set(xlabel="epoch", ylabel="IoU on val", xlim=(0, end), ylim=(0, 1))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _smoothed(steps: Sequence[Mapping[str, Any]]) -> tuple[list[float], npt.NDArray[np.float64]]:
    """The moving average of the loss over a twentieth of the steps."""
    width = max(1, len(steps) // 20)
    sums = np.cumsum([0.0, *(step["loss"] for step in steps)])
    return [step["step"] for step in steps[width - 1 :]], (sums[width:] - sums[:-width]) / width
