"""Passes, on a table that is real and an executor that follows a script: no Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segbatch.config.job import Limits
from segbatch.errors import CredentialsRefused, Fenced, Incomplete, Interrupted, JobFailed
from segbatch.jobs import passes
from segbatch.jobs.passes import Accounts, ExecutionStopped, Passes
from segbatch.jobs.progress import Progress
from segbatch.jobs.watch import Watch
from segbatch.masks.classes import Classes
from segbatch.results.lease import Lease
from segbatch.results.ledger import Ledger
from segbatch.results.schema import FAILED, OK, TRANSIENT_ERRORS, rows_schema
from segbatch.results.table import Table, kind_in_name
from segbatch.results.write import Account, write_file

SCHEMA = rows_schema(Classes(["wall", "window"]))
BLOCK_ROWS = 100

Answer = Callable[[int, int], str | None]  # image id, number of its try → kind; None: it is lost


class Scripted:
    """Does images as the script says; a block that holds an image that kills is lost whole."""

    def __init__(self, answer: Answer, message: str = "no", good: Container[int] = ()) -> None:
        self.answer = answer
        self.message = message
        self.good = good  # images that are done when they are done by themselves
        self.ledger: Ledger  # set by `Job`
        self.left_early = 0
        self.tries: dict[int, int] = {}
        self.calls: list[tuple[str, int, int]] = []  # how, images, rows a block

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        self.calls.append(("blocks", images.num_rows, rows))
        ids = images["image_id"].to_pylist()
        try:
            for start in range(0, len(ids), rows):
                yield from self._block(ids[start : start + rows], last_pass)
        except GeneratorExit:
            self.left_early += 1
            raise

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        self.calls.append(("alone", images.num_rows, 1))
        for image_id in images["image_id"].to_pylist():
            accounts = list(self._block([image_id], last_pass))
            yield from accounts or [self._account("crashed", [image_id], last_pass)]

    def why(self, image: pa.Table) -> str | None:
        image_id = image["image_id"][0].as_py()
        return f"the disk of image {image_id} is full" if image_id not in self.good else None

    def _block(self, ids: list[int], last_pass: bool) -> Iterator[Account]:
        for image_id in ids:
            self.tries[image_id] = self.tries.get(image_id, 0) + 1
        kinds = [self.answer(image_id, self.tries[image_id]) for image_id in ids]
        if None in kinds:
            return
        for kind in dict.fromkeys(kinds):
            of_kind = [image_id for image_id, k in zip(ids, kinds, strict=True) if k == kind]
            yield self._account(str(kind), of_kind, last_pass)

    def _account(self, kind: str, ids: list[int], last_pass: bool) -> Account:
        later = kind == "credentials" or (kind in TRANSIENT_ERRORS and not last_pass)
        file = None
        if not later:
            file = write_file(_rows(ids, kind), self.ledger.table.uri, self.ledger.epoch, kind)
        return Account(kind, ids, message="" if kind == OK else self.message, file=file)


def _rows(ids: list[int], kind: str) -> pa.Table:
    columns: dict[str, Any] = {
        "image_id": pa.array(ids, pa.int64()),
        "uri": pa.array([str(image_id) for image_id in ids]),
        "status": pa.array([OK if kind == OK else FAILED] * len(ids)),
        "error": pa.array([None if kind == OK else kind] * len(ids), pa.string()),
    }
    arrays = [columns.get(field.name, pa.nulls(len(ids), field.type)) for field in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


class Job:
    """Passes over ``num_images``, in slices of at most a thousand."""

    def __init__(self, folder: Path, num_images: int, **limits: Any) -> None:
        self.ledger = Ledger(Table.create(str(folder / "rows"), SCHEMA), num_images, "driver")
        self.lease = Lease(str(folder), lambda message: None)
        starts = range(0, num_images, 1000)
        self.passes = Passes(
            Limits(**limits),
            lambda ids: pa.table({"image_id": ids, "uri": [str(i) for i in ids]}),
            [(start, min(start + 1000, num_images)) for start in starts],
            BLOCK_ROWS,
            ledger=self.ledger,
            watch=Watch(self.lease, stall_minutes=60),
            progress=Progress(str(folder), num_images, 0),
            on_commit=lambda: None,
        )

    def run(self, executor: Scripted) -> Scripted:
        executor.ledger = self.ledger
        self.passes.run(executor)
        return executor

    def committed(self) -> dict[str, int]:
        table = Table.open(self.ledger.table.uri)
        assert table is not None
        counts: dict[str, int] = {}
        for file in table.files():
            kind = kind_in_name(file.name)
            counts[kind] = counts.get(kind, 0) + file.rows
        return counts


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PAUSE_S", 0.001)


def ok(image_id: int, times: int) -> str:
    return OK


def test_one_pass_does_it_all_a_slice_at_a_time(tmp_path: Path) -> None:
    job = Job(tmp_path, 2500)
    executor = job.run(Scripted(ok))
    assert executor.calls == [("blocks", 1000, 100), ("blocks", 1000, 100), ("blocks", 500, 100)]
    assert job.committed() == {"ok": 2500}


def test_what_is_committed_is_not_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path, 300)
    job.ledger.taken.add(np.arange(0, 300, 2))
    executor = job.run(Scripted(ok))
    assert set(executor.tries) == set(range(1, 300, 2))


def test_few_images_of_lost_blocks_are_done_one_at_a_time(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)
    executor = job.run(Scripted(lambda i, times: None if i == 250 else OK))
    assert executor.calls == [("blocks", 500, 100), ("alone", 100, 1)]
    assert job.committed() == {"ok": 499, "crashed": 1}


def test_many_images_of_lost_blocks_are_done_in_blocks_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "FEW_LOST", 200)
    job = Job(tmp_path, 500)
    lost_once = Scripted(lambda i, times: None if i < 300 and times == 1 else OK)
    assert job.run(lost_once).calls == [("blocks", 500, 100), ("blocks", 300, 100)]
    assert job.committed() == {"ok": 500}


def test_what_is_lost_in_blocks_again_and_again_is_done_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "FEW_LOST", 50)
    job = Job(tmp_path, 500)
    executor = Scripted(lambda i, times: None if i == 250 else OK, good=set(range(251, 500)))
    assert [how for how, _, _ in job.run(executor).calls] == ["blocks", "blocks", "alone"]
    assert job.committed() == {"ok": 499, "crashed": 1}


def test_many_poisonous_images_are_all_found(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000)
    poisonous = {3, 4, 250, 777, 999}
    job.run(Scripted(lambda i, times: None if i in poisonous else OK))
    assert job.committed() == {"ok": 995, "crashed": 5}


def test_passing_failures_are_left_to_later_passes_in_whole_blocks(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)
    executor = job.run(Scripted(lambda i, times: "timeout" if i < 50 and times < 3 else OK))
    assert executor.calls == [("blocks", 500, 100), ("blocks", 50, 100), ("blocks", 50, 100)]
    assert job.committed() == {"ok": 500}


def test_few_passing_failures_are_committed_by_the_last_pass(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000, passes=2)
    executor = job.run(Scripted(lambda i, times: "timeout" if i < 10 else OK))
    assert executor.tries[0] == 2
    assert job.committed() == {"ok": 990, "timeout": 10}


def test_an_outage_is_not_committed_as_failures(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000)
    script = Scripted(lambda i, times: "unavailable" if i < 11 else OK, "503 SlowDown")
    with pytest.raises(Incomplete, match=r"11 images could not be read .*503 SlowDown"):
        job.run(script)
    assert job.committed() == {"ok": 989}
    resumed = Scripted(ok)
    job.run(resumed)
    assert set(resumed.tries) == set(range(11))


def test_an_outage_does_not_hold_back_what_is_forbidden_for_good(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000)
    kinds = {0: "forbidden", **dict.fromkeys(range(1, 20), "timeout")}
    with pytest.raises(Incomplete, match="timeout: no"):
        job.run(Scripted(lambda i, times: kinds.get(i, OK)))
    assert job.committed() == {"ok": 980, "forbidden": 1}


def test_refused_credentials_stop_at_once_and_nothing_of_them_is_committed(
    tmp_path: Path,
) -> None:
    job = Job(tmp_path, 1000)
    script = Scripted(lambda i, times: "credentials" if i >= 500 else OK, "400: ExpiredToken")
    with pytest.raises(CredentialsRefused, match="ExpiredToken"):
        job.run(script)
    assert len(script.tries) == 600, "no block after the first one that was refused"
    assert script.left_early == 1, "what still ran was told to end"
    assert set(job.committed()) <= {"ok"}


def test_half_of_the_last_thousand_reads_forbidden_stop_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, 5000)
    with pytest.raises(CredentialsRefused, match=r"of the last 10[0-9][0-9] reads were forbidden"):
        job.run(Scripted(lambda i, times: "forbidden" if i >= 2000 and i % 10 < 6 else OK))
    assert "forbidden" not in job.committed()


def test_less_than_half_forbidden_are_failed_rows(tmp_path: Path) -> None:
    job = Job(tmp_path, 3000)
    job.run(Scripted(lambda i, times: "forbidden" if i % 10 < 4 else OK))
    assert job.committed() == {"ok": 1800, "forbidden": 1200}


def test_a_pass_that_finishes_nothing_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    job = Job(tmp_path, 200)
    script = Scripted(lambda i, times: None)
    with pytest.raises(Incomplete, match=r"200 images are missing.*disk of image .* is full"):
        job.run(script)
    assert job.committed() == {}
    assert script.calls == [("blocks", 200, 100)]


def test_a_poisonous_image_in_every_block_of_a_small_collection_does_not_end_the_run(
    tmp_path: Path,
) -> None:
    job = Job(tmp_path, 200)
    poisonous = {0, 150}
    good = set(range(200)) - poisonous
    job.run(Scripted(lambda i, times: None if i in poisonous else OK, good=good))
    assert job.committed() == {"ok": 198, "crashed": 2}


def interrupted_before(job: Job, ids: Container[int], kind: str = OK) -> None:
    """Commit all images as ``kind`` except ``ids``, as a driver that was killed leaves them."""
    with pytest.raises(Incomplete):
        job.run(Scripted(lambda i, times: "unavailable" if i in ids else kind))


@pytest.mark.parametrize("few_lost", [passes.FEW_LOST, 50], ids=["few", "many"])
@pytest.mark.parametrize("kind", [OK, "not_found"])
def test_images_that_kill_and_are_the_only_ones_left_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, few_lost: int
) -> None:
    monkeypatch.setattr(passes, "FEW_LOST", few_lost)
    job = Job(tmp_path, 300, max_failed_fraction=0.0)
    poisonous = range(100, 200)
    interrupted_before(job, poisonous, kind)
    job.run(Scripted(lambda i, times: None if i in poisonous else OK, good={0}))
    assert job.committed() == {kind: 200, "crashed": 100}


def test_nothing_has_crashed_where_an_image_that_is_committed_fails_too(tmp_path: Path) -> None:
    job = Job(tmp_path, 300, max_failed_fraction=0.0)
    interrupted_before(job, {100})
    with pytest.raises(Incomplete, match=r"1 images are missing.*disk of image 100 is full"):
        job.run(Scripted(lambda i, times: None))
    assert job.committed() == {"ok": 299}


class Forgetful(Scripted):
    """Does no image that is done alone, as while the storage fails."""

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        self.calls.append(("alone", images.num_rows, 1))
        yield from ()


def test_images_that_are_lost_alone_too_end_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, 300, max_failed_fraction=0.0)
    interrupted_before(job, {100})
    script = Forgetful(lambda i, times: None, good={0})
    with pytest.raises(Incomplete, match=r"1 images are missing.*disk of image 100 is full"):
        job.run(script)
    assert script.calls == [("blocks", 1, 100), ("alone", 1, 1)]


@pytest.mark.parametrize("kind", ["forbidden", "timeout", "not_found"])
def test_a_pass_that_finishes_failed_images_alone_is_gone_on_from(
    tmp_path: Path, kind: str
) -> None:
    job = Job(tmp_path, 110, passes=1, max_failed_fraction=1.0)
    job.run(Scripted(lambda i, times: None if i == 105 else kind))
    assert job.committed() == {kind: 109, "crashed": 1}


def test_passes_go_on_beyond_their_number_as_long_as_they_finish_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, 500, passes=1)
    monkeypatch.setattr(passes, "FEW_LOST", 0)
    executor = job.run(Scripted(lambda i, times: None if i // 200 >= times else OK))
    assert executor.calls == [("blocks", 500, 100), ("blocks", 300, 100), ("alone", 100, 1)]
    assert sum(job.committed().values()) == 500


def test_an_execution_that_stopped_makes_no_image_suspect(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)

    def stops_once(image_id: int, times: int) -> str:
        if image_id == 200 and times == 1:
            raise ExecutionStopped("the node with the reader died")
        return OK

    executor = job.run(Scripted(stops_once))
    assert executor.calls == [("blocks", 500, 100), ("blocks", 300, 100)]
    assert job.committed() == {"ok": 500}


def test_a_pass_that_stopped_as_a_whole_does_not_count(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000, passes=2)

    def answer(image_id: int, times: int) -> str:
        if image_id == 500 and times == 1:
            raise ExecutionStopped("every node died")
        return "timeout" if image_id < 5 and times < 3 else OK

    job.run(Scripted(answer))
    assert job.committed() == {"ok": 1000}


class Clock:
    """Seconds that pass when they are told to, and a little whenever they are asked for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def a_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("segbatch.jobs.watch.time.monotonic", clock)
    return clock


