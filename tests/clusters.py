"""What is asked of the description of a cluster, by Ray's autoscaler and by us.

Ray's validation reads names and types. :func:`problems` is for what it takes without a word.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.scripts.scripts import start

from segbatch.jobs.runtime.sharing import OTHER_CPUS, READ_CPUS, worker_cpus

GPU_WORKER = {"GPU": 1.0, "CPU": worker_cpus(1)}
FETCH = {"CPU": READ_CPUS}

SPELLINGS = ("CPU", "GPU", "memory", "object_store_memory")
PINNED = re.compile(
    r"rayproject/ray:\d+\.\d+\.\d+-py3\d+-(cpu|cu\d+)"
    r"|(?!rayproject/)[\w.:/-]+:\d+\.\d+[\w.-]*"
    r"|ami-[0-9a-f]{8,17}"
    r"|projects/[\w-]+/global/images/[\w-]+-v\d+"
)
SECRET_NAME = re.compile(r"(secret|password|token|access_?key)(_?id)?$", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|PRIVATE KEY|\w*(SECRET|PASSWORD|TOKEN|ACCESS_KEY)\w*=\S", re.IGNORECASE
)


def read(config: dict[str, Any]) -> AutoscalingConfig:
    """As the autoscaler reads it: defaults filled in, and refused where Ray's schema refuses it."""
    return AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)


def launched(
    config: dict[str, Any], demands: Sequence[dict[str, float]], refused: Sequence[str] = ()
) -> dict[str, int]:
    """Nodes of each type that the autoscaler starts for demands, with ``refused`` types lacking."""
    autoscaling = read(config)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=autoscaling.get_node_type_configs(),
        max_num_nodes=autoscaling.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(demand) for demand in demands]
        ),
        recoverable_resource_availabilities=dict.fromkeys(refused, 0.0),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with a cluster although Ray takes it, a line each."""
    return [*shapes(config), *unpinned(config), *secrets(config)]


def shapes(config: dict[str, Any]) -> Iterator[str]:
    """Resources that Ray does not know by that name, that the head lends, or that GPUs lack."""
    head = config.get("head_node_type")
    for name, node in config.get("available_node_types", {}).items():
        resources = node["resources"]
        for resource in resources:
            meant = next((known for known in SPELLINGS if known.lower() == resource.lower()), None)
            if meant not in (None, resource):
                yield f"{name}: {resource}: Ray calls it {meant}"
        gpus, cpus = resources.get("GPU", 0), resources.get("CPU")
        if name == head:
            if cpus != 0 or gpus or node.get("max_workers"):
                yield f"{name}: the head would run workers: resources: {{CPU: 0}}"
        elif cpus is not None and cpus < gpus * GPU_WORKER["CPU"] + OTHER_CPUS:
            yield f"{name}: {cpus} CPUs: no headroom beside {gpus} GPUs"
    if config.get("provider", {}).get("type") == "local":
        started = " ".join(config["head_start_ray_commands"])
        if not {"--num-cpus=0", "--num-gpus=0"} <= set(started.split()):
            yield "head_start_ray_commands: the head would run workers: --num-cpus=0 --num-gpus=0"


def unpinned(document: Any) -> Iterator[str]:
    """Images that may be others tomorrow."""
    for path, value in leaves(document):
        is_image = path.lower().endswith(("image", "imageid"))
        if is_image and not PINNED.fullmatch(str(value)):
            yield f"{path}: {value}: not pinned"


def secrets(document: Any) -> Iterator[str]:
    """Keys, tokens and passwords, by their names and by how they look."""
    for path, value in leaves(document):
        key = path.rpartition(".")[2]
        named = SECRET_NAME.search(key) and "/" not in path
        if named or (isinstance(value, str) and SECRET_VALUE.search(value)):
            yield f"{path}: looks like a secret"


def unknown_options(command: str) -> set[str]:
    """Options of a ``ray start`` that Ray does not have; its schema reads no commands."""
    known = {option for parameter in start.params for option in parameter.opts}
    return {word.partition("=")[0] for word in command.split() if word.startswith("--")} - known


def leaves(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from leaves(value, f"{path}[{number}]")
    else:
        yield path, document
