"""What depends on Ray's private parts, with them and without, as in versions that remove them."""

from __future__ import annotations

import inspect
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.exceptions import RayActorError
from ray.job_submission import JobSubmissionClient

from segbatch.cluster.dashboard import Dashboard
from segbatch.jobs.runtime import compat
from segbatch.jobs.runtime.executor import data_context, in_background
from segbatch.jobs.watch import NothingYet
from segbatch.storage import one_line
from tests.conftest import ROOT
from tests.drivers import wait_until

DEADLY, BLOCKS = 2, 5


def deadly(block: pa.Table, log: str) -> pa.Table:
    """A stage that kills its process over one of its blocks, and notes each attempt."""
    number = block["number"][0].as_py()
    with Path(log, str(number)).open("a") as file:
        file.write(".")
    if number == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return block


class Deadly:
    def __init__(self, log: str) -> None:
        self.log = log

    def __call__(self, block: pa.Table) -> pa.Table:
        return deadly(block, self.log)


@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(True, id="Ray counts", marks=pytest.mark.long),
        pytest.param(False, id="segbatch counts"),
    ],
)
@pytest.mark.parametrize("stage", ["function", pytest.param("class", marks=pytest.mark.long)])
def test_a_block_that_kills_its_process_is_tried_twice_and_the_others_come(
    stage: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "takes_retries", lambda: given)
    log = str(tmp_path)
    with data_context(stall_minutes=2):
        blocks = ray.data.from_arrow([pa.table({"number": [number]}) for number in range(BLOCKS)])
        if stage == "function":
            made = compat.map_blocks(blocks, partial(deadly, log=log), num_cpus=0.5)
        else:
            made = compat.map_blocks(
                blocks,
                Deadly,
                num_cpus=0.5,
                batch_size=1,
                fn_constructor_args=(log,),
                compute=ray.data.ActorPoolStrategy(size=1),
            )
        with in_background(made) as tables:
            rows = [row["number"] for table in results(tables) for row in table.to_pylist()]
    assert sorted(rows) == [number for number in range(BLOCKS) if number != DEADLY]
    assert (tmp_path / str(DEADLY)).read_text() == ".."


def results(tables: Callable[[float], Any]) -> Iterator[pa.Table]:
    """What comes of an execution, until it ends."""
    while True:
        try:
            yield tables(1.0)
        except NothingYet:
            continue
        except StopIteration:
            return


def slow(block: pa.Table) -> pa.Table:
    time.sleep(0.2)
    return block


def executions() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if type(t).__module__.startswith("ray.data.")]


@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(True, id="with its handle"),
        pytest.param(False, id="without", marks=pytest.mark.long),
    ],
)
def test_an_execution_that_is_left_early_ends(
    handle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not handle:
        monkeypatch.setattr(compat, "shut_down", lambda before: None)
    before = len(executions())
    with data_context(stall_minutes=2):
        blocks = ray.data.from_arrow([pa.table({"number": [number]}) for number in range(400)])
        slowly = blocks.map_batches(slow, batch_format="pyarrow")
    with in_background(slowly) as tables:
        assert next(results(tables)).num_rows
        assert len(executions()) == before + 1
    wait_until(lambda: len(executions()) == before)


def test_every_use_of_ray_that_is_private_is_in_one_file() -> None:
    names = (compat.HEAD, compat.BOOTSTRAP, compat.KUBERAY, compat.JOB_CONFIG)
    private = re.compile(
        # Imports of modules, names of modules as those of loggers, names that Ray gives things.
        r"(?:^\s*(?:from|import) |[\"'])ray\S*\.(?:_\w+|dashboard|_raylet)\b"
        rf"|{'|'.join(map(re.escape, names))}",
        re.MULTILINE,
    )
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "segbatch").rglob("*.py")
        if private.search(path.read_text())
    }
    assert found == {"segbatch/jobs/runtime/compat.py"}


def test_the_client_of_the_jobs_server_uses_three_private_methods() -> None:
    used = re.findall(r"(?:self|super\(\))\.(_\w+)|def (_\w+)\(self", inspect.getsource(Dashboard))
    names = {name for pair in used for name in pair if hasattr(JobSubmissionClient, name)}
    assert names == {"_do_request", "_raise_error", "_upload_py_modules_if_needed"}
    assert "_address" not in {name for pair in used for name in pair}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"metadata": {"job_submission_id": "raysubmit_1", "job_name": "x"}}', "raysubmit_1"),
        ('{"metadata": {}}', None),
        ("null", None),
        ("otherwise", None),
        (None, None),
    ],
)
def test_a_driver_knows_as_which_job_it_was_submitted(
    config: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(compat.JOB_CONFIG, raising=False)
    if config is not None:
        monkeypatch.setenv(compat.JOB_CONFIG, config)
    assert compat.submission_id() == expected


@pytest.mark.usefixtures("ray_address")
def test_a_stage_goes_on_where_nobody_counts_its_attempts() -> None:
    attempts: Any = ray.remote(num_cpus=0)(compat.Attempts).remote()
    block = pa.table({"number": [1], "pixels": pa.array([b"1"], pa.large_binary())})
    assert compat.limited(block, pa.Table.to_pylist, attempts) == block.to_pylist()
    for process in ("a", "b", "b"):
        ray.get(attempts.begin.remote(compat.name_of(block), process))
    with pytest.raises(compat.DiedTooOften, match="died 2 times over the same images"):
        compat.limited(block, pa.Table.to_pylist, attempts)
    other = pa.table({"number": [2], "pixels": pa.array([b"1"], pa.large_binary())})
    assert compat.name_of(other) != compat.name_of(block)
    ray.kill(attempts)

    def gone() -> bool:
        try:
            ray.get(attempts.begin.remote("none", "none"))
        except RayActorError:
            return True
        return False

    wait_until(gone)  # a moment later
    assert compat.limited(block, pa.Table.to_pylist, attempts) == block.to_pylist()


def test_the_jobs_server_is_found_without_the_private_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("ray.dashboard.utils.ray_address_to_api_server_url")
    with pytest.raises(ConnectionError) as raised:
        compat.api_server_url("http://127.0.0.1:1")
    assert "127.0.0.1:1" in one_line(raised.value)


def test_only_the_line_about_the_log_level_is_kept_from_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="the start failed"), compat.quiet_start():  # noqa: PT012
        os.write(2, b"[now] logging.cc:303: Set ray log level from environment variable X to 3\n")
        os.write(2, b"something that matters\n")
        raise ValueError("the start failed")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "something that matters\nafterwards\n"
