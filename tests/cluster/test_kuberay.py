"""The Kubernetes manifests: names and types of their fields, and what Ray's autoscaler reads."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from kubernetes import client as kubernetes
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.serve.schema import ServeDeploySchema

import segbatch
from segbatch.config.job import load_job
from segbatch.serving.app import replica_size
from segbatch.serving.service import IMPORT_PATH, service_of
from tests.clusters import FETCH, GPU_WORKER, launched, leaves, problems, read, unknown_options

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "jobs" / "kuberay"
JOBS = ["segment", "finetune"]
RAY = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]

every_job = pytest.mark.parametrize("name", JOBS)


class Fields(BaseModel):
    """The fields of a type that the manifests use; others, and other types, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


# ray.io/v1 as in KubeRay v1.7.0, docs/reference/api.md; the same page is
# https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html. From the pod's template on
# it is Kubernetes' own, of which the `kubernetes` client has every field.
class AuthOptions(Fields):
    mode: Literal["disabled", "token"]
    secret_name: str


class AutoscalerOptions(Fields):
    version: Literal["v1", "v2"]
    idle_timeout_seconds: int
    env: list[kubernetes.V1EnvVar]


class HeadGroupSpec(Fields):
    ray_start_params: dict[str, str]
    template: kubernetes.V1PodTemplateSpec


class WorkerGroupSpec(HeadGroupSpec):
    group_name: str
    priority: int = 0
    min_replicas: int
    max_replicas: int


class RayClusterSpec(Fields):
    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec]


class RayJobSpec(Fields):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    ray_cluster_spec: RayClusterSpec


class RayJob(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: kubernetes.V1ObjectMeta
    spec: RayJobSpec


class RayServiceSpec(Fields):
    serve_config_v2: str
    ray_cluster_config: RayClusterSpec


class RayService(Fields):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: kubernetes.V1ObjectMeta
    spec: RayServiceSpec


MODELS: dict[str, type[BaseModel]] = {
    "RayJob": RayJob,
    "RayService": RayService,
    "ConfigMap": kubernetes.V1ConfigMap,
    "ServiceAccount": kubernetes.V1ServiceAccount,
}


def refused(document: dict[str, Any]) -> list[str]:
    """Fields that are unknown, of another type, or missing, a line each."""
    try:
        MODELS[document["kind"]].model_validate(document)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    # The client would take its own names of fields, too; Kubernetes would not.
    return [f"{path}: not in camel case" for path, _ in leaves(document) if "_" in path]


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The manifests of a file by kind."""
    return {d["kind"]: d for d in yaml.safe_load_all((KUBERAY / f"{name}.yaml").read_text())}


def ray_job(name: str) -> dict[str, Any]:
    return documents(name)["RayJob"]


def cluster_of(job: dict[str, Any]) -> dict[str, Any]:
    """The autoscaler's configuration in the head's pod, for the RayCluster of a job."""
    cluster = {
        "metadata": {"name": "cluster", "namespace": "default"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return config


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups(job)]


@pytest.mark.parametrize("name", [*JOBS, "account", "serve"])
def test_every_field_is_one_that_there_is(name: str) -> None:
    for document in documents(name).values():
        assert refused(document) == []


HEAD = "spec.rayClusterSpec.headGroupSpec"
POD = f"{HEAD}.template.spec"


def change(job: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted ``key``, or remove it if ``value`` is None."""
    *parents, last = key.split(".")
    at: Any = job
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at[parent]
    if value is None:
        del at[last]
    else:
        at[last] = value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("spec.backofLimit", 5, "not permitted"),
        ("spec.backoffLimit", "5", "valid integer"),
        ("spec.submissionMode", "JobMode", "should be 'K8sJobMode'"),
        (f"{HEAD}.rayStartParams.num-cpus", 0, "valid string"),
        (f"{HEAD}.groupName", "head", "not permitted"),
        (f"{POD}.terminationGracePeriod", 60, "not permitted"),
        (f"{POD}.terminationGracePeriodSeconds", "60", "valid integer"),
        (f"{POD}.node_selector", {"a": "b"}, "not in camel case"),
        (f"{POD}.containers.0.name", None, "required"),
        (f"{POD}.containers.0.env.0.value", 30, "valid string"),
        (f"{POD}.containers.0.volumeMounts.0.mountPath", None, "required"),
        (
            "spec.rayClusterSpec.workerGroupSpecs.1.template.spec.tolerations.0.keys",
            "a",
            "not perm",
        ),
    ],
)
def test_a_field_that_there_is_not_is_found(key: str, value: Any, said: str) -> None:
    job = copy.deepcopy(ray_job("segment"))
    change(job, key, value)
    [problem] = refused(job)
    assert said in problem


@every_job
def test_ray_takes_it_and_we_find_nothing_that_ray_misses(name: str) -> None:
    read(cluster_of(ray_job(name)))
    assert problems(cluster_of(ray_job(name))) == []
    for document in documents(name).values():
        assert problems(document) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{HEAD}.rayStartParams.num-cpus", "4", "the head would run workers"),
        (
            "spec.rayClusterSpec.workerGroupSpecs.2.template.spec.containers.0.resources.limits",
            {"cpu": "2", "nvidia.com/gpu": "1"},
            "no headroom",
        ),
        (f"{POD}.containers.0.image", "rayproject/ray:latest", "not pinned"),
        (f"{POD}.containers.0.image", "registry.example.com/segbatch", "not pinned"),
        ("spec.rayClusterSpec.authOptions.token", "abc", "looks like a secret"),
    ],
)
def test_what_ray_misses_is_found(key: str, value: Any, said: str) -> None:
    job = copy.deepcopy(ray_job("segment"))
    change(job, key, value)
    found = [*problems(cluster_of(job)), *problems(job)]
    assert found
    assert all(said in problem for problem in found)


