"""Executor: gets the work of a pass done by Ray, in blocks by Ray Data or alone in tasks."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from segbatch import storage
from segbatch.console import say
from segbatch.errors import Incomplete, InputError
from segbatch.jobs.passes import Accounts, ExecutionStopped, NothingYet, Watch
from segbatch.jobs.runtime.metrics import Metrics
from segbatch.jobs.runtime.workers import Workers, cluster_resources, node_cpus
from segbatch.jobs.stages import (
    AllStages,
    Pipeline,
    Reading,
    accounts_of,
    all_stages,
    crashed_row,
    decoded_sizes,
)
from segbatch.model import predict
from segbatch.model.bundle import Packed, pack
from segbatch.model.predict import Model
from segbatch.results.write import Account

SHUTDOWN_S = 10.0
SAY_EVERY_S = 60.0
CRASHES = 2  # of one image alone in a process, after which it is known
NOTHING = pa.table({"account": pa.array([], pa.string())})  # what failed was not the image

Dataset = Callable[[pa.Table, int, Pipeline], "ray.data.Dataset"]


class RayExecutor:
    """What :class:`~segbatch.jobs.passes.Passes` asks for, done on the Ray that is connected.

    ``dataset`` lays the pipeline out for images, rows a block and what its stages are told.
    """

    def __init__(
        self,
        dataset: Dataset,
        stages: Pipeline,
        workers: Workers,
        watch: Watch,
    ) -> None:
        self.metrics = Metrics(stages.writing.tenure.run_uri)
        self.dataset = dataset
        self.stages = stages
        self.watch = watch
        self.workers = workers
        each: dict[str, Any] = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus}
        self._actor: Any = ray.remote(**each)(AllStages)
        # A process that is used for one image and for nothing else.
        self._alone: Any = ray.remote(**each, max_calls=1, max_retries=0)(all_stages)

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        """Run ``images`` through the pipeline, ``rows`` a block; accounts as files are written."""
        with data_context(self.watch.stall_minutes):
            dataset = self.dataset(images, rows, self.stages.in_pass(last_pass))
            with in_background(dataset) as tables:
                for table in self.watch.over(tables):
                    yield from self._told(table)

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        """Run images one at a time; one that crashes a process of its own twice is ``crashed``.

        Each of some processes does many, and loads the model once; an image in whose turn one
        died, or raised, gets a process of its own. A node that dies, and storage that fails, are
        not the image's fault: it stays missing.
        """
        stages = self.stages.in_pass(last_pass)
        actors: list[Any] = []
        rows = [images.slice(row, 1) for row in range(len(images))]
        try:
            while rows:
                actors = actors or [self._actor.remote(stages) for _ in range(self._room())]
                group, rows = rows[: len(actors)], rows[len(actors) :]
                running = [a.run.remote(image) for a, image in zip(actors, group, strict=False)]
                crashed = []
                for actor, image, task in list(zip(actors, group, running, strict=False)):
                    try:
                        yield from self._told(get(task, self.watch))
                    except RayError as error:
                        if isinstance(error, RayTaskError) and not _is_crash(error):
                            continue
                        actors.remove(actor)
                        ray.kill(actor)  # so that there is room for another process
                        crashed.append(image)
                for image in crashed:  # while nothing else runs that could be to blame
                    yield from self._told(self._twice(image, stages))
        finally:
            for actor in actors:
                ray.kill(actor)

    def _told(self, table: pa.Table) -> list[Account]:
        accounts = accounts_of(table)
        for account in accounts:
            self.metrics.add(account)
        return accounts

    def _room(self) -> int:
        """Processes that the nodes of this moment have room for."""
        most = sum(int(has / self.workers.num_cpus) for has in node_cpus())
        if self.workers.num_gpus:
            most = min(most, int(cluster_resources().get("GPU", 0) / self.workers.num_gpus))
        return max(1, min(most, self.workers.size[1] or most))

    def _twice(self, image: pa.Table, stages: Pipeline) -> pa.Table:
        """The accounts of one image in a process of its own, tried twice if it crashes."""
        for _ in range(CRASHES):
            try:
                table: pa.Table = get(self._alone.remote(image, stages), self.watch)
                return table
            except RayError as error:
                if not _is_crash(error):
                    return NOTHING
                reason = _reason(error)
        return crashed_row(image, f"{reason}, {CRASHES} times", stages)

    def why(self, image: pa.Table) -> str | None:
        """What one image ends with when it is done by itself; ``None`` if nothing is wrong."""
        try:
            get(self._alone.remote(image, self.stages.in_pass(False)), self.watch)
        except RayError as error:
            return _reason(error)
        return None


def get(running: Any, watch: Watch, waiting: str | None = None) -> Any:
    """The result of a task, watched as everything is; ``waiting`` is said once a minute."""
    said = time.monotonic()

    def result(timeout: float) -> Any:
        nonlocal said
        try:
            return ray.get(running, timeout=timeout)
        except GetTimeoutError:  # not of a task that raised TimeoutError
            if waiting and time.monotonic() - said >= SAY_EVERY_S:
                say(waiting)
                said = time.monotonic()
            raise NothingYet from None

    return next(watch.over(result))


def resolve_precision(asked: str, device: str, watch: Watch) -> str:
    """What ``precision: auto`` means on the workers' device, asked on a node that has one.

    So a cluster scaled to zero is waited for, which is said once a minute.
    """
    if device == "cpu" and any(node_cpus()):
        return _precision(asked, device)  # a process that imports torch for it would take seconds
    task: Any = ray.remote(num_cpus=1, num_gpus=0.01 if device == "cuda" else 0)(_precision)
    kind = "GPU" if device == "cuda" else "CPU"
    waiting = f"waiting for a node with a free {kind}"
    precision: str = get(task.remote(asked, device), watch, waiting)
    return precision


def _precision(asked: str, device: str) -> str:
    return predict.resolve_precision(asked, predict.resolve_device(device))


def shared(model: Model) -> Callable[[], Packed]:
    """``model`` for workers: each node fetches it once, from the driver or from each other."""
    reference: Any = ray.put(pack(model.module, model.config))
    return cast(Callable[[], Packed], partial(ray.get, reference))


def sizes_of(images: pa.Table, reading: Reading, watch: Watch) -> list[tuple[int, int]]:
    """:func:`~segbatch.jobs.stages.decoded_sizes`, each image in a task: one that crashes is left
    out.

    Not in the driver, which a poisonous image would take with it.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=0)(decoded_sizes)
    running = [task.remote(images.slice(row, 1), reading) for row in range(len(images))]
    sizes: list[tuple[int, int]] = []
    for result in running:
        with contextlib.suppress(RayError):
            sizes += get(result, watch)
    return sizes


