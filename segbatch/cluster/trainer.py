"""Trainer: Ray Train as a fine-tune job uses it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from ray.train import Checkpoint
from ray.train.torch import TorchConfig

# Where these are defined: for type checkers, `ray.train` still names those of Train V1.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.queue import Queue

from segbatch import signals, storage
from segbatch.cluster.workers import Workers
from segbatch.errors import Incomplete, JobFailed, SegbatchError
from segbatch.job import FinetuneJob
from segbatch.storage import one_line

POLL_S = 0.5


@dataclass(frozen=True)
class Ended:
    """How a training ended: what the first worker returned, and the best checkpoint."""

    returned: Any
    best: Checkpoint | None


def train(
    work: Callable[[Queue], Any],
    workers: Workers,
    job: FinetuneJob,
    training_uri: str,
    show: Callable[[dict[str, Any]], None],
) -> Ended:
    """Run ``work(listener)`` on every worker until it returns; lost ones are replaced.

    What workers put into the listener goes to ``show``. Checkpoints are below ``training_uri``,
    and a training that finds some there goes on from the last. Raises
    :class:`~segbatch.errors.JobFailed` where ``work`` fails, and
    :class:`~segbatch.errors.Incomplete` where workers are lost too often.
    """
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    listener = Queue(actor_options={"num_cpus": 0})
    filesystem, path = storage.arrow_filesystem(training_uri)
    low, high = workers.size
    trainer = TorchTrainer(
        partial(work, listener),
        torch_config=TorchConfig(backend="nccl" if workers.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=bool(workers.num_gpus),
            resources_per_worker={"CPU": workers.num_cpus}
            | ({"GPU": workers.num_gpus} if workers.num_gpus else {}),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.limits.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=job.keep_checkpoints, checkpoint_score_attribute="miou"
            ),
        ),
    )
    outcome: list[Result | BaseException] = []

    def fit() -> None:
        try:
            outcome.append(cast(Result, trainer.fit()))
        except BaseException as error:
            outcome.append(error)

    # In a thread: it blocks, and this one has to see signals and to show what is going on.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        signals.check()
        thread.join(POLL_S)
        _drain(listener, show)
    [ended] = outcome
    if isinstance(ended, Result):
        return Ended(ended.return_value, ended.get_best_checkpoint("miou", "max"))
    raise _explained(ended)


def _drain(listener: Queue, show: Callable[[dict[str, Any]], None]) -> None:
    try:
        for item in listener.get_nowait_batch(listener.qsize()):
            show(item)
    except (queue.Empty, RayActorError):
        pass


def _explained(error: BaseException) -> Exception:
    if not isinstance(error, TrainingFailedError):
        return JobFailed(f"training: {one_line(error)}")
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for cause in causes:
        known = cause.cause if isinstance(cause, RayTaskError) else cause
        if isinstance(known, SegbatchError):
            return known
    if causes and all(isinstance(cause, RayActorError) for cause in causes):
        return Incomplete(
            "training: workers were lost more often than limits.max_failures allows; run it again"
            " to go on from the last checkpoint"
        )
    return JobFailed(f"training: {one_line(causes[0] if causes else error)}")
