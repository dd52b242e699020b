"""Ray Train: starts the workers of a fine-tune job, which each call one function.

The driver calls :func:`run_workers`; the function gets a :class:`TrainWorker`, which knows the
worker's rank and passes checkpoints to Ray Train and progress to the driver.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray.train
from ray.exceptions import RayActorError
from ray.train import Checkpoint
from ray.train.torch import TorchConfig, get_device
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segbatch import signals, storage
from segbatch.errors import Incomplete, JobFailed
from segbatch.jobs.runtime.rayerrors import raised_on_purpose
from segbatch.jobs.runtime.workers import ON_RAY, Workers
from segbatch.storage import one_line

if TYPE_CHECKING:
    # Where these are defined: for type checkers, `ray.train` still names those of Train V1.
    from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    from ray.train.v2.api.result import Result
    from ray.train.v2.torch.torch_trainer import TorchTrainer
else:
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        Result,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
        WorkerGroupError,
    )
    from ray.train.torch import TorchTrainer

POLL_S = 0.5


@dataclass(frozen=True)
class TrainWorker:
    """One of the processes that train together.

    ``rank`` is 0 to ``world_size`` - 1 over all nodes, ``local_rank`` likewise on its node.
    ``device`` is a ``torch.device``; ``threads`` are those that the worker may use.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: Any
    threads: int
    _progress: Queue

    def send_progress(self, facts: Mapping[str, Any]) -> None:
        """Send progress to the driver, which shows it."""
        self._progress.put(dict(facts))

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Report the end of an epoch. All workers wait here for each other; one of them gives the
        folder with the checkpoint.
        """
        saved = None if checkpoint is None else Checkpoint.from_directory(checkpoint)
        ray.train.report(dict(metrics), checkpoint=saved)

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """A local folder with the last checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)


@dataclass(frozen=True)
class TrainResult:
    """What the first worker returned, and the best checkpoint."""

    returned: str | None
    _best: Checkpoint | None

    @contextmanager
    def best_checkpoint(self) -> Iterator[Path]:
        """A local folder with the checkpoint of the epoch with the best mIoU.

        Raises :class:`~segbatch.errors.JobFailed` if there is no checkpoint.
        """
        if self._best is None:
            raise JobFailed("the training ended without a checkpoint")
        with self._best.as_directory() as folder:
            yield Path(folder)


def run_workers(
    train_worker: Callable[[TrainWorker], str | None],
    workers: Workers,
    training_uri: str,
    *,
    keep_checkpoints: int,
    max_failures: int,
    check: Callable[[], None],
    on_progress: Callable[[dict[str, Any]], None],
) -> TrainResult:
    """Call ``train_worker`` on every worker and wait until it returns; replace lost workers.

    ``check`` is called twice a second and may raise what ends the wait; ``on_progress`` gets the
    progress that workers send. Checkpoints are below ``training_uri``; a training that has some
    already resumes from the last. Raises :class:`~segbatch.errors.JobFailed` where ``train_worker``
    fails, and :class:`~segbatch.errors.Incomplete` where workers are lost more often than
    ``max_failures``.
    """
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # On the driver's own node: workers that send progress must not depend on any other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Not `ray.train.report`, which makes all workers wait for each other at every step.
    progress = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    filesystem, path = storage.arrow_filesystem(training_uri)

    def run_worker() -> str | None:
        context = ray.train.get_context()
        worker = TrainWorker(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
            context.get_local_world_size(),
            get_device(),
            workers.num_cpus,
            progress,
        )
        return train_worker(worker)

    low, high = workers.size
    trainer = TorchTrainer(
        run_worker,
        torch_config=TorchConfig(backend="nccl" if workers.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high or low),
            use_gpu=bool(workers.num_gpus),
            resources_per_worker={"CPU": workers.num_cpus}
            | ({"GPU": workers.num_gpus} if workers.num_gpus else {}),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=keep_checkpoints, checkpoint_score_attribute="miou"
            ),
        ),
    )
    fitted: Future[Result] = Future()

    def fit() -> None:
        try:
            fitted.set_result(cast(Result, trainer.fit()))
        except BaseException as error:
            fitted.set_exception(error)

    # In a thread because it blocks, while this one handles signals and shows progress.
    threading.Thread(target=fit, daemon=True, name=ON_RAY).start()
    while not fitted.done():
        signals.check()
        check()
        wait([fitted], POLL_S)
        _take_progress(progress, on_progress)
    error = fitted.exception()
    if error is not None:
        raise _explained(error)
    result = fitted.result()
    best = result.get_best_checkpoint("miou", "max") if result.best_checkpoints else None
    return TrainResult(cast("str | None", result.return_value), best)


def _take_progress(progress: Queue, on_progress: Callable[[dict[str, Any]], None]) -> None:
    try:
        for facts in progress.get_nowait_batch(progress.qsize()):
            on_progress(facts)
    except (queue.Empty, RayActorError):
        pass


def _explained(error: BaseException) -> Exception:
    """The error of Ray Train as one of ours: the first that a worker raised on purpose, if any."""
    if not isinstance(error, TrainingFailedError):
        return JobFailed(f"training: {one_line(error)}")
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for cause in causes:
        if known := raised_on_purpose(cause):
            return known
    if causes and all(isinstance(cause, RayActorError) for cause in causes):
        return Incomplete(
            "training: workers were lost more often than limits.max_failures allows; run it again"
            " to resume from the last checkpoint"
        )
    return JobFailed(f"training: {one_line(causes[0] if causes else error)}")
