"""The lease of a run: a second driver learns early that the run is in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segbatch import storage
from segbatch.errors import Fenced, LeaseHeld
from segbatch.results import lease as lease_module
from segbatch.results.lease import Lease, WorkerLease, lease_uri, read_lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lease_module, "DEAD_AFTER_S", 3.0)


def silent(message: str) -> None: ...


def rewrite(run: str, **changes: object) -> None:
    content = json.loads(storage.read_bytes(lease_uri(run)))
    storage.write_bytes(lease_uri(run), json.dumps(content | changes).encode())


@contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until it is killed."""
    program = f"""
        import time
        from segbatch.results import lease
        lease.HEARTBEAT_S = 0.2
        with lease.Lease({str(run)!r}, print):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lease_exists_while_it_is_held_and_is_deleted_afterwards(tmp_path: Path) -> None:
    run = str(tmp_path)
    with Lease(run, silent) as lease:
        first = read_lease(run)
        assert first is not None
        assert first["pid"] == os.getpid()
        WorkerLease(run, lease.driver).check()
        time.sleep(0.7)
        later = read_lease(run)
        assert later is not None
        assert later["beat"] > first["beat"]
    assert read_lease(run) is None


def test_a_second_driver_learns_who_has_held_the_run_and_since_when(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(LeaseHeld, match=f"process {process.pid} on .*, since 20") as caught:
            Lease(str(tmp_path), silent).__enter__()
        assert caught.value.exit_code == 3


def test_a_killed_holder_on_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    start = time.monotonic()
    with Lease(str(tmp_path), silent):
        assert time.monotonic() - start < 2


def test_a_frozen_holder_is_replaced_and_notices_when_it_resumes(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.5)  # its heartbeat stood still for DEAD_AFTER_S
        with Lease(str(tmp_path), silent) as lease:
            process.send_signal(signal.SIGCONT)
            time.sleep(1.0)
            lease.confirm()  # the resumed driver did not overwrite it


def test_an_advancing_heartbeat_on_another_host_is_alive(tmp_path: Path) -> None:
    program = f"""
        import json, pathlib, time
        path = pathlib.Path({str(tmp_path / "lease.json")!r})
        for beat in range(200):
            lease = dict(driver="far", host="far-away", pid=1, since=0, beat=beat)
            path.with_suffix(".new").write_text(json.dumps(lease))
            path.with_suffix(".new").replace(path)
            time.sleep(0.3)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) as process:
        try:
            while not (tmp_path / "lease.json").exists():
                time.sleep(0.05)
            with pytest.raises(LeaseHeld, match="far-away"):
                Lease(str(tmp_path), silent).__enter__()
        finally:
            process.kill()


def test_a_dead_heartbeat_on_another_host_is_waited_out(tmp_path: Path) -> None:
    run = str(tmp_path)
    far = {"driver": "far", "host": "far-away", "pid": 1, "since": 0, "beat": 7}
    storage.write_bytes(lease_uri(run), json.dumps(far).encode())
    said: list[str] = []
    start = time.monotonic()
    with Lease(run, said.append):
        assert time.monotonic() - start >= 3.0
    assert "waiting for the heartbeat of process 1 on far-away" in said[0]


def test_a_lease_that_names_another_driver_is_noticed(tmp_path: Path) -> None:
    run = str(tmp_path)
    with Lease(run, silent) as lease:
        rewrite(run, driver="another", host="far-away")
        with pytest.raises(Fenced, match="far-away"):
            WorkerLease(run, lease.driver).check()
        time.sleep(0.7)
        with pytest.raises(Fenced):
            lease.check()
    left = read_lease(run)
    assert left is not None, "a driver must not delete another driver's lease"
    assert left["driver"] == "another"
