"""Trainer: Ray Train as a fine-tune job uses it, on the driver's side and on a worker's."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.train
from ray.exceptions import RayActorError, RayTaskError
from ray.train import Checkpoint
from ray.train.torch import TorchConfig, get_device

# Where these are defined: for type checkers, `ray.train` still names those of Train V1.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segbatch import signals, storage
from segbatch.config.job import FinetuneJob
from segbatch.errors import Incomplete, JobFailed, SegbatchError
from segbatch.jobs.runtime.workers import Workers
from segbatch.storage import one_line

POLL_S = 0.5


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; ``rank`` 0 is the first of ``world_size``, and
    ``local_rank`` 0 the first of its node. ``device`` is a ``torch.device``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: Any
    _listener: Queue

    @classmethod
    def here(cls, listener: Queue) -> Worker:
        """The worker that this process is."""
        context = ray.train.get_context()
        return cls(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
            context.get_local_world_size(),
            get_device(),
            listener,
        )

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Something for the driver to show."""
        self._listener.put(dict(facts))

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        """The end of an epoch, by all workers; one of them gives the folder to be kept."""
        saved = None if checkpoint is None else Checkpoint.from_directory(checkpoint)
        ray.train.report(dict(metrics), checkpoint=saved)

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """The folder that was kept last, if any, as it is needed on this node."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)


@dataclass(frozen=True)
class Ended:
    """How a training ended: what the first worker returned, and the best checkpoint."""

    returned: Any
    _best: Checkpoint | None

    @contextmanager
    def best_checkpoint(self) -> Iterator[Path]:
        """The folder that was kept of the epoch with the best mIoU.

        Raises :class:`~segbatch.errors.JobFailed` where none was.
        """
        if self._best is None:
            raise JobFailed("the training ended without a checkpoint")
        with self._best.as_directory() as folder:
            yield Path(folder)


def train(
    work: Callable[[Worker], Any],
    workers: Workers,
    job: FinetuneJob,
    training_uri: str,
    show: Callable[[dict[str, Any]], None],
) -> Ended:
    """Run ``work`` on every worker until it returns; lost ones are replaced.

    What workers tell goes to ``show``. Checkpoints are below ``training_uri``,
    and a training that finds some there goes on from the last. Raises
    :class:`~segbatch.errors.JobFailed` where ``work`` fails, and
    :class:`~segbatch.errors.Incomplete` where workers are lost too often.
    """
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # On the driver's own node: a worker that tells something must not depend on any other.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    listener = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    filesystem, path = storage.arrow_filesystem(training_uri)
    low, high = job.resources.num_workers
    trainer = TorchTrainer(
        lambda: work(Worker.here(listener)),
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
        best = ended.get_best_checkpoint("miou", "max") if ended.best_checkpoints else None
        return Ended(ended.return_value, best)
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
