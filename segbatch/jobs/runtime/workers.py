"""The Ray that a job runs on, and how its CPUs and GPUs are divided among workers."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from segbatch.config.job import Resources
from segbatch.config.training import TrainResources
from segbatch.errors import InputError
from segbatch.jobs.runtime import compat
from segbatch.jobs.runtime.nodes import alive_nodes, may_come, node_types
from segbatch.jobs.runtime.sharing import FEW_CORES, OTHER_CPUS, READ_CPUS, worker_cpus
from segbatch.machine import num_cores
from segbatch.storage import one_line

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

MIN_LOGICAL_CPUS = 4  # with fewer, the stages of a pipeline can starve each other
CONNECT_S = 10.0
MAX_SOCKET_PATH = 107  # bytes, on Linux
RAY_SOCKET = "/ray/session_2026-11-30_14-42-16_123456_4194304/sockets/plasma_store"
ON_RAY = "on-ray"  # name of a thread that waits for Ray, and may call it after the job has ended

# Set while a job is connected, unless the user has set them.
RAY_VARIABLES = {
    # The backend logs every restart of an actor as an error; the driver reports errors itself.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # A stage without GPUs must not hide them from the others; unset, Ray warns of this change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default an image that exhausts memory is retried without end. No parameter sets this.
    "RAY_task_oom_retries": "1",
}
THREADS_PER_WORKER = 4  # each predicts alone, but all share the Python of one process


@dataclass(frozen=True)
class Workers:
    """The predict workers: how many there are, and what each one reserves."""

    device: str
    size: tuple[int, int | None]  # smallest and largest number; None: as many as fit
    num_cpus: int  # also its threads, on the CPU
    num_gpus: float

    @property
    def expected(self) -> int:
        """The largest number of workers, or the smallest if that is open."""
        low, high = self.size
        return high or low

    def pool(self) -> ActorPoolStrategy:
        """Ray Data's actor pool.

        Each worker has two blocks at a time: the tables of one are made while the other is
        predicted. Two more wait in the object store.
        """
        from ray.data import ActorPoolStrategy  # imports pandas, which training does not need

        return ActorPoolStrategy(
            min_size=self.size[0],
            max_size=self.size[1],
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        )

    def __str__(self) -> str:
        low, high = self.size
        count = f"{low} or more" if high is None else f"{low} to {high}"
        if low == high:
            count = f"{low}"
        each = f"{self.num_gpus:g} GPU" if self.num_gpus else f"{self.num_cpus} CPU"
        return f"{count} × {each}"


@contextmanager
def connected(say: Callable[[str], None]) -> Iterator[None]:
    """Connect to Ray: this process's own connection, else ``RAY_ADDRESS``, else a local Ray, which
    is also what the address ``local`` means to Ray.

    Stops what it started, and leaves the process's variables and log levels as they were. Raises
    :class:`~segbatch.errors.InputError` if the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local") or "local"
    of_local_ray = FEW_CORES | temporary_folder() if address == "local" else {}
    with _set(RAY_VARIABLES | of_local_ray), _quiet_logs():
        _connect(address, say)
        # Ray prints the errors of the whole cluster to stdout, which is for results alone.
        with redirect_stdout(sys.stderr):
            try:
                yield
            finally:
                logging.getLogger("ray.data").setLevel(logging.CRITICAL)
                compat.disconnect(for_good=_works_on())


