"""Survey: what is known of a job before it runs: how many images, and what a sample of them took.

The sample is measured in this process, or with a Ray cluster on one worker of each of its kinds.
Nothing is written to the job's output.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segbatch import storage
from segbatch.cluster.census import Census, count_images, count_left
from segbatch.cluster.estimate import Node
from segbatch.cluster.sample import Place, Sample, measure
from segbatch.config.job import Resources, SegmentJob
from segbatch.console import say
from segbatch.errors import Incomplete, InputError, SegbatchError
from segbatch.jobs.preflight import SAMPLE_IMAGES, check_first_images, prepare
from segbatch.jobs.runstate import RunState, outages
from segbatch.jobs.runtime.sharing import PASSIVE_THREADS, worker_cpus
from segbatch.jobs.runtime.workers import (
    MIN_LOGICAL_CPUS,
    connected,
    cores,
    cpu_workers,
    most_of,
)
from segbatch.model.device import device_here

START_S = 1200.0  # for a node that has to be started, or a worker that is busy


@dataclass(frozen=True)
class Effort:
    """How much may be spent on knowing: images in the sample, seconds on listing and on each
    sample.
    """

    images: int = 200
    list_s: float = 60.0
    sample_s: float = 60.0


@dataclass(frozen=True)
class Survey:
    """``images`` are at least so many where not ``whole``; ``done`` have their rows already."""

    images: int
    whole: bool
    done: int
    listed: int
    skipped: dict[str, int]
    samples: list[Sample]
    on_cluster: bool

    @property
    def left(self) -> int:
        return self.images - self.done

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        samples = [Sample.from_json(sample) for sample in facts["samples"]]
        return cls(**facts | {"samples": samples})


def survey(job: SegmentJob, effort: Effort) -> Survey:
    """Validate the job as a run would, count its images and measure a sample.

    On the Ray of this process or of ``RAY_ADDRESS`` if there is one. Raises what a run raises
    before its workers start.
    """
    prepared = prepare(job)
    with outages():
        state = RunState.read(storage.normalize(job.output))
        if state is not None:
            state.refuse_changes(job, prepared.model_sha256)
            census = count_left(state, effort.images)
        else:
            census = count_images(job, effort.images, effort.list_s)
        check_first_images(census.sample.slice(0, SAMPLE_IMAGES), prepared)
        on_cluster = ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))
        if on_cluster:
            samples = _on_nodes(job, census, effort)
        else:
            say(f"measuring {len(census.sample)} images on this machine")
            samples = [
                measure(
                    job,
                    prepared,
                    census.sample,
                    place_here(job.resources),
                    num_images=census.images,
                    seconds=effort.sample_s,
                )
            ]
    return Survey(
        census.images, census.whole, census.done, census.listed, census.skipped, samples, on_cluster
    )


def place_here(resources: Resources) -> Place:
    """This machine as a local run has it."""
    logical = max(MIN_LOGICAL_CPUS, cores())
    return _place(resources, device_here(resources.device), logical, cores(), 1.0)


def _place(resources: Resources, device: str, logical: int, physical: int, gpus: float) -> Place:
    """One node, with as many workers as a run would have on it."""
    if device == "cuda":
        threads = 1 if resources.cpus_per_worker == "auto" else int(resources.cpus_per_worker)
        workers = max(1, int(gpus / resources.gpus_per_worker))
    else:
        try:
            shared = cpu_workers(resources, [logical], physical)
        except InputError:  # they are meant for more nodes than one
            shared = cpu_workers(Resources(), [logical], physical, may_grow=True)
        threads, workers = shared.num_cpus, shared.expected
    return Place(Node(logical, physical, workers, worker_cpus(threads)), device, threads)


# -------------------------------------------------------------------------------- on a cluster


def _on_nodes(job: SegmentJob, census: Census, effort: Effort) -> list[Sample]:
    """A sample from one worker of each kind of node that would predict.

    Where none is there, one is asked for and waited for, so that the autoscaler starts it.
    """
    with connected(say):
        device = "cuda" if job.resources.device != "cpu" and most_of("GPU") else "cpu"
        running = []
        for node_id, cpus, gpus in _kinds(device) or [(None, MIN_LOGICAL_CPUS, 1.0)]:
            place = _place(job.resources, device, cpus, cpus, gpus)
            strategy: Any = "DEFAULT"
            if node_id is not None:
                strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task: Any = ray.remote(
                num_cpus=place.threads,
                num_gpus=job.resources.gpus_per_worker if device == "cuda" else 0,
                max_retries=0,
                runtime_env={"env_vars": dict(PASSIVE_THREADS)},
                scheduling_strategy=strategy,
            )(_measure_there)
            running.append(task.remote(job, census.sample, place, census.images, effort.sample_s))
        say(f"measuring {len(census.sample)} images on {len(running)} kinds of nodes ({device})")
        return [_result(task) for task in running]


def _kinds(device: str) -> list[tuple[str | None, int, float]]:
    """A node of each kind that would predict, with its CPUs and GPUs: these make a kind."""
    kinds: dict[Any, tuple[str | None, int, float]] = {}
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        resources = node["Resources"]
        if node["Alive"] and resources.get("CPU") and (device == "cpu" or resources.get("GPU")):
            accelerators = tuple(key for key in resources if key.startswith("accelerator_type:"))
            cpus, gpus = int(resources["CPU"]), float(resources.get("GPU", 0))
            kinds.setdefault((cpus, gpus, accelerators), (node["NodeID"], cpus, gpus))
    return list(kinds.values())


def _measure_there(
    job: SegmentJob, images: pa.Table, place: Place, num_images: int, seconds: float
) -> Sample:
    return measure(job, prepare(job), images, place, num_images=num_images, seconds=seconds)


def _result(task: Any) -> Sample:
    try:
        sample: Sample = ray.get(task, timeout=START_S)
        return sample
    except GetTimeoutError:
        raise Incomplete(
            f"no worker was free, or came, within {START_S / 60:.0f} minutes: run it again"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, SegbatchError):
            raise error.cause from error
        raise Incomplete(f"a worker failed: {storage.one_line(error.cause)}") from error
    except RayError as error:
        raise Incomplete(f"a worker was lost: {storage.one_line(error)}") from error