@every_job
def test_pods_come_from_zero_on_spot_first_and_on_demand_where_there_is_none(name: str) -> None:
    cluster = cluster_of(ray_job(name))
    assert launched(cluster, []) == {}
    assert launched(cluster, [GPU_WORKER] * 2) == {"gpu-spot": 2}
    assert launched(cluster, [GPU_WORKER] * 2, refused=["gpu-spot"]) == {"gpu": 2}


def test_what_needs_no_gpu_is_done_where_there_is_none() -> None:
    assert launched(cluster_of(ray_job("segment")), [FETCH] * 16) == {"cpu": 2}


def test_workers_that_train_have_room_in_a_pod() -> None:
    manifests = documents("finetune")
    job = load_job(yaml.safe_load(manifests["ConfigMap"]["data"]["job.yaml"]))
    asked = {"GPU": 1.0, "CPU": float(job.resources.cpus_per_worker)}
    workers = job.resources.workers
    assert launched(cluster_of(manifests["RayJob"]), [asked] * workers) == {"gpu-spot": workers}


@every_job
def test_the_job_is_where_the_head_looks_for_it(name: str) -> None:
    manifests = documents(name)
    config_map, job = manifests["ConfigMap"], manifests["RayJob"]
    assert load_job(yaml.safe_load(config_map["data"]["job.yaml"])).kind == name
    head = pods(job)[0]
    [volume] = [v for v in head["volumes"] if v.get("configMap") == {"name": name}]
    [mount] = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert config_map["metadata"]["name"] == job["metadata"]["name"] == name
    assert job["spec"]["entrypoint"] == f"segbatch run {mount['mountPath']}/job.yaml"


@every_job
def test_pods_are_given_what_segbatch_relies_on(name: str) -> None:
    job = ray_job(name)
    account = documents("account")["ServiceAccount"]["metadata"]["name"]
    for group, pod in zip(groups(job), pods(job), strict=True):
        [container] = pod["containers"]
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        assert pod["serviceAccountName"] == account
        assert container["image"].endswith(f"segbatch:{segbatch.__version__}-ray{RAY}-cu130")
        started = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
        assert not unknown_options(started)
        [spill] = [m for m in container["volumeMounts"] if m["name"] == "spill"]
        assert group["rayStartParams"]["object-spilling-directory"] == spill["mountPath"]
        tolerated = {t["key"] for t in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in limits) == ("nvidia.com/gpu" in tolerated)
    names = [group["groupName"] for group in groups(job)[1:]]
    markets = dict(zip(names, pods(job)[1:], strict=True))
    assert "SPOT" in markets["gpu-spot"]["nodeSelector"].values()
    assert "SPOT" in {t.get("value") for t in markets["gpu-spot"]["tolerations"]}


@every_job
def test_a_driver_that_is_stopped_commits_what_is_written(name: str) -> None:
    job = ray_job(name)
    head = pods(job)[0]
    assert head["terminationGracePeriodSeconds"] >= 30, "it takes up to 20 s"
    [container] = head["containers"]
    assert (
        "kill -TERM $(pidof -x segbatch)" in container["lifecycle"]["preStop"]["exec"]["command"][2]
    )
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "45"} in container["env"]
    assert job["spec"]["entrypoint"].startswith("segbatch ")  # a shell before it would hide it


@every_job
def test_kuberay_takes_it(name: str) -> None:
    """What KubeRay refuses beyond types: ray-operator/controllers/ray/utils/validation.go."""
    job = ray_job(name)
    spec = job["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    assert spec["rayVersion"] == RAY  # authOptions from 2.52, priority from 2.56
    assert spec["autoscalerOptions"]["version"] == "v2"  # or no priority
    assert {pod.get("restartPolicy", "Never") for pod in pods(job)} == {"Never"}
    assert job["spec"]["backoffLimit"] > 0  # exit code 3 is run again
    assert job["spec"]["shutdownAfterJobFinishes"]  # or no ttlSecondsAfterFinished
    assert spec["authOptions"] == {"mode": "token", "secretName": "segbatch-ray"}


def test_the_model_is_served_by_as_many_pods_as_it_may_have_replicas() -> None:
    manifest = documents("serve")["RayService"]
    assert problems(manifest) == []
    spec = manifest["spec"]["rayClusterConfig"]
    assert spec["rayVersion"] == RAY
    [application] = ServeDeploySchema.model_validate(
        yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ).applications
    assert application.import_path == IMPORT_PATH
    service = service_of(application.args)
    [group] = spec["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (service.replicas, service.most_replicas)
    cluster = cluster_of({"spec": {"rayClusterSpec": spec}})
    assert problems(cluster) == []
    cpus, gpus = replica_size(service, service.device, [], may_grow=True)
    replica = {"CPU": float(cpus), "GPU": float(gpus)}
    assert launched(cluster, [replica] * 3) == {"gpu": 3}
