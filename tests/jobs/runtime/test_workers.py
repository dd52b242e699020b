"""Workers: how the CPUs of a cluster are shared out, here four logical ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbatch.config.job import Predict, Resources
from segbatch.config.training import TrainResources
from segbatch.errors import InputError
from segbatch.jobs.runtime import workers
from segbatch.jobs.runtime.executor import data_context
from segbatch.jobs.runtime.nodes import NodeClock
from segbatch.jobs.runtime.sharing import OTHER_CPUS, worker_cpus
from segbatch.jobs.runtime.workers import (
    RAY_VARIABLES,
    Workers,
    choose_device,
    cpu_workers,
    gpu_workers,
    share_out,
    share_out_training,
)
from segbatch.jobs.segment import pipeline, segment
from segbatch.jobs.stages import Predicting, Reading, Stages
from segbatch.machine import num_cores
from segbatch.masks.classes import Classes
from segbatch.results.encode import Encoding
from segbatch.results.lease import WorkerLease
from segbatch.results.schema import rows_schema
from segbatch.results.write import Writing
from segbatch.run import open_run
from segbatch.storage import ReadLimits
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.drivers import driver, exit_code, wait_until, workers_named
from tests.nodes import another_node

pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def test_by_itself_one_worker_has_all_cores_and_two_cpus_stay_free() -> None:
    assert choose_device(Resources()) == "cpu"
    found = share_out(Resources(), "cpu")
    assert (found.size, found.num_cpus) == ((1, None), 2)
    assert str(found) == "1 or more × 2 CPU"


def test_the_cores_are_divided_among_the_workers_that_are_asked_for() -> None:
    found = share_out(Resources(workers=2), "cpu")
    assert (found.size, found.num_cpus) == ((2, 2), 1)


@pytest.mark.parametrize(
    "asked", [{"workers": 3}, {"workers": 2, "cpus_per_worker": 2}, {"cpus_per_worker": 3}]
)
def test_more_than_leaves_room_for_the_other_stages_is_refused(asked: dict[str, int]) -> None:
    with pytest.raises(InputError, match="the rest read and write"):
        share_out(Resources(**asked), "cpu")


def test_a_worker_fits_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "node_cpus", lambda: [4.0, 4.0, 4.0])
    found = share_out(Resources(), "cpu")
    assert (found.size, found.num_cpus) == ((3, None), 3), "and a task that reads beside each"
    monkeypatch.setattr(workers, "node_cpus", lambda: [16.0, 16.0])
    assert share_out(Resources(), "cpu").size == (6, None), "so do nodes of many workers"
    monkeypatch.setattr(workers, "node_cpus", lambda: [4.0, 4.0, 4.0])
    with pytest.raises(InputError, match="on one node 4"):
        share_out(Resources(workers=1, cpus_per_worker=4), "cpu")


SCALED_TO_ZERO = """
max_workers: 9
available_node_types:
  head: {resources: {CPU: 0}, max_workers: 0}
  gpu: {resources: {CPU: 12, GPU: 1}, min_workers: 0, max_workers: 8}
head_node_type: head
"""


def test_nodes_that_ray_up_may_start_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray_bootstrap_config.yaml").write_text(SCALED_TO_ZERO)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_device(Resources()) == choose_device(Resources(device="cuda")) == "cuda"
    found = share_out(Resources(gpus_per_worker=1), "cuda")
    assert (found.size, found.num_cpus, found.num_gpus) == ((1, None), 1, 1.0)
    training = share_out_training(TrainResources(workers=4), "cuda")
    assert (training.size, training.num_cpus, training.num_gpus) == ((4, 4), 12, 1.0)
    with pytest.raises(InputError, match=r"9 workers of .* Ray has 96 CPUs and 8 GPUs"):
        share_out_training(TrainResources(workers=9), "cuda")


@pytest.mark.parametrize(
    ("in_all", "reason"),
    [
        ("max_workers: 3", "has 36 CPUs and 3 GPUs"),
        ("", "has 24 CPUs and 2 GPUs"),  # as Ray reads a file that does not say it
    ],
)
def test_all_node_types_together_have_no_more_nodes_than_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_all: str, reason: str
) -> None:
    helpers = "  cpu: {resources: {CPU: 4}, max_workers: 8}\nhead_node_type"
    text = SCALED_TO_ZERO.replace("max_workers: 9", in_all).replace("head_node_type", helpers)
    (tmp_path / "ray_bootstrap_config.yaml").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=reason):
        share_out_training(TrainResources(workers=9), "cuda")


CONNECTED = """
import logging, os, ray
from segbatch.jobs.runtime.workers import RAY_VARIABLES, connected
logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
before, levels = dict(os.environ), [log.level for log in logs]
assert not before.keys() & RAY_VARIABLES.keys()
with connected(print):
    assert os.environ.keys() >= RAY_VARIABLES.keys()
