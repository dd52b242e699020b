"""Node clock: which machines a cluster had, and for how long: what a run is billed for."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray

from segbatch.jobs.runtime.growth import BOOTSTRAP
from segbatch.jobs.runtime.nodes import Cluster, read_cluster

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
