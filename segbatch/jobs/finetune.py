"""Fine-tune: a labelled dataset in, a model out. The whole job, from top to bottom, on Ray Train.

What each worker does stands in :mod:`segbatch.jobs.epochs`. The driver looks at everything before
it asks for workers, replaces those that are lost, and makes a bundle of the best epoch's
checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import safetensors.torch

from segbatch import storage
from segbatch.config.job import FinetuneJob, Job, load_kind
from segbatch.config.training import Network, Start
from segbatch.console import say
from segbatch.errors import InputError, JobFailed, SourceError
from segbatch.jobs.epochs import Plan, train_epochs
from segbatch.jobs.preflight import check_output
from segbatch.jobs.progress import TrainProgress
from segbatch.jobs.runtime.trainer import Ended, train
from segbatch.jobs.runtime.workers import Workers, connected, resolve_device, share_out_training
from segbatch.jobs.trainstate import TrainState
from segbatch.labels.dataset import Dataset, open_dataset
from segbatch.masks import decode_mask
from segbatch.model import bundle, zoo
from segbatch.results.lease import Lease
from segbatch.signals import interruptible
from segbatch.training.journal import check_trackers, curves, read_journal
from segbatch.training.loop import load_checkpoint
from segbatch.training.recipe import median_frequency, seed_everything
from segbatch.training.start import start


def finetune(job: str | Mapping[str, Any] | Job) -> dict[str, Any]:
    """Train the model of a job, or go on with it; returns facts about what it came to.

    A finished training is left as it is. Raises :class:`~segbatch.errors.InputError` for what is
    wrong with the job, :class:`~segbatch.errors.JobFailed` where it cannot go on, and
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = load_kind(job, FinetuneJob)
    check_trackers(job.track)
    uri = storage.normalize(job.output)
    dataset = open_labels(job)
    facts = {"uri": job.dataset, "fingerprint": dataset.fingerprint, "images": dataset.splits}
    with interruptible():
        state = TrainState.open(uri, job, facts, start_sha256(job))
        if state.finished:
            say(f"{uri}: is trained already")
            return state.summary()
        check_output(uri)
        plan = make_plan(job, dataset, state)
        with Lease(uri, say), connected(say):
            device = resolve_device(job.resources)
            workers = share_out_training(job.resources, device)
            refuse_single_images(job, device)
            with state.guard():
                train_and_finish(job, replace(plan, threads=workers.num_cpus), workers, state)
    return state.summary()


def train_and_finish(job: FinetuneJob, plan: Plan, workers: Workers, state: TrainState) -> None:
    """From the first step, or the last checkpoint, to the model."""
    say(f"training on {workers} ({workers.device})")
    state.write("running")
    began = time.time()
    work = partial(train_epochs, plan)
    with TrainProgress(state.uri, plan.order().num_steps) as progress:
        ended = train(work, workers, job, state.training_uri, progress.show)
    note_start(state, workers, began)
    finish(job, plan, state, ended)


def open_labels(job: FinetuneJob) -> Dataset:
    """The dataset; raises :class:`~segbatch.errors.SourceError` if it cannot be trained on."""
    dataset = open_dataset(job.dataset)
    for split in ("train", "val"):
        if not dataset.num_rows(split):
            raise SourceError(
                f"{job.dataset}: has no images in {split}: import it with --split val=0.1"
            )
    return dataset


def start_sha256(job: FinetuneJob) -> str | None:
    """What the weights at the start are known by, where a file of the user's holds them."""
    if isinstance(job.model, Start):
        return bundle.fingerprint(job.model.bundle)
    uri = job.model.backbone_weights
    return None if uri in (None, "imagenet") else bundle.file_sha256(uri)