assert dict(os.environ) == before
assert [log.level for log in logs] == levels
assert ray._private.auto_init_hook.enable_auto_connect
"""


def test_a_process_that_was_connected_is_as_it_was_before(ray_address: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in RAY_VARIABLES}
    subprocess.run(
        [sys.executable, "-c", CONNECTED],
        check=True, env={**environment, "RAY_ADDRESS": ray_address},
    )  # fmt: skip


LAUNCHED = """
available_node_types:
  head: {resources: {CPU: 4}, node_config: {InstanceType: m6i.xlarge}}
  gpu: {resources: {CPU: 4, GPU: 1}, node_config: {InstanceType: g6.xlarge}}
head_node_type: head
"""


def test_nodes_and_their_hours_are_known_as_far_as_a_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [counted] = NodeClock().read()
    assert (counted.cpus, counted.instance, counted.spot) == (4, None, None)
    (tmp_path / "ray_bootstrap_config.yaml").write_text(LAUNCHED)
    monkeypatch.setenv("HOME", str(tmp_path))
    clock = NodeClock()
    assert [(n.instance, n.spot) for n in clock.read()] == [("m6i.xlarge", False)]
    for _ in range(2):
        time.sleep(0.2)
        [counted] = clock.read()
    assert counted.seconds >= 0.4, "the time between all readings, and not that of the last"


def test_what_kuberay_may_start_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head")
    assert choose_device(Resources(device="cuda")) == "cuda"
    assert choose_device(Resources(device="cpu")) == "cpu"
    with pytest.raises(InputError, match="say cuda or cpu"):
        choose_device(Resources())
    found = share_out(Resources(workers=40, cpus_per_worker=1), "cpu")
    assert found.size == (40, 40), "of which most are still to come"
    assert share_out_training(TrainResources(workers=8), "cuda").size == (8, 8)


def test_workers_with_gpus_fit_on_nodes_and_leave_a_cpu_to_read() -> None:
    one_each = Resources(gpus_per_worker=1)
    assert gpu_workers(one_each, [(8, 1), (8, 1), (16, 0)]).size == (2, None)
    assert gpu_workers(one_each, [(4, 4)]).size == (2, None), "and not three, who leave 0.97 CPUs"
    with pytest.raises(InputError, match="room for 0 on the nodes with GPUs"):
        gpu_workers(Resources(gpus_per_worker=2), [(8, 1), (8, 1)])
    with pytest.raises(InputError, match=r"3 workers .* room for 2"):
        gpu_workers(Resources(gpus_per_worker=1, workers=3), [(8, 2)])
    assert gpu_workers(Resources(workers=3), [(8, 2)], may_grow=True).size == (3, 3)


def test_a_cluster_without_nodes_is_asked_for_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "node_cpus", lambda: [0.0])
    found = share_out(Resources(), "cpu")
    assert (found.size, found.num_cpus) == ((1, None), 2)


@given(
    nodes=st.lists(st.integers(1, 96), min_size=1, max_size=8),
    gpus=st.integers(1, 8),
    asked=st.sampled_from([Resources(), Resources(cpus_per_worker=1), Resources(workers=3)]),
)
def test_workers_leave_cpus_for_a_task_of_every_other_stage(
    nodes: list[int], gpus: int, asked: Resources
) -> None:
    """Otherwise Ray lets the last stage wait, and nothing is committed, until all is read."""
    cpus = [float(node) for node in nodes]
    for share in (
        partial(cpu_workers, asked, cpus, sum(nodes)),
        partial(gpu_workers, asked, [(cpu, gpus) for cpu in cpus]),
    ):
        with contextlib.suppress(InputError):
            found = share()
            taken = found.size[0] * worker_cpus(found.num_cpus)
            assert taken + OTHER_CPUS <= sum(nodes)


@pytest.mark.long
def test_files_are_written_while_images_are_still_being_read(
    s3: S3, model_uri: str, tmp_path: Path
) -> None:
    images, run = s3.uri("images"), tmp_path / "run"
    for number in range(40):
        s3.put(f"{images}/{number}.jpg", jpeg(number, 48, 64))
    slow = {"kind": "stall", "method": "GET", "seconds": 0.7, "times": 2}
    s3.break_down({**slow, "part": "images/2"}, {**slow, "part": "images/3"})
    asked_before: list[int] = []

    def asked() -> int:
        return sum(s3.requests("GET", "images/").values())

    def look() -> None:
        while not any((run / "rows").glob("*.parquet")):
            time.sleep(0.05)
        asked_before.append(asked())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    segment(job(f"{images}/", model_uri, str(run), rows_per_file=1, predict={"batch_size": 1}))
    looking.join(1)
    asked_in_all = asked()
    s3.break_down()
    assert asked_before[0] < 0.8 * asked_in_all


def test_ray_takes_a_pipeline_with_gpus(model_uri: str) -> None:
    classes = Classes(["wall", "window"])
    schema = rows_schema(classes, stats=[])
    stages = Stages(
        Reading(ReadLimits(1000, 1.0, 0), 1000, None),
        Predicting(model_uri, Predict(), "cuda", 1, True, True),
        Encoding(classes, schema),
        Writing(WorkerLease("file:///run", "driver"), 1, schema, last_pass=False),
    )
    images = pa.table({"image_id": [0, 1], "uri": ["a.jpg", "b.jpg"]})
    gpus = Workers("cuda", (1, None), 1, 0.5)
    with data_context(stall_minutes=1):
        assert "PredictStage" in repr(pipeline(images, 1, stages, file_rows=1, workers=gpus))


def test_what_ray_says_goes_to_stderr_since_results_alone_go_to_stdout(ray_address: str) -> None:
    script = """
