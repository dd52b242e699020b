"""Growth: which nodes an autoscaler may add to a cluster. Ray 2.60 itself tells drivers nothing."""

from __future__ import annotations

import os
from pathlib import Path

from segbatch.jobs.runtime.nodes import NodeType, read_cluster

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # `ray up` leaves it on the head, where drivers run
KUBERAY = "KUBERAY_GEN_RAY_START_CMD"  # is set in KubeRay's pods, and says no more than that


def node_types() -> list[NodeType] | None:
    """The types of nodes that may come; ``None`` where some may, and nobody says which."""
    path = Path(BOOTSTRAP).expanduser()
    if path.exists():
        return read_cluster(str(path)).workers
    return None if KUBERAY in os.environ else []
