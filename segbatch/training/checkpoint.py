"""Checkpoint of a training in one file: to resume from, and to take the model out of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATE = "state.pt"


@dataclass(frozen=True)
class Best:
    """The best epoch so far, counted from 1, and its mIoU."""

    miou: float = -1.0
    epoch: int = 0

    def should_stop(self, epoch: int, patience: int | None) -> bool:
        """Whether ``patience`` epochs have passed without a better one."""
        return patience is not None and epoch - self.epoch >= patience


@dataclass(frozen=True)
class Checkpoint:
    """State of the training, scores of its last epoch (``epoch``, ``miou``, …), best epoch."""

    training: dict[str, Any]
    metrics: dict[str, Any]
    best: Best

    @property
    def network(self) -> dict[str, Tensor]:
        """The network's state_dict."""
        network: dict[str, Tensor] = self.training["network"]
        return network


def save_checkpoint(
    folder: Path, training: Mapping[str, Any], metrics: Mapping[str, Any], best: Best
) -> None:
    """Write a checkpoint into ``folder``; ``training`` is a state_dict."""
    state = {"training": training, "metrics": dict(metrics), "best": asdict(best)}
    torch.save(state, folder / STATE)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, its tensors on the CPU."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return Checkpoint(state["training"], state["metrics"], Best(**state["best"]))
