"""Does the work of a pass on Ray: blocks with Ray Data, suspects one at a time in tasks."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
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
from segbatch.jobs.passes import Accounts, ExecutionStopped
from segbatch.jobs.runtime import compat
from segbatch.jobs.runtime.metrics import Metrics
from segbatch.jobs.runtime.sharing import worker_cpus
from segbatch.jobs.runtime.workers import ON_RAY, Workers, cluster_resources, node_cpus
from segbatch.jobs.stages import (
    AllStages,
    ImageSize,
    PredictStage,
    Reading,
    Stages,
    accounts_of,
    crashed_row,
    decoded_sizes,
    run_all_stages,
)
from segbatch.jobs.watch import NothingYet, Patience, Watch
from segbatch.results.write import Account

SHUTDOWN_S = 10.0
SAY_EVERY_S = 60.0
CRASHES = 2  # of one image alone in a process, then it is committed as crashed
# The answer for an image that failed by no fault of its own: it is left to the next pass.
NO_ACCOUNTS = pa.table({"account": pa.array([], pa.string())})

MakePipeline = Callable[[pa.Table, int, Stages], "ray.data.Dataset"]


class RayExecutor:
    """The executor of :class:`~segbatch.jobs.passes.Passes` on the connected Ray.

    ``make_pipeline(images, block_rows, stages)`` gives the pipeline as a Ray dataset.
    """

    def __init__(
        self,
        make_pipeline: MakePipeline,
        stages: Stages,
        workers: Workers,
        watch: Watch,
        patience: Patience,
    ) -> None:
        self.patience = patience
        self.metrics = Metrics(stages.writing.worker_lease.run_uri)
        self.make_pipeline = make_pipeline
        self.stages = stages
        self.watch = watch
        self.workers = workers
        each: dict[str, Any] = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus}
        self._actor: Any = ray.remote(**each)(AllStages)
        # One process for one image.
        self._alone: Any = ray.remote(**each, max_calls=1, max_retries=0)(run_all_stages)

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        """Run ``images`` through the pipeline in blocks of ``rows``; yields accounts of files."""
        with data_context(self.watch.stall_minutes):
            dataset = self.make_pipeline(images, rows, self.stages.in_pass(last_pass))
            with in_background(dataset, self.patience) as next_table:
                for table in self.watch.results_of(next_table):
                    yield from self._accounts(table)

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        """Run images one at a time; one that crashes its own process twice is ``crashed``.

        Actors that load the model once do them in turn. An image during which an actor died or
        raised gets a process of its own. If a node dies or storage fails, the image stays missing.
        """
        stages = self.stages.in_pass(last_pass)
        actors: list[Any] = []
        rows = [images.slice(row, 1) for row in range(len(images))]
        try:
            while rows:
                actors = actors or [self._actor.remote(stages) for _ in range(self._free_slots())]
                group, rows = rows[: len(actors)], rows[len(actors) :]
                running = [a.run.remote(image) for a, image in zip(actors, group, strict=False)]
                crashed = []
                for actor, image, task in list(zip(actors, group, running, strict=False)):
                    try:
                        yield from self._accounts(wait_for(task, self.watch))
                    except RayError as error:
                        if isinstance(error, RayTaskError) and not _is_crash(error):
                            continue
                        actors.remove(actor)
                        ray.kill(actor)  # frees its CPUs for another process
                        crashed.append(image)
                for image in crashed:  # while nothing else runs that could have crashed
                    yield from self._accounts(self._in_own_process(image, stages))
        finally:
            for actor in actors:
                ray.kill(actor)

    def _accounts(self, table: pa.Table) -> list[Account]:
        accounts = accounts_of(table)
        for account in accounts:
            self.metrics.add(account)
        return accounts

    def _free_slots(self) -> int:
        """How many worker processes fit on the nodes that are there now."""
        most = sum(int(has / self.workers.num_cpus) for has in node_cpus())
        if self.workers.num_gpus:
            most = min(most, int(cluster_resources().get("GPU", 0) / self.workers.num_gpus))
        return max(1, min(most, self.workers.size[1] or most))

    def _in_own_process(self, image: pa.Table, stages: Stages) -> pa.Table:
        """Do one image in its own process; after ``CRASHES`` crashes it gets a ``crashed`` row."""
        for _ in range(CRASHES):
            try:
                table: pa.Table = wait_for(self._alone.remote(image, stages), self.watch)
                return table
            except RayError as error:
                if not _is_crash(error):
                    return NO_ACCOUNTS
                reason = _reason(error)
        return crashed_row(image, f"{reason}, {CRASHES} times", stages)

    def why(self, image: pa.Table) -> str | None:
        """The error of one image that is done alone; ``None`` if it succeeds."""
        try:
            wait_for(self._alone.remote(image, self.stages.in_pass(False)), self.watch)
        except RayError as error:
            return _reason(error)
        return None


def wait_for(running: Any, watch: Watch, waiting: str | None = None) -> Any:
    """The result of a Ray task, while ``watch`` checks; says ``waiting`` once a minute."""
    said = time.monotonic()

    def result(timeout: float) -> Any:
        nonlocal said
        try:
            return ray.get(running, timeout=timeout)
        except GetTimeoutError:  # not raised by the task itself
            if waiting and time.monotonic() - said >= SAY_EVERY_S:
                say(waiting)
                said = time.monotonic()
            raise NothingYet from None

    return next(watch.results_of(result))


def sample_sizes(images: pa.Table, reading: Reading, watch: Watch) -> list[ImageSize]:
    """:func:`~segbatch.jobs.stages.decoded_sizes` with a task for each image.

    An image that crashes its task is left out; in the driver it would end the job.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=0)(decoded_sizes)
    running = [task.remote(images.slice(row, 1), reading) for row in range(len(images))]
    sizes: list[ImageSize] = []
    for result in running:
        with contextlib.suppress(RayError):
            sizes += wait_for(result, watch)
    return sizes


