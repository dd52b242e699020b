"""One step of a training after another, on one worker or on several in lockstep.

Where ``torch.distributed`` is set up, gradients, losses and statistics are those of all workers.
Everything random follows from the seed and the step, so a checkpoint needs to hold only the
network, the optimizer, the loss scaler and the number of steps done.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segbatch.config.training import Train
from segbatch.model.device import DTYPES
from segbatch.training import distributed
from segbatch.training.loader import Batch, Sampler
from segbatch.training.loss import NetworkWithLoss
from segbatch.training.recipe import (
    batch_norms,
    make_optimizer,
    seed_everything,
    set_learning_rates,
    set_train_mode,
    synchronise_norms,
)


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Training:
    """A network in training, with its optimizer; ``step`` counts completed steps.

    ``backbone`` is the network's submodule, ``precision`` is ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(
        self,
        network_with_loss: NetworkWithLoss,
        backbone: nn.Module,
        sampler: Sampler,
        train: Train,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        self.train = train
        self.sampler = sampler
        self.device = device
        self.step = 0
        self.lr = 0.0
        """Learning rate of the backbone in the last step."""
        self._backbone = backbone
        self._dtype = DTYPES[precision]
        self._world_size = distributed.world_size()
        # Synchronised norms wait for each other, so all workers must do as many micro-batches.
        in_step = sampler.num_micro_batches % self._world_size == 0
        if device.type == "cuda" and self._world_size > 1 and in_step:
            network_with_loss = cast(NetworkWithLoss, synchronise_norms(network_with_loss))
        # Channels last: faster on CPUs too.
        self._loss = network_with_loss.to(device).to(memory_format=torch.channels_last)
        self.network = network_with_loss.network
        set_train_mode(self.network, backbone, train.freeze)
        self.optimizer = make_optimizer(self.network, backbone, train)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._shared_loss: nn.Module = self._loss
        if self._world_size > 1:
            # Statistics of norms are averaged only when they are used (`average_statistics`), and
            # some backbones (efficientnet) have weights that the loss does not depend on.
            self._shared_loss = DistributedDataParallel(
                self._loss, broadcast_buffers=False, find_unused_parameters=True
            )

    @property
    def images_seen(self) -> int:
        return self.step * self.sampler.batch_size

    def run_step(self, micro_batches: list[Batch]) -> float:
        """Do one step on this worker's micro-batches; returns the mean loss over all workers.

        Raises :class:`Diverged`, on all workers alike.
        """
        set_train_mode(self.network, self._backbone, self.train.freeze)
        seed_everything(self.train.seed, self.step, distributed.rank())  # for dropout
        share = set_learning_rates(
            self.optimizer, self.train.schedule, self.images_seen, self.sampler.total_images
        )
        self.lr = share * self.train.optimizer.lr
        # DDP takes the mean over workers, whose numbers of micro-batches may differ.
        weight = self._world_size / self.sampler.num_micro_batches
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches, 1):
            with self._sync_gradients(number == len(micro_batches)):
                loss = self._loss_of(batch) * weight
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        mean = distributed.all_sum(total).item() / self._world_size
        if not math.isfinite(mean):
            raise Diverged(f"the loss is {mean} at step {self.step + 1}")
        self.step += 1
        return mean

    def average_statistics(self) -> None:
        """Give all workers the mean of their norms' statistics, before the network is used."""
        if self._world_size == 1:
            return
        for norm in batch_norms(self.network):
            for buffer in (norm.running_mean, norm.running_var):
                if buffer is not None:
                    buffer.copy_(distributed.all_sum(buffer) / self._world_size)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to resume with the same numbers."""
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

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients with the last micro-batch of a step only."""
        if isinstance(self._shared_loss, DistributedDataParallel) and not last:
            return self._shared_loss.no_sync()
        return contextlib.nullcontext()

    def _loss_of(self, batch: Batch) -> Tensor:
        images, label_maps = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        autocast = self._dtype is not torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=autocast):
            loss: Tensor = self._shared_loss(images, label_maps)
        return loss


def set_threads(number: int) -> None:
    """Set the number of CPU threads that torch uses in this process."""
    torch.set_num_threads(number)