def _is_crash(error: RayError) -> bool:
    """Whether an image did it, and not its node, the storage, or a model that is gone."""
    if isinstance(error, RayTaskError):
        return not isinstance(error.cause, OSError | InputError | Incomplete)
    return isinstance(error, WorkerCrashedError | OutOfMemoryError)


def _reason(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause.__cause__ or error.cause  # Ray Data wraps what a stage raises
        return f"{type(cause).__name__}: {storage.one_line(cause)}"
    if isinstance(error, OutOfMemoryError):
        return "the worker ran out of memory"
    if isinstance(error, WorkerCrashedError):
        return "the worker's process died"
    return storage.one_line(error)


class _LostBlocks(logging.Filter):
    """Says in one line why a block was lost, for which Ray Data has some eighty."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            say(f"a block was lost: {_reason(error)}")
        return error is None


_RAY_DATA_LOG = logging.getLogger("ray.data._internal.execution.streaming_executor_state")


@contextlib.contextmanager
def data_context(stall_minutes: float) -> Iterator[None]:
    """Ray Data as this job needs it; the process's own settings come back afterwards."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None  # one task, one block: see segment.pipeline
    context.max_errored_blocks = -1  # a lost block is found missing and taken apart
    context.execution_no_progress_timeout_s = stall_minutes * 60 + 60  # watched by ourselves
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    lost_blocks = _LostBlocks()
    _RAY_DATA_LOG.addFilter(lost_blocks)
    try:
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            # How often a crash is retried has no named parameter in 2.60.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            yield
    finally:
        _RAY_DATA_LOG.removeFilter(lost_blocks)


@contextlib.contextmanager
def in_background(dataset: ray.data.Dataset) -> Iterator[Callable[[float], Any]]:
    """Run a dataset in a thread; ``next_table(timeout)`` gives what it made, as ``watch`` wants.

    The driver must be able to commit, look at its lease and be interrupted meanwhile. Left early,
    the execution is ended: it would go on in the background, and connect to Ray once more after a
    ``ray.shutdown``.
    """
    tables: queue.Queue[Any] = queue.Queue()
    end = object()
    others = set(threading.enumerate())

    def run() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                tables.put(batch)
            tables.put(end)
        except Exception as error:
            tables.put(error)

    pipeline = threading.Thread(target=run, daemon=True, name="pipeline")
    pipeline.start()

    def next_table(timeout: float) -> Any:
        try:
            item = tables.get(timeout=timeout)
        except queue.Empty:
            raise NothingYet from None
        if isinstance(item, Exception):
            raise ExecutionStopped(storage.one_line(item)) from item
        if item is end:
            raise StopIteration
        return item

    try:
        yield next_table
    finally:
        if pipeline.is_alive():
            for thread in set(threading.enumerate()) - others:
                if isinstance(thread, StreamingExecutor):
                    thread.shutdown(force=True)
            pipeline.join(timeout=SHUTDOWN_S)
