"""What each worker of a training does, from start to end.

Every worker keeps the same network. It does its share of each step, exchanges gradients with the
others, and after every epoch predicts its share of ``val``; the scores of the epoch are those of
the counts of all workers together. Only the first worker writes the journal and the checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbatch.config.job import Predict
from segbatch.config.training import Train
from segbatch.jobs.runtime.trainer import TrainWorker
from segbatch.labels.dataset import Dataset
from segbatch.labels.samples import Samples, copy_split
from segbatch.model import weights
from segbatch.model.config import ModelConfig
from segbatch.model.device import resolve_precision
from segbatch.model.predict import Model
from segbatch.results.lease import WorkerLease
from segbatch.training import distributed
from segbatch.training.checkpoint import Best, load_checkpoint, save_checkpoint
from segbatch.training.confusion import by_class, number
from segbatch.training.examples import measure, training_example
from segbatch.training.journal import Journal
from segbatch.training.loader import Loader, Sampler
from segbatch.training.loss import NetworkWithLoss
from segbatch.training.step import Diverged, Training, set_threads


@dataclass(frozen=True)
class TrainingPlan:
    """What every worker needs to know; the same for all of them."""

    dataset: Dataset
    config: ModelConfig
    initial_weights: bytes  # of the network, safetensors
    train: Train
    class_weights: list[float] | None
    training_uri: str
    worker_lease: WorkerLease
    track: list[str]
    identity: dict[str, Any]  # of the job, for trackers
    num_micro_batches: int  # of a step, which the workers share

    @property
    def sampler(self) -> Sampler:
        num_images, train = self.dataset.num_rows("train"), self.train
        return Sampler(
            num_images, train.batch_size, self.num_micro_batches, train.epochs, train.seed
        )

    @property
    def cache(self) -> Path:
        """The local folder in which a node keeps the images of this training."""
        key = hashlib.sha256(f"{self.training_uri} {self.dataset.fingerprint}".encode())
        return Path(tempfile.gettempdir()) / f"segbatch-{key.hexdigest()[:16]}"


def train_worker(plan: TrainingPlan, worker: TrainWorker) -> str | None:
    """Copy the images to this node, train from the last checkpoint to the end, and clean up.

    Returns why the training diverged, ``None`` if it did not. Raises
    :class:`~segbatch.errors.Fenced` once another driver works on the training, or none does.
    """
    check_lease(plan)
    set_threads(worker.threads)
    share = slice(worker.local_rank, None, worker.local_world_size)
    for split in ("train", "val"):
        copy_split(plan.dataset, split, plan.cache, share)
    distributed.barrier()  # the other workers of this node have copied their shares
    divergence = train_epochs(plan, worker)
    distributed.barrier()  # all workers of this node are done with the cache
    shutil.rmtree(plan.cache, ignore_errors=True)
    return divergence


def check_lease(plan: TrainingPlan) -> None:
    """Raises :class:`~segbatch.errors.Fenced` if this training has another driver by now.

    A driver that was frozen, or is gone while Ray goes on, leaves workers that would write beside
    those of the next one.
    """
    with suppress(OSError):  # an outage of the storage does not answer the question
        plan.worker_lease.check()


def train_epochs(plan: TrainingPlan, worker: TrainWorker) -> str | None:
    """Train from the last checkpoint, or the start, to the last epoch.

    Returns why the training diverged, ``None`` if it did not.
    """
    train, sampler = plan.train, plan.sampler
    training = make_training(plan, worker)
    best, epoch = Best(), 0
    with worker.last_checkpoint() as folder:
        if folder is not None:
            checkpoint = load_checkpoint(folder)
            training.load_state_dict(checkpoint.training)
            best, epoch = checkpoint.best, checkpoint.metrics["epoch"]
    if best.should_stop(epoch, train.early_stopping):
        return None

    loader = make_loader(plan, worker)
    val = Samples(plan.dataset, "val", plan.cache)
    epoch_after = {sampler.last_step(epoch): epoch + 1 for epoch in range(train.epochs)}
    with open_journal(plan, worker, training.step) as journal:
        began = time.perf_counter()
        for micro_batches in loader.steps(training.step):
            try:
                loss = training.run_step(micro_batches)
            except Diverged as diverged:
                return str(diverged)
            if journal is not None:
                facts = {
                    "step": training.step,
                    "epoch": round(training.images_seen / sampler.num_images, 3),
                    "loss": loss,
                    "lr": training.lr,
                    "seconds": round(time.perf_counter() - began, 4),
                    "waited_seconds": round(loader.pop_wait_seconds(), 4),
                }
                journal.step(**facts)
                worker.send_progress(facts)
            if training.step in epoch_after:
                check_lease(plan)
                epoch = epoch_after[training.step]
                metrics = {"epoch": epoch, **validate(training, val, plan, worker)}
                if metrics["miou"] > best.miou:
                    best = Best(metrics["miou"], epoch)
                if journal is not None:
                    journal.epoch(step=training.step, **metrics)
                    worker.send_progress(
                        {"epoch": epoch, "miou": metrics["miou"], "best": best.miou}
                    )
                save_epoch(training, metrics, best, worker)
                if best.should_stop(epoch, train.early_stopping):
                    return None
            began = time.perf_counter()
    return None


def make_training(plan: TrainingPlan, worker: TrainWorker) -> Training:
    """The training at its start."""
    config, train = plan.config, plan.train
    network = config.build(auxiliary=True)
    network.load_state_dict(
        weights.decode_safetensors(plan.initial_weights, "the weights at the start")
    )
    return Training(
        NetworkWithLoss(network, train.loss, config.mean, config.std, plan.class_weights),
        network.get_submodule(network.trunk_key),
        plan.sampler,
        train,
        device=worker.device,
        precision=resolve_precision(train.precision, worker.device),
    )


def make_loader(plan: TrainingPlan, worker: TrainWorker) -> Loader:
    images = Samples(plan.dataset, "train", plan.cache)
    return Loader(
        lambda index: training_example(images[index], plan.train.long_side),
        images.image_ids,
        plan.sampler,
        plan.train,
        fill=plan.config.fill,
        rank=worker.rank,
        world_size=worker.world_size,
        threads=worker.threads,
        pin_memory=worker.device.type == "cuda",
    )


def open_journal(
    plan: TrainingPlan, worker: TrainWorker, step: int
) -> closing[Journal] | nullcontext[None]:
    """The journal from ``step`` on, on the first worker; ``None`` on the others."""
    if worker.rank != 0:
        return nullcontext()
    return closing(Journal(plan.training_uri, step, plan.track, plan.identity))


def validate(
    training: Training, val: Samples, plan: TrainingPlan, worker: TrainWorker
) -> dict[str, Any]:
    """Predict this worker's share of ``val`` as the segment job does; the scores of all workers."""
    training.average_statistics()
    options = Predict(precision=plan.train.precision)
    model = Model(training.network, plan.config, training.device, options, confidence=False)
    share = range(worker.rank, len(val), worker.world_size)
    confusion = measure(model, (val[index] for index in share))
    confusion.counts = distributed.all_sum_counts(confusion.counts, training.device)
    return {
        "miou": number(confusion.miou()) or 0.0,
        "pixel_accuracy": number(confusion.pixel_accuracy()) or 0.0,
        "mean_accuracy": number(confusion.mean_accuracy()) or 0.0,
        "iou": by_class(confusion.iou(), plan.config.classes),
    }


def save_epoch(
    training: Training, metrics: Mapping[str, Any], best: Best, worker: TrainWorker
) -> None:
    """Report the epoch; the first worker adds the checkpoint. All workers wait for each other."""
    if worker.rank != 0:
        worker.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), training.state_dict(), metrics, best)
        worker.report(metrics, Path(folder))
