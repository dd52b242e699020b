"""scripts/cluster: several Ray nodes on one machine, of which one is lost and another joins."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segbatch.demo.localcluster import ServerProcess
from tests.collection import various
from tests.conftest import ROOT
from tests.drivers import wait_until


def script(*arguments: str, folder: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segbatch.demo.cluster", *arguments],
        check=False, capture_output=True, text=True, cwd=folder, timeout=timeout,
    )  # fmt: skip


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        up = script("up", f"--dashboard-port={port}", folder=tmp_path)
    assert up.returncode == 2
    assert f"port {port} is taken" in up.stderr
    assert not (tmp_path / "cluster").exists()


def test_where_nothing_is_up_it_says_so(tmp_path: Path) -> None:
    told = script("kill", "1", folder=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "scripts/cluster: no cluster is up; start one with: scripts/cluster up\n"


def test_a_process_is_told_from_a_later_one_with_its_id() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as mine:
        try:
            found = ServerProcess("mine", mine.pid, "Mon Jan  1 00:00:00 2024")
            assert not found.alive
            found.end()
            assert mine.poll() is None
        finally:
            mine.kill()


# --------------------------------------------------------------------------- minutes

RUN = "s3://demo/runs/first"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model_uri: str) -> Iterator[Path]:
    """The folder of a cluster of three nodes with tokens, filled from what a demo would leave."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "demo" / "facades").mkdir(parents=True)
    for seed in range(14):
        extension, data = various(seed)
        (folder / "demo" / "facades" / f"{seed:03d}.{extension}").write_bytes(data)
    shutil.copytree(model_uri, folder / "demo" / "model")
    up = script("up", "--nodes=3", "--token", "--dashboard-port=8365", folder=folder)
    assert up.returncode == 0, up.stderr
    try:
        yield folder
    finally:
        processes = json.loads((folder / "cluster" / "state.json").read_text())["processes"]
        down = script("down", folder=folder)
        assert down.returncode == 0, down.stderr
        for process in processes:
            assert not ServerProcess(**process).alive


def exports(folder: Path) -> dict[str, str]:
    lines = script("env", folder=folder).stdout.splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def segbatch(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``segbatch`` in a shell that has taken over what ``up`` printed."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "segbatch", *arguments], check=False, capture_output=True, text=True,
        env={**here, **exports(folder), "PYTHONPATH": str(ROOT), **environment}, cwd=folder,
        timeout=400,
    )  # fmt: skip


@pytest.mark.long
def test_up_twice_leaves_it_as_it_is(cluster: Path) -> None:
    before = (cluster / "cluster" / "state.json").read_text()
    again = script("up", folder=cluster)
    assert again.returncode == 0
    assert "it is up already" in again.stderr
    assert "export RAY_AUTH_TOKEN_PATH=" in again.stdout
    assert (cluster / "cluster" / "state.json").read_text() == before


@pytest.mark.long
def test_a_token_is_needed_and_a_wrong_one_refused(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    wrong = segbatch("jobs", folder=cluster, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    missing = segbatch("jobs", folder=cluster, RAY_AUTH_MODE="disabled")
    for refused in (wrong, missing):
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert segbatch("jobs", folder=cluster).returncode == 0


@pytest.mark.long
def test_a_job_completes_although_a_node_is_lost_and_another_joins(cluster: Path) -> None:
    job = str(cluster / "cluster" / "segment.yaml")
    sent = segbatch("submit", job, "--no-wait", "--set", "rows_per_file=8",
                    "--set", "formulas={}", folder=cluster)  # fmt: skip
    assert sent.returncode == 0, sent.stderr

    def done() -> int:
        time.sleep(5)  # asking takes a core
        told = segbatch("status", RUN, "--format=json", folder=cluster)
        return json.loads(told.stdout)["ok"] if told.returncode == 0 else 0

    wait_until(lambda: done() > 0, seconds=300)
    assert script("kill", "1", folder=cluster).returncode == 0
    assert script("add", folder=cluster).returncode == 0
    seen = segbatch("logs", RUN, "--follow", folder=cluster)
    assert seen.returncode == 0, seen.stdout[-2000:]
    audit = segbatch("audit", RUN, "--deep", folder=cluster)
    assert audit.returncode == 0, audit.stdout
    assert json.loads(segbatch("query", RUN, "SELECT count(*) AS n FROM images", "--format=json",
                               folder=cluster).stdout) == [{"n": 280}]  # fmt: skip
