"""The cluster files: checked by Ray, by the AWS API's models, and for what neither checks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError

import segbatch
from segbatch.jobs.runtime.nodes import read_cluster_file
from tests.clusters import FETCH, GPU_WORKER, launched, problems, read, unknown_options

ROOT = Path(__file__).parents[2]
AWS = ROOT / "cluster.yaml"
CLOUDS = [AWS, ROOT / "docs/clusters/gcp.yaml"]
CLUSTERS = [*CLOUDS, ROOT / "docs/clusters/local.yaml"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

every_cluster = pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
every_cloud = pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)


def load(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


@every_cluster
def test_ray_takes_it_and_we_find_nothing_that_ray_misses(path: Path) -> None:
    read(load(path))
    assert problems(load(path)) == []


def test_ray_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        read(load(AWS) | {"idle_timeout_minute": 5})


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set a dotted ``key``."""

    def damage(config: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change("available_node_types.cpu.resources", {"cpu": 16}), "cpu: cpu: Ray calls it CPU"),
        (change("available_node_types.head.resources", {}), "head would run workers"),
        (change("available_node_types.head.resources", {"CPU": 8}), "head would run workers"),
        (change("available_node_types.head.max_workers", 1), "head would run workers"),
        (change("available_node_types.gpu.resources", {"CPU": 2, "GPU": 1}), "no headroom"),
        (change("docker.head_image", "rayproject/ray:latest"), "head_image: .* not pinned"),
        (change("docker.worker_image", "rayproject/ray:2.60.0-py312-gpu"), "not pinned"),
        (change("docker.worker_image", "rayproject/ray:2.60.0"), "not pinned"),
        (change("available_node_types.gpu.node_config.ImageId", "latest_dlami"), "not pinned"),
        (
            change("docker.run_options", ["--env AWS_SECRET_ACCESS_KEY=abc"]),
            r"run_options\[0\]: looks like a secret",
        ),
        (change("provider.aws_credentials", {"aws_secret_access_key": "abc"}), "like a secret"),
    ],
)
def test_what_ray_misses_is_found(damage: Callable[[dict[str, Any]], None], said: str) -> None:
    config = copy.deepcopy(load(AWS))
    damage(config)
    read(config)
    [problem] = problems(config)
    assert re.search(said, problem)


def test_a_head_of_ones_own_machines_that_would_run_workers_is_found() -> None:
    config = load(ROOT / "docs/clusters/local.yaml")
    config["head_start_ray_commands"] = ["ray start --head --num-gpus=0"]
    read(config)
    [problem] = problems(config)
    assert "head would run workers" in problem


def test_clusters_for_google_have_the_extra_for_its_storage() -> None:
    [command] = load(ROOT / "docs/clusters/gcp.yaml")["setup_commands"]
    assert command.endswith(".whl[gcs]'")
    assert ".[serve,gcs,azure]" in (ROOT / "jobs/kuberay/Dockerfile").read_text()


@every_cloud
def test_nodes_come_from_zero_for_what_segbatch_asks_for(path: Path) -> None:
    config = load(path)
    assert launched(config, []) == {}
    assert launched(config, [GPU_WORKER] * 4) == {"gpu-spot": 4}
    assert launched(config, [FETCH] * 33) == {"cpu": 3}


@every_cloud
def test_on_demand_nodes_stand_in_for_spot_nodes(path: Path) -> None:
    config = load(path)
    spot = config["available_node_types"]["gpu-spot"]["max_workers"]
    assert launched(config, [GPU_WORKER] * 4, refused=["gpu-spot"]) == {"gpu": 4}
    assert launched(config, [GPU_WORKER] * (spot + 2)) == {"gpu-spot": spot, "gpu": 2}


def test_nodes_are_described_as_ec2_wants_them() -> None:
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    nodes = load(AWS)["available_node_types"]
    for name, node in nodes.items():
        asked = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert asked["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
        tagged = {spec["ResourceType"] for spec in asked["TagSpecifications"]}
        assert tagged == {"instance", "volume"}
        market = asked.get("InstanceMarketOptions", {}).get("MarketType")
        assert market == ("spot" if name == "gpu-spot" else None)
    misspelt = nodes["cpu"]["node_config"] | {"InstancType": "m6id.4xlarge"}
    assert ParamValidator().validate(misspelt | {"MinCount": 1, "MaxCount": 1}, shape).has_errors()


@every_cluster
def test_nodes_have_the_versions_that_were_tested(path: Path) -> None:
    [ray] = re.findall(r"^ray==(.+)$", CONSTRAINTS, re.MULTILINE)
    text = path.read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", text)) == {ray}
    assert set(re.findall(r"segbatch-([\d.]+)-py3", text)) == {segbatch.__version__}


@every_cluster
def test_ray_is_started_in_a_way_that_it_knows(path: Path) -> None:
    config = load(path)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        stop, begin = commands
        assert stop == "ray stop"
        assert begin.startswith("ray start ")
        assert not unknown_options(begin)
    assert unknown_options("ray start --head --object-spill-directory=/spill")


@every_cluster
def test_nodes_are_told_what_segbatch_relies_on(path: Path) -> None:
    config = load(path)
    options = " ".join(config["docker"]["run_options"])
    assert "--env RAY_AUTH_MODE=token" in options
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    [seconds] = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", options)
    assert int(seconds) >= 20, "a stopped job takes up to 20 s to commit what is written"
    [spill] = re.findall(r"--volume (\S+):/spill", options)
    assert any(spill in command for command in config["initialization_commands"])
    started = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert sum("--object-spilling-directory=/spill" in command for command in started) == 2


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_a_plan_knows_which_gpus_are_spot(path: Path) -> None:
    gpus = {kind.name: kind.spot for kind in read_cluster_file(str(path)).workers if kind.gpus}
    assert gpus == {name: name.endswith("spot") for name in gpus}
    assert True in gpus.values()