def test_an_outage_of_too_long_ends_the_run_although_workers_go_on_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, 1000)
    clock = a_clock(monkeypatch)

    def down(image_id: int, times: int) -> str:
        clock.now += 6.0  # ten minutes a block, six blocks an hour
        return "unavailable" if image_id >= 200 else OK

    script = Scripted(down)
    with pytest.raises(Incomplete, match=r"no image was finished for 60 minutes"):
        job.run(script)
    assert job.committed() == {"ok": 200}
    assert len(script.tries) < 1000, "it was not tried to the end"


def test_few_passing_failures_are_no_stall_however_long_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, 1000, max_failed_fraction=0.9)
    clock = a_clock(monkeypatch)

    def slow(image_id: int, times: int) -> str:
        clock.now += 6.0
        return "timeout" if image_id >= 200 else OK

    job.run(Scripted(slow))
    assert job.committed() == {"ok": 200, "timeout": 800}


def test_executions_that_stop_at_once_end_the_run_with_the_reason(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)

    def stops(image_id: int, times: int) -> str:
        raise ExecutionStopped("no node is left")

    with pytest.raises(Incomplete, match=r"500 images are missing.*no node is left"):
        job.run(Scripted(stops))


def test_an_execution_holds_a_bounded_number_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MAX_BLOCKS", 4)
    executor = Job(tmp_path, 1000).run(Scripted(ok))
    assert [images for _, images, _ in executor.calls] == [400, 400, 200]


