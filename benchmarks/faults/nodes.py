"""A Ray of several nodes on this machine, which can be lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from segbatch.jobs.runtime.workers import MIN_LOGICAL_CPUS

ROOT = Path(__file__).parents[2]


class Nodes:
    """A head without CPUs, as where drivers run on a node of their own; others join and are lost.

    ``paths`` are where workers find more packages than this process's Python has.
    """

    def __init__(self, *paths: str) -> None:
        self._paths = paths

    def __enter__(self) -> Nodes:
        self._environment = pytest.MonkeyPatch()
        self._environment.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *self._paths]))
        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()
        self._environment.undo()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def join(self) -> Any:
        """One more node, of Ray's ``Node``. Only the main thread may call it."""
        return self._cluster.add_node(num_cpus=MIN_LOGICAL_CPUS)

    def lose(self, node: Any) -> None:
        """Kill a node with all its workers."""
        self._cluster.remove_node(node, allow_graceful=False)


def raylet_of(node: Any) -> int:
    """The process id of a node; its workers are its children."""
    return int(node.all_processes["raylet"][0].process.pid)


class OneNode:
    """The one node beside a head; it can be lost, and another one joins."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._node = nodes.join()
        self.address = nodes.address

    @property
    def raylet(self) -> int:
        return raylet_of(self._node)

    def lose(self) -> None:
        self._nodes.lose(self._node)
        self._node = self._nodes.join()