import sys, time, ray
from ray._private.utils import publish_error_to_driver
from segbatch.jobs.runtime.workers import connected

with connected(lambda line: None):
    client = ray._private.worker.global_worker.gcs_client
    for _ in range(20):  # the listener subscribes a moment later
        publish_error_to_driver("worker_died", "a worker died", client)
        time.sleep(0.1)
print("the result")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == "the result\n"
    assert "a worker died" in ended.stderr
    assert "ray log level" not in ended.stderr


@pytest.mark.long
def test_workers_grow_from_their_minimum_and_go_with_a_node(
    s3: S3, model_uri: str, tmp_path: Path, ray_address: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        (images / f"{number}.jpg").write_bytes(jpeg(number, 300, 400))
    slow = {"long_side": None, "scales": [1.0, 2.0]}
    run = tmp_path / "run"
    one_or_more = {"workers": [1, 8], "cpus_per_worker": 1}
    work = job(f"{images}/", model_uri, str(run), predict=slow, rows_per_file=1,
               resources=one_or_more)  # fmt: skip

    def predicting() -> set[int]:
        return set(workers_named("PredictStage", s3.url))

    with contextlib.ExitStack() as stack:
        node = stack.enter_context(another_node(ray_address, num_cpus=4))
        process = stack.enter_context(driver(work, tmp_path, ray_address))
        wait_until(lambda: len(predicting()) > 1, process)
        os.kill(node, signal.SIGKILL)
        assert exit_code(process, 240) == 0
    finished = open_run(str(run))
    assert finished.info.starts[0].workers == "1 to 8 × 1 CPU"
    assert finished.audit(deep=True).exit_code == 0
    assert finished.info.counts.model_dump() == {"ok": 60, "failed": {}}


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert num_cores() == 2
    with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
        choose_device(Resources(device="cuda"))


def test_ray_is_given_a_folder_that_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/home/jürg/tmp")
    assert workers.temporary_folder() == {"RAY_TMPDIR": "/tmp"}
    monkeypatch.setattr(tempfile, "tempdir", "/home/jurg/tmp")
    assert workers.temporary_folder() == {}
    for length in range(30, 60):
        folder = f"/{'x' * (length - 1)}"
        monkeypatch.setattr(tempfile, "tempdir", folder)
        expected = {} if length + len(workers.RAY_SOCKET) <= 107 else {"RAY_TMPDIR": "/tmp"}
        assert workers.temporary_folder() == expected


@pytest.mark.long
def test_ray_starts_where_the_folder_for_temporary_files_has_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / "slurm-job.123456.compute-node-17"
    folder.mkdir()
    code = "from segbatch.jobs.runtime.workers import connected\nwith connected(print): pass"
    started = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr


@pytest.mark.long
def test_the_address_local_starts_a_ray_with_as_many_cpus_as_no_address_does() -> None:
    program = (
        "import ray, sys; from segbatch.jobs.runtime.workers import connected\n"
        "with connected(lambda line: print(line, file=sys.stderr)):\n"
        "    print(ray.cluster_resources()['CPU'], file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "starting Ray on this machine" in ended.stderr
    assert float(ended.stderr.split()[-1]) >= workers.MIN_LOGICAL_CPUS
