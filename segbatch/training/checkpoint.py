"""Checkpoint: a training and its scores in one file, to go on from and to take the model out of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segbatch.training.loop import Training

STATE = "state.pt"


@dataclass(frozen=True)
class Best:
    """The best epoch so far, counted from 1."""

    miou: float = -1.0
    epoch: int = 0

    def worn_out(self, epoch: int, patience: int | None) -> bool:
        """Whether ``patience`` epochs have gone by without a better one."""
        return patience is not None and epoch - self.epoch >= patience


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: the training's state, the last epoch's scores, the best epoch."""

    training: dict[str, Any]
    metrics: dict[str, Any]
    best: Best

    @property
    def network(self) -> dict[str, Tensor]:
        """The network's state_dict."""
        network: dict[str, Tensor] = self.training["network"]
        return network


def save(folder: Path, training: Training, metrics: Mapping[str, Any], best: Best) -> None:
    """Write the checkpoint into ``folder``."""
    state = {"training": training.state_dict(), "metrics": dict(metrics), "best": asdict(best)}
    torch.save(state, folder / STATE)


def load(folder: Path) -> Saved:
    """The checkpoint in ``folder``, its tensors on the CPU."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return Saved(state["training"], state["metrics"], Best(**state["best"]))
