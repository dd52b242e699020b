"""Nodes of the cluster: which may be started, and how long each kind was there.

Ray 2.60 does not tell a driver which nodes its autoscaler may add. The file that ``ray up`` leaves
on the head does; KubeRay says nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import ray
import yaml

from segbatch import storage
from segbatch.errors import InputError
from segbatch.jobs.runtime.compat import BOOTSTRAP, HEAD, KUBERAY
from segbatch.results.runinfo import NodeTime

ACCELERATOR = "accelerator_type:"  # prefix of the resource that names the kind of a GPU
MAX_WORKERS = 2  # of a file that does not say it, by Ray's own defaults

# CPUs and GPUs that Ray gives out, the cloud's name of the machine, whether it is a spot machine;
# None if unknown.
Kind = tuple[float, float, str | None, bool | None]


@dataclass(frozen=True)
class NodeType:
    """One entry of ``available_node_types``. ``most`` is the largest number of its nodes."""

    name: str
    cpus: float
    gpus: float
    gpu: str | None  # kind of GPU, if the file says it
    instance: str | None  # the cloud's name of the machine
    spot: bool
    most: int


@dataclass(frozen=True)
class ClusterFile:
    """A ``cluster.yaml``: its head, and the types of nodes that have CPUs or GPUs for Ray.

    ``most`` is the largest number of nodes of all types together, without the head.
    """

    head: NodeType | None
    workers: list[NodeType]
    region: str | None
    most: int

    def most_of(self, resource: str) -> float:
        """The most CPUs or GPUs that its nodes have together."""
        left, total = self.most, 0.0
        amounts = [(each.gpus if resource == "GPU" else each.cpus, each) for each in self.workers]
        for amount, kind in sorted(amounts, key=itemgetter(0), reverse=True):
            nodes = min(left, kind.most)
            total, left = total + nodes * amount, left - nodes
        return total


NO_CLUSTER = ClusterFile(None, [], None, 0)


def read_cluster_file(uri: str) -> ClusterFile:
    """Read a file for ``ray up``; one for machines of your own has no types of nodes.

    Raises :class:`~segbatch.errors.InputError` if it is not such a file.
    """
    text = storage.read_text(uri, InputError)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{uri}: not valid YAML: {storage.one_line(error)}") from error
    content = content if isinstance(content, Mapping) else {}
    types, provider = content.get("available_node_types"), content.get("provider") or {}
    if types is None and isinstance(provider, Mapping) and provider.get("type") == "local":
        return NO_CLUSTER
    if not isinstance(types, Mapping):
        raise InputError(f"{uri}: has no available_node_types: not a cluster file for ray up")
    most_in_all = content.get("max_workers", MAX_WORKERS)
    known = {}
    for name, entry in types.items():
        try:
            known[name] = _node_type(str(name), entry, int(most_in_all))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{uri}: available_node_types.{name}: cannot be read: {storage.one_line(error)}"
            ) from error
    head = content.get("head_node_type")
    workers = [t for name, t in known.items() if t.most and (t.cpus or t.gpus) and name != head]
    return ClusterFile(known.get(head), workers, provider.get("region"), int(most_in_all))


def _node_type(name: str, entry: Mapping[str, Any], most_in_all: int) -> NodeType:
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
        most=min(int(entry.get("max_workers", most_in_all)), most_in_all),
    )


def node_types() -> list[NodeType] | None:
    """The types of nodes that the autoscaler may start; ``None`` if that is unknown (KubeRay)."""
    if cluster := _launched_cluster():
        return cluster.workers
    return None if KUBERAY in os.environ else []


def may_come(resource: str) -> float:
    """The most CPUs or GPUs of all nodes that the autoscaler may start; infinite if unknown."""
    if cluster := _launched_cluster():
        return cluster.most_of(resource)
    return math.inf if KUBERAY in os.environ else 0.0


def _launched_cluster() -> ClusterFile | None:
    """The file of the ``ray up`` that launched this head; ``None`` where there is none."""
    path = Path(BOOTSTRAP).expanduser()
    return read_cluster_file(str(path)) if path.exists() else None


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes that are there now, as ``ray.nodes`` describes them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


class NodeClock:
    """Counts node seconds, which a run is billed for, from its creation on.

    Each :meth:`read` adds the time since the last one for every node that is alive.
    """

    def __init__(self) -> None:
        self._cluster = _launched_cluster()
        self._seconds: defaultdict[Kind, float] = defaultdict(float)
        self._read = time.monotonic()

    def read(self) -> list[NodeTime]:
        """Node seconds by kind of node since the clock was made."""
        now = time.monotonic()
        for node in alive_nodes() if ray.is_initialized() else []:
            self._seconds[_kind(node["Resources"], self._cluster)] += now - self._read
        self._read = now
        return [
            NodeTime(cpus=cpus, gpus=gpus, instance=instance, spot=spot, seconds=round(seconds, 1))
            for (cpus, gpus, instance, spot), seconds in self._seconds.items()
        ]


def _kind(resources: dict[str, float], cluster: ClusterFile | None) -> Kind:
    """The kind of a node; instance and spot are known if exactly one type of the file fits."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cluster is None:
        return cpus, gpus, None, None
    types = cluster.workers if HEAD not in resources else [cluster.head] if cluster.head else []
    fitting = [t for t in types if HEAD in resources or (t.cpus, t.gpus) == (cpus, gpus)]
    if len(fitting) != 1:
        return cpus, gpus, None, None
    return cpus, gpus, fitting[0].instance, fitting[0].spot
