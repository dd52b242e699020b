"""Counts a job's images and measures a sample of them before the job runs.

The sample is measured in this process, or with a Ray cluster on one worker of each kind of node.
Nothing is written to the job's output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segbatch import storage
from segbatch.cluster.estimate import Node
from segbatch.cluster.measure import Measurement, NodeSetup, measure_stages
from segbatch.config.images import Glob, Prefix
from segbatch.config.job import Resources, SegmentJob
from segbatch.console import say
from segbatch.errors import Incomplete, InputError, JobFailed
from segbatch.images.sources import stream_images
from segbatch.jobs.preflight import SAMPLE_IMAGES, check_first_images, prepare
from segbatch.jobs.runstate import RunState
from segbatch.jobs.runtime.nodes import ACCELERATOR, alive_nodes
from segbatch.jobs.runtime.rayerrors import known_error
from segbatch.jobs.runtime.sharing import PASSIVE_THREADS, worker_cpus
from segbatch.jobs.runtime.workers import (
    MIN_LOGICAL_CPUS,
    choose_device,
    connected,
    cpu_workers,
)
from segbatch.machine import num_cores
from segbatch.model.device import device_here
from segbatch.results.encode import carried
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.results.table import Table

SEED = 0  # draws the same images each time, as long as the list is the same
SLICES_READ = 8  # files of a frozen manifest that the sample is drawn from; one may be 100 MB
START_S = 1200.0  # wait for a node that has to be started, or for a busy worker


@dataclass(frozen=True)
class Effort:
    """What a survey may cost: images in the sample, seconds to list and to measure each sample."""

    images: int = 200
    list_s: float = 60.0
    sample_s: float = 60.0


@dataclass(frozen=True)
class Counts:
    """The number of images in a job's sources, and what it took to count them."""

    images: int  # a lower bound unless whole
    whole: bool
    done: int = 0  # images that have a row in the results already
    listed: int = 0  # keys that were listed to count them; 0 for a manifest
    headers: int = 0  # requests for headers of shards
    skipped: dict[str, int] = field(default_factory=dict)  # files that are no images

    @property
    def left(self) -> int:
        return self.images - self.done


@dataclass(frozen=True)
class Census:
    """The counts of a job's images, and a sample of them.

    ``sample`` has ``image_id``, ``uri`` and the user's columns under the names in which they travel
    through a run, sorted by ``image_id``.
    """

    counts: Counts
    sample: pa.Table


@dataclass(frozen=True)
class Survey:
    """The counts of a census, and the measurement of its sample on each kind of node.

    ``in_object_storage``: the share of the sample's images that are there, 0 to 1.
    """

    counts: Counts
    measurements: list[Measurement]
    on_cluster: bool
    in_object_storage: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        counts = Counts(**facts["counts"])
        measurements = [Measurement.from_json(each) for each in facts["measurements"]]
        return cls(**facts | {"counts": counts, "measurements": measurements})


def survey_job(job: SegmentJob, effort: Effort) -> Survey:
    """Check the job as a run would, count its images, and measure a sample of them.

    The sample is measured on the Ray of this process or of ``RAY_ADDRESS``; without one, in this
    process. Raises what a run raises before its workers start.
    """
    prepared = prepare(job)
    with storage.translate_errors("storage:"):
        state = RunState.read(storage.normalize(job.output))
        if state is None:
            census = take_census(job, effort.images, effort.list_s)
        else:
            state.refuse_changes(job, prepared.model_sha256)
            census = count_left(state, effort.images)
        check_first_images(census.sample.slice(0, SAMPLE_IMAGES), prepared)
        on_cluster = ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))
        if on_cluster:
            measurements = _measure_on_nodes(job, census, effort)
        else:
            say(f"measuring {len(census.sample)} images on this machine")
            measurements = [
                measure_stages(
                    job,
                    prepared,
                    census.sample,
                    local_setup(job.resources),
                    num_images=census.counts.images,
                    seconds=effort.sample_s,
                )
            ]
    share = _share_in_object_storage(census.sample["uri"].to_pylist())
    return Survey(census.counts, measurements, on_cluster, share)


def _share_in_object_storage(uris: Sequence[str]) -> float:
    there = sum(storage.scheme_of(uri) in storage.OBJECT_SCHEMES for uri in uris)
    return there / max(1, len(uris))


# ------------------------------------------------------------------------------------ counting


def take_census(job: SegmentJob, size: int, list_s: float) -> Census:
    """List the sources for at most ``list_s`` seconds, and draw a sample of ``size`` images.

    Raises what freezing the manifest raises.
    """
    start = time.monotonic()
    sample = Reservoir(size)
    reserved = RESERVED_COLUMNS | set(job.formulas)
    with stream_images(
        job.sources, reserved=reserved, leave_out=job.output, limit_s=list_s
    ) as stream:
        whole = stream.whole
        for batch in stream.batches:
            if whole and sample.seen and time.monotonic() - start >= list_s:
                whole = False
                break
            sample.add(batch)
        skipped = dict(sorted(stream.skipped.items()))
        headers = stream.listing.header_requests
    lists = any(isinstance(source, Prefix | Glob) for source in job.sources)
    rows = sample.rows()
    counts = Counts(
        images=sample.seen,
        whole=whole,
        listed=sample.seen + sum(skipped.values()) if lists else 0,
        headers=headers,
        skipped=skipped,
    )
    return Census(counts, rows.rename_columns([carried(name) for name in rows.column_names]))


