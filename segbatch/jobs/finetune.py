"""The fine-tune job: a labelled dataset in, a model out, on Ray Train.

The driver checks everything before it asks for workers, has lost ones replaced, and makes a bundle
of the best epoch's checkpoint. What each worker does is in :mod:`segbatch.jobs.epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import safetensors.torch

from segbatch import storage
from segbatch.config.job import FinetuneJob, Job, load_kind
from segbatch.config.training import FromBackbone, FromBundle, with_recipe
from segbatch.console import say
from segbatch.errors import InputError, JobFailed, SourceError
from segbatch.jobs.epochs import TrainingPlan, train_worker
from segbatch.jobs.preflight import check_output
from segbatch.jobs.progress import TrainProgress
from segbatch.jobs.runtime.trainer import TrainResult, run_workers
from segbatch.jobs.runtime.workers import choose_device, connected, share_out_training
from segbatch.jobs.trainstate import TrainState
from segbatch.labels.dataset import Dataset, open_dataset
from segbatch.model import bundle
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD
from segbatch.results.lease import Lease, WorkerLease
from segbatch.signals import interruptible
from segbatch.training.checkpoint import load_checkpoint
from segbatch.training.journal import learning_curves, read_journal
from segbatch.training.network import build_network
from segbatch.training.recipe import class_pixels, median_frequency_weights, seed_everything
from segbatch.training.trackers import check_trackers


def finetune(job: str | Mapping[str, Any] | Job) -> dict[str, Any]:
    """Train the model of a job, or resume its training; returns facts about the result.

    A finished training is left as it is. Raises :class:`~segbatch.errors.InputError` for what is
    wrong with the job, :class:`~segbatch.errors.JobFailed` if the training fails, and
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = with_recipe_of_network(load_kind(job, FinetuneJob))
    check_trackers(job.track)
    uri = storage.normalize(job.output)
    dataset = open_labels(job)
    open_state = partial(TrainState.open, uri, job, dataset, initial_sha256(job))
    with storage.translate_errors("storage:"), interruptible():
        state = open_state()
        if not state.finished:
            check_output(uri)
            with Lease(uri, say) as lease:
                state = open_state()  # another driver may have written to it meanwhile
                state.worker_lease = lease.worker_lease
                if not state.finished:
                    train(job, dataset, state, lease)
                    return state.summary()
        say(f"{uri}: is already trained")
        return state.summary()


def train(job: FinetuneJob, dataset: Dataset, state: TrainState, lease: Lease) -> None:
    """Train on Ray, from the last checkpoint or the start, and make the model."""
    if not state.info["starts"]:
        refuse_empty_classes(job, dataset)
    plan = make_training_plan(job, dataset, state, lease.worker_lease)
    with connected(say):
        workers = share_out_training(job.resources, choose_device(job.resources))
        check_batch_norm(job, workers.device)
        with state.start(workers):
            say(f"training on {workers} ({workers.device})")
            with TrainProgress(state.uri, plan.sampler.num_steps) as progress:

                def on_progress(facts: dict[str, Any]) -> None:
                    progress.show(facts)
                    if "miou" in facts:  # the end of an epoch
                        with suppress(OSError):  # the next one follows
                            state.write("running")

                result = run_workers(
                    partial(train_worker, plan),
                    workers,
                    state.training_uri,
                    keep_checkpoints=job.keep_checkpoints,
                    max_failures=job.limits.max_failures,
                    check=lease.check,
                    on_progress=on_progress,
                )
            state.write("running")
            save_model(job, plan, state, result)


def with_recipe_of_network(job: FinetuneJob) -> FinetuneJob:
    """The job with the recipe of its network in the keys of ``train`` that it leaves out."""
    keys = job.model
    if isinstance(keys, FromBundle):
        config = bundle.load_config(keys.bundle)
        arch, backbone = config.arch, config.backbone
    else:
        arch, backbone = keys.arch, keys.backbone
    train = with_recipe(job.train, arch, backbone)
    if train == job.train:
        return job
    optimizer = train.optimizer
    say(
        f"the recipe of {arch}: {optimizer.name}, lr {optimizer.lr:g}, head × "
        f"{optimizer.head_lr_factor:g}, {train.schedule.name}"
    )
    return job.model_copy(update={"train": train})


def open_labels(job: FinetuneJob) -> Dataset:
    """The dataset; raises :class:`~segbatch.errors.SourceError` if it cannot be trained on."""
    dataset = open_dataset(job.dataset)
    for split in ("train", "val"):
        if not dataset.num_rows(split):
            raise SourceError(
                f"{job.dataset}: has no images in {split}: import it with --split val=0.1"
            )
    return dataset


