"""The whole job while things die: drivers, workers, nodes, disks. Real processes, really killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import segbatch
from segbatch.errors import Incomplete
from segbatch.jobs.runtime import compat
from segbatch.jobs.segment import segment
from segbatch.results import lease
from segbatch.run import Run
from tests import poison
from tests.collection import jpeg
from tests.conftest import EVERYTHING, S3, job
from tests.drivers import driver, exit_code, wait_until, workers_named
from tests.nodes import another_node, children
from tests.runs import FEW, SAME, rows_commits, rows_of, share_that_differs, stats_of

pytestmark = pytest.mark.usefixtures("ray_address")


def slow_images(folder: Path, count: int) -> str:
    """A folder of images that take a third of a second each to decode."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number, 64, 64, comment=poison.WAIT))
    return f"{folder}/"


def assert_whole(run: Run, num_images: int) -> None:
    """Every image once, none failed, nothing left over."""
    audit = run.audit(deep=True)
    assert (audit.exit_code, audit.rows, audit.uncommitted) == (0, num_images, [])
    assert run.info.counts.model_dump() == {"ok": num_images, "failed": {}}


def said(folder: Path) -> str:
    text = (folder / "stderr.txt").read_text()
    assert "Traceback" not in text, text
    return text


# --------------------------------------------------------------------------------- drivers that die


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(slice(2, None, 3), id="three"),
        pytest.param(slice(None), id="ten", marks=pytest.mark.long),
    ],
)
def test_a_run_killed_many_times_equals_an_unbroken_one(
    whole_run: Run,
    model_uri: str,
    collection: Path,
    tmp_path: Path,
    ray_address: str,
    *,
    times: slice,
) -> None:
    run = tmp_path / "run"
    work = job(f"{collection}/", model_uri, str(run), **EVERYTHING)
    some_seconds = random.Random(4)

    def some_time_after(condition: Callable[[], bool]) -> Callable[[], bool]:
        def later() -> bool:
            if condition():
                time.sleep(some_seconds.uniform(0, 0.5))
                return True
            return False

        return later

    moments: list[Callable[[], bool]] = [
        (run / "lease.json").exists,
        lambda: any((run / "manifest").glob("*")),
        (run / "run.json").exists,
        lambda: any((run / "rows" / "_delta_log").glob("*.json")),
        lambda: "images to do on" in (tmp_path / "stderr.txt").read_text(),
        some_time_after(lambda: any((run / "rows").glob("*.parquet"))),
        lambda: rows_commits(run) >= 2,
        some_time_after(lambda: rows_commits(run) >= 3),
        (run / "stats").exists,
        lambda: any((run / "stats").glob("*.parquet")),
    ]
    for moment in moments[times]:
        with driver(work, tmp_path, ray_address) as process:
            wait_until(moment, process)
            process.kill()
            assert exit_code(process) == -signal.SIGKILL
        if (run / "run.json").exists():
            audit = segbatch.open_run(str(run)).audit(deep=True)
            assert audit.exit_code in (0, 3), audit
    resumed = segment(work)
    audit = resumed.audit(deep=True)
    assert (audit.exit_code, audit.uncommitted) == (0, [])
    unbroken, mended = rows_of(whole_run), rows_of(resumed)
    assert mended.select(SAME) == unbroken.select(SAME)
    assert share_that_differs(mended, unbroken) < FEW
    assert stats_of(resumed).num_rows == unbroken.num_rows


def test_of_two_drivers_one_works_and_a_signal_leaves_the_run_to_the_next(
    model_uri: str, tmp_path: Path, ray_address: str
) -> None:
    run = tmp_path / "run"
    work = job(slow_images(tmp_path / "images", 60), model_uri, str(run))
    folders = [tmp_path / name for name in ("one", "two")]
    with ExitStack() as stack:
        processes = []
        for folder in folders:  # in the same second
            folder.mkdir()
            processes.append(stack.enter_context(driver(work, folder, ray_address)))
        wait_until(lambda: any(process.exitcode is not None for process in processes))
        refused = next(i for i, process in enumerate(processes) if process.exitcode is not None)
        first, folder = processes[1 - refused], folders[1 - refused]
        assert processes[refused].exitcode == 3
        assert f"process {first.pid} on " in said(folders[refused])

        wait_until(lambda: rows_commits(run) >= 1, first)
        first.terminate()
        assert exit_code(first) == 143
    assert "segbatch: interrupted by SIGTERM; run it again" in said(folder)
    left = segbatch.open_run(str(run))
    audit = left.audit(deep=True)
    assert left.status == "interrupted"
    assert audit.exit_code in (0, 3)
    assert audit.uncommitted == [], "what was being written was finished and committed"
    assert not (run / "lease.json").exists()
    assert_whole(segment(work), 60)


@pytest.mark.long
def test_a_second_interrupt_stops_at_once(model_uri: str, tmp_path: Path, ray_address: str) -> None:
    run = tmp_path / "run"
    work = job(slow_images(tmp_path / "images", 20), model_uri, str(run))
    with driver(work, tmp_path, ray_address) as process:
        wait_until(lambda: "event=pass" in said(tmp_path), process)
        os.kill(process.pid or 0, signal.SIGINT)
        time.sleep(0.2)
        os.kill(process.pid or 0, signal.SIGINT)
        assert exit_code(process, 2) == -signal.SIGINT
    assert_whole(segment(work), 20)