def _connect(address: str, say: Callable[[str], None]) -> None:
    try:
        with _sigterm_kept():
            if address != "local":
                say(f"connecting to Ray at {address}")
                _refuse_silence(address)
                with compat.quiet_start():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                say("starting Ray on this machine")
                with compat.quiet_start():
                    ray.init(
                        address=address,
                        num_cpus=max(MIN_LOGICAL_CPUS, num_cores()),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        where = "Ray on this machine" if address == "local" else f"RAY_ADDRESS={address}"
        raise InputError(f"{where}: cannot be used: {one_line(error)}") from error


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the ``variables`` of the environment that are not set."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Ray's logs show errors alone; nothing afterwards, while a thread still works on Ray."""
    logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if not _works_on():
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _works_on() -> bool:
    """Whether an execution or a training that was left early goes on in its thread."""
    return any(thread.name == ON_RAY for thread in threading.enumerate())


def temporary_folder() -> dict[str, str]:
    """The variable of the folder in which a local Ray keeps its sockets and logs, where the one for
    temporary files does not do.

    Ray cannot use a path with letters outside of ASCII, or one that is too long for its sockets.
    """
    folder = tempfile.gettempdir()
    usable = folder.isascii() and len(folder) <= MAX_SOCKET_PATH - len(RAY_SOCKET)
    return {} if usable else {"RAY_TMPDIR": "/tmp"}


def _refuse_silence(address: str) -> None:
    """Raises ``OSError`` if nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM that ``ray.init`` replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def choose_device(resources: Resources | TrainResources) -> str:
    """``cuda`` if a node has a GPU or the cluster may start one that has, else ``cpu``.

    Raises :class:`~segbatch.errors.InputError` if ``cuda`` is asked for and no node can have a GPU,
    and if that is unknown.
    """
    gpus = most_of("GPU")
    if resources.device == "cuda" and not gpus:
        raise InputError(
            "resources.device: cuda, but no node of the Ray cluster has a GPU, and none that it"
            " may start"
        )
    if resources.device == "auto":
        if math.isinf(gpus) and not cluster_resources().get("GPU"):
            raise InputError(
                "resources.device: auto: no node has a GPU now, and KubeRay does not tell whether"
                " it would start one: say cuda or cpu"
            )
        return "cuda" if gpus else "cpu"
    return resources.device


def share_out(resources: Resources, device: str) -> Workers:
    """The predict workers that the job file asks for, or that fit the cluster.

    Raises :class:`~segbatch.errors.InputError` if the cluster is too small for them.
    """
    may_grow = node_types() != []
    if device == "cuda":
        return gpu_workers(resources, list(zip(node_cpus(), node_gpus(), strict=True)), may_grow)
    nodes = node_cpus()
    if not any(nodes):  # scaled to zero: the request starts nodes
        nodes = [float(MIN_LOGICAL_CPUS)]
    logical = int(sum(nodes))
    # A local Ray may have more logical CPUs than cores; threads must not exceed the cores.
    physical = min(logical, num_cores()) if len(nodes) == 1 else logical
    return cpu_workers(resources, nodes, physical, may_grow)


def gpu_workers(
    resources: Resources, nodes: list[tuple[float, float]], may_grow: bool = False
) -> Workers:
    """Workers that predict on GPUs; ``nodes``: CPUs and GPUs of each node.

    Raises :class:`~segbatch.errors.InputError` if they do not fit.
    """
    cpus = 1 if resources.cpus_per_worker == "auto" else int(resources.cpus_per_worker)
    gpus = resources.gpus_per_worker
    room = sum(min(int(has / gpus), fitting(cpu, cpus)) for cpu, has in nodes)
    room = min(room, fitting(sum(cpu for cpu, _ in nodes) - OTHER_CPUS, cpus))
    low, high = pool_size(resources, max(1, room))
    if low > room and not may_grow:
        there = ", ".join(f"{cpu:g} CPUs and {has:g} GPUs" for cpu, has in nodes if has)
        raise InputError(
            f"resources: {low} workers of {cpus} CPUs and {gpus:g} GPUs, and there is room for"
            f" {room} on the nodes with GPUs ({there}), two CPUs left over to read and write"
        )
    return Workers("cuda", (low, high), cpus, gpus)


def cpu_workers(
    resources: Resources, nodes: list[float], physical: int, may_grow: bool = False
) -> Workers:
    """Workers that predict on CPUs; ``nodes``: logical CPUs of each node, ``physical``: all cores.

    Raises :class:`~segbatch.errors.InputError` if they do not fit.
    """
    logical = int(sum(nodes))
    free = max(1, min(physical, int(logical - OTHER_CPUS)))
    if resources.cpus_per_worker == "auto":
        wanted = resources.workers if isinstance(resources.workers, int) else 1
        cpus = max(1, min(threads_on(max(nodes)), free // wanted))
    else:
        cpus = int(resources.cpus_per_worker)
    room = sum(fitting(has - READ_CPUS, cpus) for has in nodes)  # a worker runs on one node
    now = min(free // cpus, fitting(logical - OTHER_CPUS, cpus), room)
    low, high = pool_size(resources, max(1, now))
    if low > now and not may_grow:
        raise InputError(
            f"resources: {low} workers of {cpus} CPUs; of {logical} CPUs on {len(nodes)} nodes,"
            f" {free} are there for workers, the rest read and write; on one node"
            f" {int(max(nodes))}, of which one reads"
        )
    return Workers("cpu", (low, high), cpus, 0.0)


def threads_on(node_cpus: float) -> int:
    """Threads of a worker on a node with so many CPUs; one CPU stays free to read."""
    return max(1, min(THREADS_PER_WORKER, int(node_cpus) - 1))


def fitting(cpus: float, threads: int) -> int:
    """How many predict workers fit into ``cpus``."""
    return max(0, int(cpus / worker_cpus(threads)))


def share_out_training(resources: TrainResources, device: str) -> Workers:
    """The workers that train; no CPUs stay free for other stages.

    Raises :class:`~segbatch.errors.InputError` if the cluster is too small, also once it has grown.
    """
    low, high = size = resources.num_workers
    num_cpus = most_of("CPU") or MIN_LOGICAL_CPUS
    # A local Ray may have more logical CPUs than cores; threads must not exceed the cores.
    physical = min(num_cpus, num_cores()) if node_cpus() == [num_cpus] else num_cpus
    cpus = max(1, int(min(physical / high, largest_node())))
    if resources.cpus_per_worker != "auto":
        cpus = int(resources.cpus_per_worker)
    gpus = float(resources.gpus_per_worker) if device == "cuda" else 0.0
    num_gpus = most_of("GPU")
    if low * cpus > num_cpus or low * gpus > num_gpus:
        raise InputError(
            f"resources: {low} workers of {cpus} CPUs and {gpus:g} GPUs, and Ray has"
            f" {num_cpus:g} CPUs and {num_gpus:g} GPUs"
        )
    return Workers(device, size, cpus, gpus)


def pool_size(resources: Resources, now: int) -> tuple[int, int | None]:
    """Smallest and largest number of workers; ``auto``: what fits now, and more later.

    Ray Data never gives a stage CPUs reserved for other stages, so more workers starve none.
    """
    if resources.workers == "auto":
        return now, None
    if isinstance(resources.workers, int):
        return resources.workers, resources.workers
    low, high = resources.workers
    return low, high


def cluster_resources() -> dict[str, Any]:
    """The total resources of the nodes that are there now, by Ray's names."""
    resources: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def most_of(resource: str) -> float:
    """The most CPUs or GPUs that the cluster can have, with nodes that it may still start.

    Infinite if that is unknown.
    """
    return max(float(cluster_resources().get(resource, 0)), may_come(resource))


def largest_node() -> float:
    """CPUs of the largest node that is there or that the autoscaler may start."""
    return max([*node_cpus(), *(each.cpus for each in node_types() or [])])


def node_cpus() -> list[float]:
    """Logical CPUs of each node that is there now."""
    return _of_nodes("CPU")


def node_gpus() -> list[float]:
    """GPUs of each node that is there now."""
    return _of_nodes("GPU")


def _of_nodes(resource: str) -> list[float]:
    return [node["Resources"].get(resource, 0.0) for node in alive_nodes()]