class Reservoir:
    """A uniform random sample of a stream: the rows with the smallest random numbers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(SEED)
        self._numbers = np.empty(0)
        self._rows: pa.Table | None = None
        self.seen = 0

    def add(self, batch: pa.RecordBatch) -> None:
        numbers = self._random.random(batch.num_rows)
        full = len(self._numbers) == self._size
        chosen = np.flatnonzero(numbers < (self._numbers.max() if full else 1.0))
        ids = pa.array(self.seen + chosen, pa.int64())
        rows = pa.Table.from_batches([batch]).take(pa.array(chosen)).add_column(0, "image_id", ids)
        self.seen += batch.num_rows
        self._numbers = np.concatenate([self._numbers, numbers[chosen]])
        self._rows = rows if self._rows is None else pa.concat_tables([self._rows, rows])
        smallest = np.argsort(self._numbers)[: self._size]
        self._numbers, self._rows = self._numbers[smallest], self._rows.take(pa.array(smallest))

    def rows(self) -> pa.Table:
        """The sampled rows, sorted by ``image_id``, their number in the stream."""
        if self._rows is None:
            raise ValueError("no batch was added")
        return self._rows.sort_by("image_id").combine_chunks()


def count_left(state: RunState, size: int) -> Census:
    """Count what a started run still has to do, from its frozen manifest and its results."""
    rows = Table.open(storage.join(state.uri, "rows"))
    done = sum(file.rows for file in rows.files()) if rows is not None else 0
    random = np.random.default_rng(SEED)
    slices = np.linspace(0, len(state.bounds) - 1, min(SLICES_READ, len(state.bounds))).astype(int)
    each = -(-size // len(slices))
    drawn = []
    for first, end in (state.bounds[index] for index in slices):
        ids = random.choice(end - first, min(each, end - first), replace=False) + first
        drawn.append(state.images_of(np.sort(ids).astype(np.int64)))
    counts = Counts(images=state.num_images, whole=True, done=done)
    return Census(counts, pa.concat_tables(drawn).slice(0, size))


# ----------------------------------------------------------------------------------- measuring


def local_setup(resources: Resources) -> NodeSetup:
    """This machine as a local run uses it."""
    logical = max(MIN_LOGICAL_CPUS, num_cores())
    return _node_setup(resources, device_here(resources.device), logical, num_cores(), 1.0)


def _node_setup(
    resources: Resources, device: str, logical: int, physical: int, gpus: float
) -> NodeSetup:
    """A node of ``logical`` CPUs and ``physical`` cores with as many workers as a run gives it."""
    if device == "cuda":
        threads = 1 if resources.cpus_per_worker == "auto" else int(resources.cpus_per_worker)
        workers = max(1, int(gpus / resources.gpus_per_worker))
    else:
        try:
            shared = cpu_workers(resources, [logical], physical)
        except InputError:  # the job asks for more workers than one node has room for
            shared = cpu_workers(Resources(), [logical], physical, may_grow=True)
        threads, workers = shared.num_cpus, shared.expected
    return NodeSetup(Node(logical, physical, workers, worker_cpus(threads)), device, threads)


def _measure_on_nodes(job: SegmentJob, census: Census, effort: Effort) -> list[Measurement]:
    """Measure on one worker of each kind of node that would predict.

    If there is no such node yet, a worker is requested and waited for, so that the autoscaler
    starts a node.
    """
    with connected(say):
        device = choose_device(job.resources)
        running = []
        for node_id, cpus, gpus in _node_kinds(device) or [(None, MIN_LOGICAL_CPUS, 1.0)]:
            setup = _node_setup(job.resources, device, cpus, cpus, gpus)
            strategy: Any = "DEFAULT"
            if node_id is not None:
                strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task: Any = ray.remote(
                num_cpus=setup.threads,
                num_gpus=job.resources.gpus_per_worker if device == "cuda" else 0,
                max_retries=0,
                runtime_env={"env_vars": dict(PASSIVE_THREADS)},
                scheduling_strategy=strategy,
            )(_measure_on_worker)
            running.append(
                task.remote(job, census.sample, setup, census.counts.images, effort.sample_s)
            )
        say(f"measuring {len(census.sample)} images on {len(running)} kinds of nodes ({device})")
        return [_result(task) for task in running]


def _node_kinds(device: str) -> list[tuple[str | None, int, float]]:
    """The id, CPUs and GPUs of one node of each kind that would predict.

    Nodes with the same CPUs, GPUs and accelerator are of one kind.
    """
    kinds: dict[Any, tuple[str | None, int, float]] = {}
    for node in alive_nodes():
        resources = node["Resources"]
        if resources.get("CPU") and (device == "cpu" or resources.get("GPU")):
            accelerators = tuple(key for key in resources if key.startswith(ACCELERATOR))
            cpus, gpus = int(resources["CPU"]), float(resources.get("GPU", 0))
            kinds.setdefault((cpus, gpus, accelerators), (node["NodeID"], cpus, gpus))
    return list(kinds.values())


def _measure_on_worker(
    job: SegmentJob, images: pa.Table, setup: NodeSetup, num_images: int, seconds: float
) -> Measurement:
    return measure_stages(job, prepare(job), images, setup, num_images=num_images, seconds=seconds)


def _result(task: Any) -> Measurement:
    try:
        measurement: Measurement = ray.get(task, timeout=START_S)
        return measurement
    except GetTimeoutError:
        raise Incomplete(
            f"no worker became free or started within {START_S / 60:.0f} minutes: run it again"
        ) from None
    except RayError as error:
        raise known_error(error) or JobFailed(
            f"a worker failed: {storage.one_line(error)}"
        ) from error
