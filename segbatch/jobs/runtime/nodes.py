"""Node types: what a ``cluster.yaml`` of Ray's cluster launcher may start."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from segbatch import storage
from segbatch.errors import InputError

ACCELERATOR = "accelerator_type:"  # a resource by which Ray names the kind of a GPU


@dataclass(frozen=True)
class NodeType:
    """One entry of ``available_node_types``. ``most`` is how many nodes of it there may be."""

    name: str
    cpus: float
    gpus: float
    gpu: str | None  # its kind, where the file says it
    instance: str | None  # what the cloud calls the machine
    spot: bool
    most: int


@dataclass(frozen=True)
class Cluster:
    """The head, and the types that work: those with CPUs or GPUs for Ray to give out."""

    head: NodeType | None
    workers: list[NodeType]
    region: str | None


def read_cluster(uri: str) -> Cluster:
    """Raises :class:`~segbatch.errors.InputError` if it is no such file."""
    data = storage.read_input(uri, InputError)
    try:
        content = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise InputError(f"{uri}: not valid YAML: {storage.one_line(error)}") from error
    types = content.get("available_node_types") if isinstance(content, Mapping) else None
    if not isinstance(types, Mapping):
        raise InputError(f"{uri}: has no available_node_types: not a file for ray up with nodes")
    known = {}
    for name, entry in types.items():
        try:
            known[name] = _node_type(str(name), entry, content.get("max_workers"))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{uri}: available_node_types.{name}: cannot be read: {storage.one_line(error)}"
            ) from error
    head = content.get("head_node_type")
    workers = [t for name, t in known.items() if t.most and (t.cpus or t.gpus) and name != head]
    provider = content.get("provider") or {}
    return Cluster(known.get(head), workers, provider.get("region"))


def _node_type(name: str, entry: Mapping[str, Any], most_in_all: Any) -> NodeType:
    resources = entry.get("resources") or {}
    node = entry.get("node_config") or {}
    market = (node.get("InstanceMarketOptions") or {}).get("MarketType")
    kinds = [key.removeprefix(ACCELERATOR) for key in resources if key.startswith(ACCELERATOR)]
    scheduling = node.get("scheduling") or {}
    return NodeType(
        name=name,
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        gpu=kinds[0] if kinds else None,
        instance=node.get("InstanceType") or node.get("machineType"),
        spot=market == "spot"
        or bool(scheduling.get("preemptible"))
        or scheduling.get("provisioningModel") == "SPOT",
        most=int(entry.get("max_workers", most_in_all if most_in_all is not None else 1)),
    )


# Growth: which nodes an autoscaler may add to a cluster. Ray 2.60 itself tells drivers nothing.


BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # `ray up` leaves it on the head, where drivers run


KUBERAY = "KUBERAY_GEN_RAY_START_CMD"  # is set in KubeRay's pods, and says no more than that


def node_types() -> list[NodeType] | None:
    """The types of nodes that may come; ``None`` where some may, and nobody says which."""
    path = Path(BOOTSTRAP).expanduser()
    if path.exists():
        return read_cluster(str(path)).workers
    return None if KUBERAY in os.environ else []


# Node clock: which machines a cluster had, and for how long: what a run is billed for.


HEAD = "node:__internal_head__"  # a resource that Ray's head has


# CPUs and GPUs that Ray gives out; what the cloud calls the machine, and whether it is a spot one:
# None where nobody says.
Kind = tuple[float, float, str | None, bool | None]


class NodeClock:
    """Counts from now on; each :meth:`read` adds the nodes that are there to what it was before."""

    def __init__(self) -> None:
        path = Path(BOOTSTRAP).expanduser()
        self._cluster = read_cluster(str(path)) if path.exists() else None
        self._seconds: defaultdict[Kind, float] = defaultdict(float)
        self._read = time.monotonic()

    def read(self) -> list[dict[str, Any]]:
        """For each kind of node ``cpus, gpus, instance, spot`` and ``seconds``, of all of it."""
        now = time.monotonic()
        nodes: list[dict[str, Any]] = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
        for node in nodes:
            if node["Alive"]:
                self._seconds[_kind(node["Resources"], self._cluster)] += now - self._read
        self._read = now
        names = ("cpus", "gpus", "instance", "spot")
        return [
            {**dict(zip(names, kind, strict=True)), "seconds": round(seconds, 1)}
            for kind, seconds in self._seconds.items()
        ]


def _kind(resources: dict[str, float], cluster: Cluster | None) -> Kind:
    """What a node is, by the file of the cluster that started it, if one type fits alone."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cluster is None:
        return cpus, gpus, None, None
    types = cluster.workers if HEAD not in resources else [cluster.head] if cluster.head else []
    fitting = [t for t in types if HEAD in resources or (t.cpus, t.gpus) == (cpus, gpus)]
    if len(fitting) != 1:
        return cpus, gpus, None, None
    return cpus, gpus, fitting[0].instance, fitting[0].spot
