"""A run as others see it: its progress, and whether its driver is alive, from storage alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from segbatch import storage
from segbatch.results import lease
from segbatch.results.lease import Lease, lease_uri, read_lease
from segbatch.results.runinfo import Start, read_info, write_info
from segbatch.run import open_run
from tests.written_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A running run: 14 of 20 images have a row."""
    uri = write_run(str(tmp_path / "run"), finished=False).uri
    info = read_info(uri)
    assert info is not None
    info.manifest.rows, info.images_per_second = 20, 0.5
    info.starts = [Start(at=0, passes=1), Start(at=0, passes=2)]
    write_info(uri, info)
    return uri


def test_a_summary_has_pass_pace_remaining_time_and_failures_by_kind(run: str) -> None:
    facts = open_run(run).summary()
    expected = {"ok": 12, "failed": {"not_found": 1, "timeout": 1}, "remaining": 6, "starts": 2,
                "pass": 2, "images_per_second": 0.5, "rest_s": 12, "driver": None,
                "status": "interrupted",
                "reason": "its driver is gone; run the same command to resume"}  # fmt: skip
    assert {key: facts[key] for key in expected} == expected


def test_a_driver_on_this_host_is_alive_while_its_process_runs(run: str) -> None:
    with Lease(run, print):
        driver = open_run(run).summary()["driver"]
        assert driver["alive"] is True
        assert open_run(run).summary()["status"] == "running"
        assert 0 <= driver["heartbeat_age_s"] < 10
        dead = (read_lease(run) or {}) | {"process_start": "before"}
        storage.write_bytes(lease_uri(run), json.dumps(dead).encode())
        facts = open_run(run).summary()
        assert facts["driver"]["alive"] is False
        assert (facts["status"], facts["reason"][:18]) == ("interrupted", "its driver is gone")


@pytest.mark.parametrize(("age_s", "alive"), [(5, True), (600, False), (-600, None)])
def test_a_driver_on_another_host_is_alive_while_its_heartbeat_is_recent(
    run: str, age_s: int, alive: bool | None
) -> None:
    far = {"driver": "far", "host": "far-away", "pid": 1, "since": 0, "beat": 3,
           "heartbeat": time.time() - age_s}  # fmt: skip
    storage.write_bytes(lease_uri(run), json.dumps(far).encode())
    driver = open_run(run).summary()["driver"]
    assert driver["alive"] is alive
    status = open_run(run).summary()["status"]
    assert status == ("interrupted" if alive is False else "running")
    assert driver["heartbeat_age_s"] == pytest.approx(age_s, abs=2)


def test_a_damaged_lease_counts_as_a_dead_holder_and_expires(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.1)
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    content: dict[str, Any] = {
        "driver": "far", "host": "far-away", "pid": 1, "since": 1.5, "heartbeat": 17.5, "beat": 3,
    }  # fmt: skip
    whole = json.dumps(content).encode()
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
               for place in range(0, len(whole), 13)]  # fmt: skip
    numbers = [b'{"since": 1e999}', b'{"pid": "one"}', b'{"heartbeat": NaN}', b"[]", b"7", b""]
    for data in [*damaged, *numbers]:
        storage.write_bytes(lease_uri(run), data)
        assert open_run(run).summary()["driver"] is not None
    for data in (whole, b"[]"):
        storage.write_bytes(lease_uri(run), data)
        with Lease(run, print) as mine:
            mine.confirm()
