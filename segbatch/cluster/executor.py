"""Executor: gets the work of a pass done by Ray, in blocks by Ray Data or alone in tasks."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from segbatch import storage
from segbatch.cluster.workers import Workers
from segbatch.passes import watch
from segbatch.progress import say
from segbatch.results.lease import Lease
from segbatch.results.write import Account
from segbatch.stages import Pipeline, accounts_of, all_stages, crashed_row

CRASHES = 2  # of one image alone in a process, after which it is known

Dataset = Callable[[pa.Table, int, Pipeline], "ray.data.Dataset"]


class RayExecutor:
    """What :class:`~segbatch.passes.Passes` asks for, done on the Ray that is connected.

    ``dataset`` lays the pipeline out for images, rows a block and what its stages are told.
    """

    def __init__(
        self,
        dataset: Dataset,
        stages: Pipeline,
        workers: Workers,
        lease: Lease,
        stall_minutes: float,
    ) -> None:
        self.dataset = dataset
        self.stages = stages
        self.lease = lease
        self.stall_minutes = stall_minutes
        # A process that is used for one image and for nothing else.
        self._alone = ray.remote(
            num_cpus=workers.num_cpus, num_gpus=workers.num_gpus, max_calls=1, max_retries=0
        )(all_stages)

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Iterator[Account]:
        """Run ``images`` through the pipeline, ``rows`` a block; accounts as files are written."""
        with _data_context(self.stall_minutes):
            tables = _in_background(self.dataset(images, rows, self.stages.in_pass(last_pass)))
            for table in watch(tables, stall_minutes=self.stall_minutes, lease=self.lease):
                yield from accounts_of(table)

    def alone(self, images: pa.Table, *, last_pass: bool) -> Iterator[Account]:
        """Run each image in a process of its own; one that crashes it twice is ``crashed``.

        A node that dies, and storage that fails, are not the image's fault: it stays missing.
        """
        stages = self.stages.in_pass(last_pass)
        for start in range(len(images)):
            image = images.slice(start, 1)
            for crash in range(1, CRASHES + 1):
                try:
                    yield from accounts_of(ray.get(self._alone.remote(image, stages)))
                    break
                except (WorkerCrashedError, OutOfMemoryError, RayTaskError) as error:
                    if isinstance(error, RayTaskError) and isinstance(error.cause, OSError):
                        break
                    if crash == CRASHES:
                        row = crashed_row(image, f"{_reason(error)}, {CRASHES} times", stages)
                        yield from accounts_of(row)
                except RayError:
                    break

    def why(self, image: pa.Table) -> str | None:
        """What one image ends with when it is done by itself; ``None`` if nothing is wrong."""
        try:
            ray.get(self._alone.remote(image, self.stages.in_pass(False)))
        except RayError as error:
            return _reason(error)
        return None


def _reason(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {storage.one_line(error.cause)}"
    if isinstance(error, OutOfMemoryError):
        return "the worker ran out of memory"
    if isinstance(error, WorkerCrashedError):
        return "the worker's process died"
    return storage.one_line(error)


@contextlib.contextmanager
def _data_context(stall_minutes: float) -> Iterator[None]:
    """Ray Data as this job needs it; the process's own settings come back afterwards."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None  # one task, one block: see segment.pipeline
    context.max_errored_blocks = -1  # a lost block is found missing and taken apart
    context.execution_no_progress_timeout_s = stall_minutes * 60 + 60  # watched by ourselves
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # How often a crash is retried has no named parameter in 2.60.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        yield


def _in_background(dataset: ray.data.Dataset) -> Callable[[float], Any]:
    """Run a dataset in a thread; ``next_table(timeout)`` gives what it made, as ``watch`` wants.

    The driver must be able to commit, look at its lease and be interrupted meanwhile.
    """
    tables: queue.Queue[Any] = queue.Queue()
    end = object()

    def run() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                tables.put(batch)
            tables.put(end)
        except Exception as error:
            tables.put(error)

    threading.Thread(target=run, daemon=True, name="pipeline").start()

    def next_table(timeout: float) -> Any:
        try:
            item = tables.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(item, Exception):
            # The execution as a whole failed; what is missing goes to the next pass.
            say(f"the execution stopped: {storage.one_line(item)}")
        if item is end or isinstance(item, Exception):
            raise StopIteration
        return item

    return next_table
