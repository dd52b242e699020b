"""The Serve application: ``segbatch.serving.app:build`` is the import path of its builder."""

# Without `from __future__ import annotations`: Serve reads the type of the builder's argument.
from typing import Any

from ray import serve
from ray.serve import Application

from segbatch.config.job import Resources
from segbatch.errors import InputError
from segbatch.jobs.runtime.nodes import node_types
from segbatch.jobs.runtime.workers import (
    MIN_LOGICAL_CPUS,
    THREADS_PER_WORKER,
    choose_device,
    node_cpus,
    node_gpus,
)
from segbatch.machine import num_cores
from segbatch.serving.endpoints import api
from segbatch.serving.replica import Predictor
from segbatch.serving.service import Service

BATCHES_ONGOING = 4  # of a replica: one on the device, others are received, decoded and encoded
BATCHES_QUEUED = 64  # in a proxy, before requests are refused with 503
IDLE_S = 0.2  # between two looks of a stopping replica at its last requests

deployment: Any = serve.deployment(serve.ingress(api)(Predictor))


def build(service: Service) -> Application:
    """The application of a service, for the Ray that this process is connected to.

    Raises :class:`~segbatch.errors.InputError` if its replicas do not fit.
    """
    try:
        device = choose_device(Resources(device=service.device))
    except InputError as error:
        raise InputError(str(error).removeprefix("resources.")) from error
    nodes = list(zip(node_cpus(), node_gpus(), strict=True))
    num_cpus, num_gpus = replica_size(service, device, nodes, may_grow=node_types() != [])
    batch_size = service.predict.batch_size
    scaling: dict[str, Any] = {"num_replicas": service.replicas}
    if service.most_replicas > service.replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": service.replicas,
                "max_replicas": service.most_replicas,
                "target_ongoing_requests": batch_size,
            }
        }
    application: Application = deployment.options(
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=BATCHES_ONGOING * batch_size,
        max_queued_requests=BATCHES_QUEUED * batch_size,
        graceful_shutdown_wait_loop_s=IDLE_S,
        **scaling,
    ).bind(service.model_copy(update={"device": device}))
    return application


def replica_size(
    service: Service, device: str, nodes: list[tuple[float, float]], *, may_grow: bool
) -> tuple[int, int]:
    """CPUs and GPUs of a replica; ``nodes``: CPUs and GPUs of each node that is there.

    On CPUs, all replicas share the cores of a single node. Raises
    :class:`~segbatch.errors.InputError` if not all replicas fit, also once the cluster has grown.
    """
    most = service.most_replicas
    if device == "cuda":
        each = [int(cpus / gpus) for cpus, gpus in nodes if gpus >= 1]
        num_cpus = max(1, min([THREADS_PER_WORKER, *each]))
        room = sum(min(int(gpus), int(cpus / num_cpus)) for cpus, gpus in nodes)
        what = f"a GPU and {num_cpus} CPUs"
    else:
        # A local Ray may have more logical CPUs than cores; threads must not exceed the cores.
        sizes = [cpus for cpus, _ in nodes if cpus] or [float(MIN_LOGICAL_CPUS)]
        cores = min(int(sizes[0]), num_cores()) // most if len(sizes) == 1 else int(max(sizes))
        num_cpus = max(1, min(THREADS_PER_WORKER, cores))
        room = sum(int(cpus / num_cpus) for cpus, _ in nodes)
        what = f"{num_cpus} CPU{'s' if num_cpus > 1 else ''}"
    if most > room and not may_grow:
        raise InputError(f"{most} replicas of {what} each: Ray has room for {room}")
    return num_cpus, int(device == "cuda")