def refuse_empty_classes(job: FinetuneJob, dataset: Dataset) -> None:
    """Raises :class:`~segbatch.errors.SourceError` if classes have no pixel to learn from."""
    pixels = class_pixels(dataset)
    if not pixels.any():
        raise SourceError(
            f"{job.dataset}: every pixel of train is void: nothing can be learnt; import the"
            " labels again, and see what was left out"
        )
    empty = [c.name for c in dataset.classes if not pixels[c.id]]
    present = [c.name for c in dataset.classes if pixels[c.id]]
    if len(present) == 1:
        raise SourceError(
            f"{job.dataset}: train has pixels of {present[0]} alone: nothing can be learnt from one"
            " class; import the labels again with a second one, for instance of the pixels that no"
            f" shape covers: --classes background,{present[0]} --unlabelled background"
        )
    if empty and not job.limits.allow_empty_classes:
        raise SourceError(
            f"{job.dataset}: train has no pixel of {', '.join(empty)}: import labels of"
            f" {'it' if len(empty) == 1 else 'them'}, or set limits.allow_empty_classes: true"
        )


def initial_sha256(job: FinetuneJob) -> str | None:
    """The SHA-256 of the weights that training starts from, if they are in a file of the user's."""
    if isinstance(job.model, FromBundle):
        return bundle.fingerprint(job.model.bundle)
    uri = job.model.backbone_weights
    return None if uri in (None, "imagenet") else bundle.file_sha256(uri)


def make_training_plan(
    job: FinetuneJob, dataset: Dataset, state: TrainState, worker_lease: WorkerLease
) -> TrainingPlan:
    """The plan for all workers. Builds the network, so that its faults show before they start."""
    seed_everything(job.train.seed)
    network, config = build_network(job.model, dataset.classes, say)
    if isinstance(job.model, FromBackbone) and not state.normalises_as_backbone:
        config = replace(config, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    weights = job.train.loss.class_weights
    if isinstance(weights, list) and len(weights) != len(dataset.classes):
        raise InputError(
            f"train.loss.class_weights: {len(weights)} weights for {len(dataset.classes)} classes:"
            f" {', '.join(dataset.classes.names)}"
        )
    return TrainingPlan(
        dataset=dataset,
        config=replace(config, long_side=job.train.long_side),
        initial_weights=safetensors.torch.save(network.state_dict()),
        train=job.train,
        class_weights=(
            median_frequency_weights(dataset) if weights == "median_frequency" else weights
        ),
        training_uri=state.training_uri,
        worker_lease=worker_lease,
        track=list(job.track),
        identity=job.identity(),
        num_micro_batches=job.resources.num_workers[1] * job.train.accumulation,
    )


def check_batch_norm(job: FinetuneJob, device: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` if batch norm would see one image at a time."""
    low, high = job.resources.num_workers
    parts = high * job.train.accumulation
    in_step = all(parts % workers == 0 for workers in range(low, high + 1))  # as in `Training`
    synchronised = device == "cuda" and low > 1 and in_step
    single = job.train.batch_size == parts
    if single and not synchronised and job.train.freeze != "batchnorm":
        raise InputError(
            f"train.batch_size: {job.train.batch_size} leaves one image at a time to each worker,"
            f" and batch norm has no variance of one: make it {2 * job.train.batch_size}, or set"
            " train.freeze: batchnorm"
        )


def save_model(
    job: FinetuneJob, plan: TrainingPlan, state: TrainState, result: TrainResult
) -> None:
    """Make a bundle of the best epoch's checkpoint, with its card and its learning curves.

    Raises :class:`~segbatch.errors.JobFailed` if the training diverged.
    """
    divergence = result.returned
    if divergence is not None:
        lr = job.train.optimizer.lr
        raise JobFailed(
            f"training diverged: {divergence}: lower train.optimizer.lr (it is {lr:g}),"
            " or raise train.schedule.warmup, and choose a new output"
        )
    with result.best_checkpoint() as folder:
        checkpoint = load_checkpoint(folder)
    network = plan.config.build()
    network.load_state_dict(network.without_auxiliary(checkpoint.network))
    metrics = checkpoint.metrics
    config = replace(plan.config, metrics=metrics, provenance=provenance(job, plan, state))
    picture = learning_curves(read_journal(state.training_uri))
    storage.write_bytes(storage.join(state.training_uri, "curves.png"), picture)
    bundle.save_bundle(state.uri, network, config)
    state.write("complete", metrics=metrics)
    say(f"{state.uri}: mIoU {metrics['miou']:.4f} on val, in epoch {metrics['epoch']}")


def provenance(job: FinetuneJob, plan: TrainingPlan, state: TrainState) -> dict[str, Any]:
    """Where a model comes from, for its card."""
    began: Any = {"started_from": plan.config.provenance.get("started_from")}
    if isinstance(job.model, FromBackbone):
        began = {"backbone_weights": job.model.backbone_weights}
    return {
        "trained_on": state.info["dataset"],
        **began,
        "recipe": job.train.model_dump(mode="json"),
        "class_weights": plan.class_weights,
        "software": state.info["software"],
        "starts": state.info["starts"],
    }