def make_plan(job: FinetuneJob, dataset: Dataset, state: TrainState) -> Plan:
    """Build the network here, once: what is wrong with it is found before any worker starts."""
    seed_everything(job.train.seed)
    network, config = start(job.model, dataset.classes, say)
    weights = job.train.loss.class_weights
    if isinstance(weights, list) and len(weights) != len(dataset.classes):
        raise InputError(
            f"train.loss.class_weights: {len(weights)} weights for {len(dataset.classes)} classes:"
            f" {', '.join(dataset.classes.names)}"
        )
    return Plan(
        dataset=dataset,
        config=replace(config, long_side=job.train.long_side),
        start=safetensors.torch.save(network.state_dict()),
        train=job.train,
        class_weights=frequency_weights(dataset) if weights == "median_frequency" else weights,
        training_uri=state.training_uri,
        track=list(job.track),
        identity=job.identity(),
        threads=1,
        parts=job.resources.num_workers[1] * job.train.accumulation,
    )


def frequency_weights(dataset: Dataset) -> list[float]:
    """A weight per class, from the masks of ``train``."""
    num_classes = len(dataset.classes)
    pixels, of_images = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for table in dataset.tables("train", ["mask"]):
        for mask in table["mask"].to_pylist():
            label_map = decode_mask(mask["bytes"])
            counts = np.bincount(label_map.ravel(), minlength=256)[:num_classes]
            pixels += counts
            of_images += np.where(counts > 0, label_map.size, 0)
    return list(median_frequency(pixels, of_images))


def refuse_single_images(job: FinetuneJob, device: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` where batch norm would see one image alone."""
    low, high = job.resources.num_workers
    synchronised = device == "cuda" and low > 1
    alone = job.train.batch_size == high * job.train.accumulation
    if alone and not synchronised and job.train.freeze != "batchnorm":
        raise InputError(
            f"train.batch_size: {job.train.batch_size} leaves one image at a time to each worker,"
            f" and batch norm has no variance of one: make it {2 * job.train.batch_size}, or set"
            " train.freeze: batchnorm"
        )


def note_start(state: TrainState, workers: Workers, began: float) -> None:
    state.info["starts"].append(
        {"at": began, "workers": str(workers), "device": workers.device,
         "seconds": round(time.time() - began, 1)}
    )  # fmt: skip


def finish(job: FinetuneJob, plan: Plan, state: TrainState, ended: Ended) -> None:
    """Make a bundle of the best epoch's checkpoint, with its card and its learning curves.

    Raises :class:`~segbatch.errors.JobFailed` for a training that diverged.
    """
    if ended.returned is not None:
        lr = job.train.optimizer.lr
        raise JobFailed(
            f"training diverged: {ended.returned}: lower train.optimizer.lr (it is {lr:g}),"
            " or raise train.schedule.warmup, and choose a new output"
        )
    with ended.best_checkpoint() as folder:
        saved = load_checkpoint(folder)
    network = plan.config.build()
    network.load_state_dict(zoo.without_auxiliary(saved.network))
    metrics = saved.metrics
    config = replace(plan.config, metrics=metrics, provenance=provenance(job, plan, state))
    picture = curves(read_journal(state.training_uri))
    storage.write_bytes(storage.join(state.training_uri, "curves.png"), picture)
    bundle.save_bundle(state.uri, network, config)
    state.write("complete", metrics=metrics)
    say(f"{state.uri}: mIoU {metrics['miou']:.4f} on val, of epoch {metrics['epoch']}")


def provenance(job: FinetuneJob, plan: Plan, state: TrainState) -> dict[str, Any]:
    """Where a model comes from, for its card."""
    began: Any = {"started_from": plan.config.provenance.get("started_from")}
    if isinstance(job.model, Network):
        began = {"backbone_weights": job.model.backbone_weights}
    return {
        "trained_on": state.info["dataset"],
        **began,
        "recipe": job.train.model_dump(mode="json"),
        "class_weights": plan.class_weights,
        "software": state.info["software"],
        "starts": state.info["starts"],
    }
