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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbatch.config.training import Train
from segbatch.jobs.runtime.trainer import Worker
from segbatch.labels import samples
from segbatch.labels.dataset import Dataset
from segbatch.labels.samples import Samples
from segbatch.model import weights
from segbatch.model.config import ModelConfig
from segbatch.model.predict import Model, PredictOptions, resolve_precision
from segbatch.training.examples import example, measure
from segbatch.training.journal import Journal
from segbatch.training.loader import Loader, Order
from segbatch.training.loop import (
    Best,
    Diverged,
    Training,
    load_checkpoint,
    meet,
    save_checkpoint,
    summed_counts,
    use_threads,
)
from segbatch.training.loss import Objective
from segbatch.training.metrics import ConfusionMatrix, by_class, number


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


def train_epochs(plan: Plan, worker: Worker) -> str | None:
    """The whole life of one worker.

    Returns why the training cannot go on, ``None`` at its end.
    """
    use_threads(plan.threads)
    share = slice(worker.local_rank, None, worker.local_world_size)
    for split in ("train", "val"):
        samples.copy(plan.dataset, split, plan.cache, share)
    meet()  # the others of this node have copied theirs
    trouble = run_epochs(plan, worker)
    meet()  # nobody comes for them any more
    shutil.rmtree(plan.cache, ignore_errors=True)
    return trouble


def run_epochs(plan: Plan, worker: Worker) -> str | None:
    """What is left of the training after the last checkpoint."""
    training, best, epoch = make_training(plan, worker)
    if best.worn_out(epoch, plan.train.early_stopping):
        return None
    if worker.rank != 0:
        return run_steps(plan, worker, training, best, None)
    log = Journal(plan.training_uri, training.step, plan.track, plan.identity)
    with closing(log) as journal:
        return run_steps(plan, worker, training, best, journal)


def run_steps(
    plan: Plan, worker: Worker, training: Training, best: Best, journal: Journal | None
) -> str | None:
    """Step after step, and after every epoch its scores."""
    train, order = plan.train, plan.order()
    held_out = Samples(plan.dataset, "val", plan.cache)
    loader = make_loader(plan, worker)
    ends = {order.epoch_ends(epoch): epoch + 1 for epoch in range(train.epochs)}
    began = time.perf_counter()
    for parts in loader.steps(training.step):
        try:
            loss = training.run_step(parts)
        except Diverged as diverged:
            return str(diverged)
        if journal is not None:
            facts = {
                "step": training.step,
                "epoch": round(training.seen / order.num_images, 3),
                "loss": loss,
                "lr": training.lr,
                "seconds": round(time.perf_counter() - began, 4),
                "waited_seconds": round(loader.take_waited(), 4),
            }
            journal.step(**facts)
            worker.tell(facts)
        if training.step in ends:
            epoch = ends[training.step]
            metrics = {"epoch": epoch, **validate(training, held_out, plan, worker)}
            if metrics["miou"] > best.miou:
                best = Best(metrics["miou"], epoch)
            if journal is not None:
                journal.epoch(step=training.step, **metrics)
                worker.tell({"epoch": epoch, "miou": metrics["miou"], "best": best.miou})
            report(training, metrics, best, worker)
            if best.worn_out(epoch, train.early_stopping):
                return None
        began = time.perf_counter()
    return None


def make_training(plan: Plan, worker: Worker) -> tuple[Training, Best, int]:
    """The training as the last checkpoint left it, or at its start; the best epoch, the last."""
    config, train = plan.config, plan.train
    network = config.build(auxiliary=True)
    network.load_state_dict(weights.decode_safetensors(plan.start, "the weights at the start"))
    training = Training(
        Objective(network, train.loss, config.mean, config.std, plan.class_weights),
        network.get_submodule(network.trunk_key),
        plan.order(),
        train,
        device=worker.device,
        precision=resolve_precision(train.precision, worker.device),
    )
    with worker.last_checkpoint() as folder:
        if folder is None:
            return training, Best(), 0
        saved = load_checkpoint(folder)
    training.load_state_dict(saved.training)
    return training, saved.best, saved.metrics["epoch"]


def make_loader(plan: Plan, worker: Worker) -> Loader:
    images = Samples(plan.dataset, "train", plan.cache)
    return Loader(
        lambda index: example(images[index], plan.train.long_side),
        images.image_ids,
        plan.order(),
        plan.train,
        fill=plan.config.fill,
        rank=worker.rank,
        world_size=worker.world_size,
        threads=plan.threads,
        pinned=worker.device.type == "cuda",
    )


def validate(training: Training, held_out: Samples, plan: Plan, worker: Worker) -> dict[str, Any]:
    """The scores over ``val``, of which every worker predicts its part as the segment job does."""
    training.settle()
    classes = plan.config.classes
    options = PredictOptions(precision=plan.train.precision, confidence=False)
    model = Model(training.network, plan.config, training.device, options)
    confusion = ConfusionMatrix(len(classes))
    mine = range(worker.rank, len(held_out), worker.world_size)
    measure(model, (held_out[index] for index in mine), confusion)
    confusion.counts = summed_counts(confusion.counts, training.device)
    return {
        "miou": number(confusion.miou()) or 0.0,
        "pixel_accuracy": number(confusion.pixel_accuracy()) or 0.0,
        "mean_accuracy": number(confusion.mean_accuracy()) or 0.0,
        "iou": by_class(confusion.iou(), classes),
    }


def report(training: Training, metrics: Mapping[str, Any], best: Best, worker: Worker) -> None:
    """The end of an epoch, where all workers wait for each other and the first one saves."""
    if worker.rank != 0:
        worker.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), training, metrics, best)
        worker.report(metrics, Path(folder))
