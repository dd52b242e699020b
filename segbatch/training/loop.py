"""The loop: steps of a training, on one worker or in step with others.

Torch alone: where ``torch.distributed`` is set up, gradients, losses and statistics are those of
all workers. All that is random follows from the seed and the step, so what a checkpoint has to hold
is the network, the optimizer and the number of the step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segbatch.config.training import Train
from segbatch.training.loader import Batch, Order
from segbatch.training.loss import Objective
from segbatch.training.recipe import make_optimizer, norms, seed_everything, set_mode, set_rate

# Checkpoint: a training and its scores in one file, to go on from and to take the model out of.


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


def save_checkpoint(
    folder: Path, training: Training, metrics: Mapping[str, Any], best: Best
) -> None:
    """Write the checkpoint into ``folder``."""
    state = {"training": training.state_dict(), "metrics": dict(metrics), "best": asdict(best)}
    torch.save(state, folder / STATE)


def load_checkpoint(folder: Path) -> Saved:
    """The checkpoint in ``folder``, its tensors on the CPU."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return Saved(state["training"], state["metrics"], Best(**state["best"]))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):
    """The loss is no longer a number."""


class Training:
    """A network on its way; ``step`` counts the steps that are done.

    ``trunk`` is the network's backbone. ``precision`` is ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(
        self,
        objective: Objective,
        trunk: nn.Module,
        order: Order,
        train: Train,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        self.train = train
        self.order = order
        self.device = device
        self.step = 0
        self.lr = 0.0
        """Learning rate of the backbone in the last step."""
        self._trunk = trunk
        self._dtype = DTYPES[precision]
        self._autocasts = precision != "fp32"
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        # Synchronised norms wait for each other, so all workers must have as many parts.
        in_step = order.parts % self._world_size == 0
        if device.type == "cuda" and self._world_size > 1 and in_step:
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
        # Channels last: faster on CPUs too.
        self._objective = objective.to(device).to(memory_format=torch.channels_last)
        self.network = objective.network
        set_mode(self.network, trunk, train.freeze)
        self.optimizer = make_optimizer(self.network, trunk, train)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._shared: nn.Module = self._objective
        if self._world_size > 1:
            # Statistics of norms are brought together when they are used: `settle`. And some
            # backbones (efficientnet) have weights that nothing depends on.
            self._shared = DistributedDataParallel(
                self._objective, broadcast_buffers=False, find_unused_parameters=True
            )

    @property
    def seen(self) -> int:
        """Images seen."""
        return self.step * self.order.batch_size

    def run_step(self, parts: list[Batch]) -> float:
        """One step on the parts that are this worker's; returns the mean loss of all workers.

        Raises :class:`Diverged`, on all workers alike.
        """
        set_mode(self.network, self._trunk, self.train.freeze)
        seed_everything(self.train.seed, self.step, self._rank)  # for dropout
        share = set_rate(self.optimizer, self.train.schedule, self.seen, self.order.total)
        self.lr = share * self.train.optimizer.lr
        # DDP takes the mean over workers, which may have unlike numbers of parts.
        weight = self._world_size / self.order.parts
        total = torch.zeros((), device=self.device)
        for number, (pixels, truth) in enumerate(parts, 1):
            with self._alone(number < len(parts)):
                loss = self._loss(pixels, truth) * weight
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        mean = summed(total).item() / self._world_size
        if not math.isfinite(mean):
            raise Diverged(f"the loss is {mean} at step {self.step + 1}")
        self.step += 1
        return mean

    def _alone(self, alone: bool) -> contextlib.AbstractContextManager[None]:
        """Without an exchange of gradients; there is one a step, with the last part."""
        if alone and isinstance(self._shared, DistributedDataParallel):
            return self._shared.no_sync()
        return contextlib.nullcontext()

    def _loss(self, pixels: Tensor, truth: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self._dtype, enabled=self._autocasts):
            loss: Tensor = self._shared(
                pixels.to(self.device, non_blocking=True), truth.to(self.device, non_blocking=True)
            )
        return loss

    def settle(self) -> None:
        """Give all workers the mean of their norms' statistics, before the network is used."""
        if self._world_size == 1:
            return
        for norm in norms(self.network):
            for buffer in (norm.running_mean, norm.running_var):
                if buffer is not None:
                    buffer.copy_(summed(buffer) / self._world_size)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def use_threads(number: int) -> None:
    """How many CPU threads torch takes in this process."""
    torch.set_num_threads(number)


def meet() -> None:
    """Wait until all workers are here."""
    if dist.is_initialized():
        dist.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum of what all workers have, on each of them; ``values`` stays as it is."""
    values = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def summed_counts(counts: npt.NDArray[np.int64], device: torch.device) -> npt.NDArray[np.int64]:
    """:func:`summed`, for counts in NumPy."""
    return summed(torch.from_numpy(counts).to(device)).cpu().numpy()
