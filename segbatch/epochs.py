"""Epochs: what each worker of a training does, from its start to its end.

Every worker keeps the same network. It takes its part of each step, shares gradients with the
others, and after every epoch predicts its part of ``val``; the sum of all workers' counts is what
the epoch is worth. The first worker writes the journal and the checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.util.queue import Queue

from segbatch.examples import example, measure
from segbatch.jobtrain import Train
from segbatch.labels import samples
from segbatch.labels.dataset import Dataset
from segbatch.labels.samples import Samples
from segbatch.model import weights
from segbatch.model.bundle import ModelConfig
from segbatch.model.predict import Model, PredictOptions, resolve_precision
from segbatch.training.journal import Journal
from segbatch.training.loader import Loader
from segbatch.training.loop import Diverged, Training, summed_counts
from segbatch.training.loss import Objective
from segbatch.training.metrics import ConfusionMatrix, by_class, number
from segbatch.training.order import Order

STATE = "state.pt"


@dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    dataset: Dataset
    config: ModelConfig
    start: bytes  # the network's weights at the start, safetensors
    train: Train
    class_weights: list[float] | None
    training_uri: str
    track: list[str]
    identity: dict[str, Any]
    threads: int
    parts: int  # of a step, which the workers share out among themselves

    @property
    def cache(self) -> Path:
        """Where a node keeps the images of this training."""
        key = hashlib.sha256(f"{self.training_uri} {self.dataset.fingerprint}".encode())
        return Path(tempfile.gettempdir()) / f"segbatch-{key.hexdigest()[:16]}"

    def order(self) -> Order:
        num_images, train = self.dataset.num_rows("train"), self.train
        return Order(num_images, train.batch_size, self.parts, train.epochs, train.seed)


@dataclass
class Best:
    """The best epoch so far."""

    miou: float = -1.0
    epoch: int = 0

    def worn_out(self, epoch: int, patience: int | None) -> bool:
        """Whether ``patience`` epochs have gone by without a better one."""
        return patience is not None and epoch - self.epoch >= patience


def train_epochs(plan: Plan, listener: Queue) -> str | None:
    """The whole life of one worker; ``listener`` takes what the driver shows.

    Returns why the training cannot go on, ``None`` at its end.
    """
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(plan.threads)
    share = slice(context.get_local_rank(), None, context.get_local_world_size())
    for split in ("train", "val"):
        samples.copy(plan.dataset, split, plan.cache, share)
    dist.barrier()  # the others of this node have copied theirs
    trouble = run_epochs(plan, listener, rank, world_size)
    dist.barrier()  # nobody comes for them any more
    shutil.rmtree(plan.cache, ignore_errors=True)
    return trouble


def run_epochs(plan: Plan, listener: Queue, rank: int, world_size: int) -> str | None:
    """Step after step from the last checkpoint on, and after every epoch its scores."""
    device = ray.train.torch.get_device()

    train, order = plan.train, plan.order()
    training = make_training(plan, device)
    best, epoch = restore(training)
    held_out = Samples(plan.dataset, "val", plan.cache)
    journal = None
    if rank == 0:
        journal = Journal(plan.training_uri, training.step, plan.track, plan.identity)
    loader = make_loader(plan, rank, world_size, pinned=device.type == "cuda")
    ends = {order.epoch_ends(epoch): epoch + 1 for epoch in range(train.epochs)}
    if best.worn_out(epoch, train.early_stopping):
        return None
    began = time.perf_counter()
    for parts in loader.steps(training.step):
        try:
            loss = training.run_step(parts)
        except Diverged as diverged:
            return str(diverged)
        if journal is not None:
            now = time.perf_counter()
            facts = {
                "step": training.step,
                "epoch": round(training.seen / order.num_images, 3),
                "loss": loss,
                "lr": training.lr,
                "seconds": round(now - began, 4),
                "waited_seconds": round(loader.take_waited(), 4),
            }
            journal.step(**facts)
            listener.put(facts)
            began = now
        if training.step in ends:
            epoch = ends[training.step]
            metrics = validate(training, held_out, plan, rank, world_size)
            if metrics["miou"] > best.miou:
                best = Best(metrics["miou"], epoch)
            if journal is not None:
                journal.epoch(step=training.step, epoch=epoch, **metrics)
                listener.put({"epoch": epoch, "miou": metrics["miou"], "best": best.miou})
            report(training, {"epoch": epoch, **metrics}, best, rank)
            if best.worn_out(epoch, train.early_stopping):
                return None
            began = time.perf_counter()
    return None


def make_training(plan: Plan, device: torch.device) -> Training:
    network = plan.config.build(auxiliary=True)
    network.load_state_dict(weights.decode_safetensors(plan.start, "the weights at the start"))
    config, train = plan.config, plan.train
    return Training(
        Objective(network, train.loss, config.mean, config.std, plan.class_weights),
        network.get_submodule(network.trunk_key),
        plan.order(),
        train,
        device=device,
        precision=resolve_precision(train.precision, device),
    )


def make_loader(plan: Plan, rank: int, world_size: int, *, pinned: bool) -> Loader:
    images = Samples(plan.dataset, "train", plan.cache)
    return Loader(
        lambda index: example(images[index], plan.train.long_side),
        images.image_ids,
        plan.order(),
        plan.train,
        fill=plan.config.fill,
        rank=rank,
        world_size=world_size,
        threads=plan.threads,
        pinned=pinned,
    )


def validate(
    training: Training, held_out: Samples, plan: Plan, rank: int, world_size: int
) -> dict[str, Any]:
    """The scores over ``val``, of which every worker predicts its part as the segment job does."""
    training.settle()
    classes = plan.config.classes
    options = PredictOptions(precision=plan.train.precision, confidence=False)
    model = Model(training.network, plan.config, training.device, options)
    confusion = ConfusionMatrix(len(classes))
    mine = range(rank, len(held_out), world_size)
    measure(model, (held_out[index] for index in mine), confusion)
    confusion.counts = summed_counts(confusion.counts, training.device)
    return {
        "miou": number(confusion.miou()) or 0.0,
        "pixel_accuracy": number(confusion.pixel_accuracy()) or 0.0,
        "mean_accuracy": number(confusion.mean_accuracy()) or 0.0,
        "iou": by_class(confusion.iou(), classes),
    }


def report(training: Training, metrics: Mapping[str, Any], best: Best, rank: int) -> None:
    """Tell Ray of an epoch; all workers wait for each other here, and the first one saves."""
    if rank != 0:
        ray.train.report(dict(metrics))
        return
    state = {
        "training": training.state_dict(),
        "best": {"miou": best.miou, "epoch": best.epoch},
        "metrics": dict(metrics),
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE)
        ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


def restore(training: Training) -> tuple[Best, int]:
    """Go on from the last checkpoint, if there is one; returns the best epoch and the last."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Best(), 0
    state = read_checkpoint(checkpoint)
    training.load_state_dict(state["training"])
    return Best(**state["best"]), state["metrics"]["epoch"]


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`report` saved, on the CPU."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder) / STATE, map_location="cpu", weights_only=True
        )
    return state