def _is_crash(error: RayError) -> bool:
    """Whether the image is at fault, not its node, the storage or a missing model."""
    if isinstance(error, RayTaskError):
        return not isinstance(error.cause, OSError | InputError | Incomplete)
    return isinstance(error, WorkerCrashedError | OutOfMemoryError)


def _reason(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause.__cause__ or error.cause  # Ray Data wraps the error of a stage
        return f"{type(cause).__name__}: {storage.one_line(cause)}"
    if isinstance(error, OutOfMemoryError):
        return "the worker ran out of memory"
    if isinstance(error, WorkerCrashedError):
        return "the worker's process died"
    return storage.one_line(error)


class _LostBlocks(logging.Filter):
    """Replaces Ray Data's eighty lines about a lost block by one."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            say(f"a block was lost: {_reason(error)}")
        return error is None


_RAY_DATA_LOG = logging.getLogger(compat.BLOCK_ERRORS_LOG)


def predict_blocks(
    decoded: ray.data.Dataset, workers: Workers, block_rows: int, *arguments: Any
) -> ray.data.Dataset:
    """Predict decoded blocks in the pool of ``workers``: ``PredictStage(*arguments)`` in each."""
    return compat.map_blocks(
        decoded,
        PredictStage,
        fn_constructor_args=arguments,
        compute=workers.pool(),
        num_cpus=worker_cpus(workers.num_cpus),
        num_gpus=workers.num_gpus,
        batch_size=block_rows,  # a block; Ray requires a number with GPUs
    )


@contextlib.contextmanager
def data_context(stall_minutes: float, *, max_errored_blocks: int = -1) -> Iterator[None]:
    """Ray Data's settings for this job; the previous settings are restored afterwards.

    ``max_errored_blocks`` may be lost; by default any number, and the next pass takes them apart.
    """
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None  # one task, one block: see segment.pipeline
    context.max_errored_blocks = max_errored_blocks
    context.execution_no_progress_timeout_s = (
        stall_minutes * 60 + 60
    )  # Watch ends a stalled run before
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    lost_blocks = _LostBlocks()
    _RAY_DATA_LOG.addFilter(lost_blocks)
    try:
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            # Retries after a crash have no named parameter: see compat.takes_retries.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            # Of a pass whose images all kill their process before a predict worker gets one.
            warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
            yield
    finally:
        _RAY_DATA_LOG.removeFilter(lost_blocks)


@contextlib.contextmanager
def in_background(
    dataset: ray.data.Dataset, patience: Patience | None = None
) -> Iterator[Callable[[float], Any]]:
    """Run a dataset in a thread; yields ``next_table(timeout)``, for :meth:`Watch.results_of`.

    Meanwhile the driver can commit, check its lease and be interrupted. On an early exit the
    execution is shut down, because it would continue in the background and even connect to Ray
    again after ``ray.shutdown``.

    ``next_table`` raises :class:`ExecutionStopped` for an execution that failed, and for one that
    hangs by the measure of ``patience``: Ray can lose the wake-up of a task (ray-project/ray#62535,
    #45822), and then a few blocks never come, while everything else waits for them.
    """
    waiting = patience or Patience(math.inf, math.inf)  # which never runs out
    waiting.begin()
    tables: queue.Queue[Any] = queue.Queue()
    end = object()
    left = threading.Event()
    others = set(threading.enumerate())

    def run() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if left.is_set():
                    return
                tables.put(batch)
            tables.put(end)
        except Exception as error:
            tables.put(error)

    thread = threading.Thread(target=run, daemon=True, name=ON_RAY)
    thread.start()

    def next_table(timeout: float) -> Any:
        try:
            item = tables.get(timeout=timeout)
        except queue.Empty:
            if waiting.waited(timeout):
                raise ExecutionStopped(
                    f"no result for {waiting.limit_s / 60:.1f} minutes: taken for hung"
                ) from None
            raise NothingYet from None
        if isinstance(item, Exception):
            raise ExecutionStopped(storage.one_line(item)) from item
        if item is end:
            raise StopIteration
        waiting.came()
        return item

    try:
        yield next_table
    finally:
        if thread.is_alive():
            left.set()
            compat.shut_down(others)
            thread.join(timeout=SHUTDOWN_S)