def test_ten_times_too_many_failures_stop_the_run_early(tmp_path: Path) -> None:
    job = Job(tmp_path, 9000)
    with pytest.raises(JobFailed, match=r"1000 images failed so far, .* 90 of 9000"):
        job.run(Scripted(lambda i, times: "not_found"))
    assert job.committed() == {"not_found": 1000}
    with pytest.raises(JobFailed):
        job.run(Scripted(lambda i, times: "not_found"))


def test_few_failures_never_stop_a_run_early(tmp_path: Path) -> None:
    job = Job(tmp_path, 999, max_failed_fraction=0.0)
    job.run(Scripted(lambda i, times: "not_found"))
    assert job.committed() == {"not_found": 999}


def test_what_came_in_is_kept_when_the_run_is_stopped(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)

    def interrupted(image_id: int, times: int) -> str:
        if image_id == 400:
            raise Interrupted(signal.SIGTERM)
        return OK

    with pytest.raises(Interrupted):
        job.run(Scripted(interrupted))
    assert job.committed() == {"ok": 400}


def test_a_driver_that_lost_its_lease_stops_before_it_enters_more(tmp_path: Path) -> None:
    job = Job(tmp_path, 500)
    job.lease.lost = Fenced("taken over")
    with pytest.raises(Fenced):
        job.run(Scripted(ok))
    assert job.committed() == {}
