"""Node types: what a ``cluster.yaml`` of Ray's cluster launcher may start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