@pytest.mark.long
def test_a_driver_that_was_frozen_commits_nothing_when_it_wakes(
    model_uri: str, tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    one_cpu = {"workers": 1, "cpus_per_worker": 1}
    images = slow_images(tmp_path / "images", 40)
    work = job(images, model_uri, str(run), resources=one_cpu)
    with driver(work, tmp_path, ray_address) as frozen:
        wait_until(lambda: rows_commits(run) >= 2, frozen)
        os.kill(frozen.pid or 0, signal.SIGSTOP)
        monkeypatch.setattr(lease, "DEAD_AFTER_S", 2.0)
        with another_node(ray_address, num_cpus=4):  # it still holds the CPUs that it has
            taken_over = segment(work)
        assert_whole(taken_over, 40)
        info = (run / "run.json").read_bytes()
        os.kill(frozen.pid or 0, signal.SIGCONT)
        assert exit_code(frozen) == 3
    assert "its lease was given up" in said(tmp_path)
    assert_whole(taken_over, 40)
    assert (run / "run.json").read_bytes() == info


@pytest.mark.long
def test_taking_up_what_failed_survives_a_kill(
    model_uri: str, tmp_path: Path, ray_address: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.jpg").write_bytes(b"" if number < 3 else jpeg(number, 64, 64))
    run = tmp_path / "run"
    work = job(f"{images}/", model_uri, str(run))
    assert segment(work).info.counts.model_dump() == {"ok": 5, "failed": {"truncated": 3}}
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(jpeg(number, 64, 64))
    with driver(work, tmp_path, ray_address, "--retry-failed", "--only", "truncated") as process:
        wait_until(lambda: "retry failed" in log_of(run), process)
        process.kill()
    assert segbatch.open_run(str(run)).status == "interrupted"
    assert segbatch.open_run(str(run)).audit(deep=True).exit_code == 3
    assert_whole(segment(work), 8)


def log_of(run: Path) -> str:
    log = run / "rows" / "_delta_log"
    return "".join(entry.read_text() for entry in log.glob("*.json"))


# ----------------------------------------------------------------------- workers and nodes that die


@pytest.mark.long
@pytest.mark.parametrize("given", [True, False], ids=["Ray counts", "segbatch counts"])
def test_an_image_that_kills_its_process_is_found_and_its_neighbours_are_done(
    model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, given: bool
) -> None:
    monkeypatch.setattr(compat, "takes_retries", lambda: given)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(22):
        # The first one is also among those whose sizes are measured beforehand.
        data = jpeg(number, 64, 64, comment=b"" if number else poison.KILL)
        (images / f"{number:02d}.jpg").write_bytes(data)
    work = job(f"{images}/", model_uri, str(tmp_path / "run"))
    for again in (False, True):
        run = segment(work, retry_failed=again, only=["crashed"] if again else [])
        rows = rows_of(run).to_pylist()
        assert [row["image_id"] for row in rows] == list(range(22))
        assert {row["image_id"]: row["error"] for row in rows if row["error"]} == {0: "crashed"}
        assert "the worker's process died" in rows[0]["message"]
        assert run.audit(deep=True).exit_code == 0


@pytest.mark.long
def test_workers_and_a_node_that_are_killed_lose_nothing_and_a_new_node_is_used(
    s3: S3, model_uri: str, tmp_path: Path, ray_address: str
) -> None:
    run = tmp_path / "run"
    images = slow_images(tmp_path / "images", 150)
    one_each = {"workers": 3, "cpus_per_worker": 2}  # no node has room for two
    work = job(images, model_uri, str(run), resources=one_each)

    def running(*names: str) -> set[int]:
        return {pid for name in names for pid in workers_named(name, s3.url)}

    with (
        another_node(ray_address, num_cpus=3) as lost,
        another_node(ray_address, num_cpus=3),
        driver(work, tmp_path, ray_address) as process,
    ):
        wait_until(lambda: running("fetch_stage"), process)
        os.kill(running("fetch_stage").pop(), signal.SIGKILL)
        wait_until(lambda: children(lost) & running("PredictStage"), process)
        os.kill(lost, signal.SIGKILL)
        with another_node(ray_address, num_cpus=3) as new:
            wait_until(lambda: children(new) & running("PredictStage"), process)
            wait_until(lambda: rows_commits(run) >= 1, process)
            os.kill(running("PredictStage").pop(), signal.SIGKILL)
            assert exit_code(process, 240) == 0
    assert_whole(segbatch.open_run(str(run)), 150)


# ------------------------------------------------------------------------------ disks that are full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at ``folder``."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mount = subprocess.run(command, capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_with_its_reason_and_a_larger_one_is_gone_on_with(
    model_uri: str, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number:02d}.jpg").write_bytes(jpeg(number, 64, 64))
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        work = job(f"{images}/", model_uri, str(disk / "run"))
        with pytest.raises(Incomplete, match=r"No space left on device") as caught:
            segment(work)
        assert caught.value.exit_code == 3
        left = segbatch.open_run(str(disk / "run"))
        assert not left.finished
        assert left.audit(deep=True).exit_code in (0, 3), "nothing half-written was taken for whole"
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert_whole(segment(work), 12)
