"""Watch: what ends the waiting for workers."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segbatch import signals
from segbatch.errors import Fenced, Incomplete, Interrupted
from segbatch.jobs.watch import NothingYet, Patience, Watch
from segbatch.results.lease import Lease
from segbatch.signals import interruptible
from tests.drivers import wait_until


def test_nothing_for_too_long_is_a_stall(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)

    def never(timeout: float) -> Any:
        raise NothingYet

    with pytest.raises(Incomplete, match=r"no image was finished for 0.001 minutes"):
        list(Watch(lease, 0.001).results_of(never))


def test_slow_results_are_no_stall(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)
    script: list[Any] = [NothingYet, 1, NothingYet, NothingYet, 2, StopIteration]

    def slow(timeout: float) -> Any:
        item = script.pop(0)
        if isinstance(item, type):
            raise item
        return item

    assert list(Watch(lease, 60).results_of(slow)) == [1, 2]


def test_a_lost_lease_is_noticed_while_nothing_comes(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)
    lease.lost = Fenced("taken over")

    def never(timeout: float) -> Any:
        raise NothingYet

    with pytest.raises(Fenced):
        list(Watch(lease, 60).results_of(never))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_whose_exception_a_library_swallowed_ends_the_waiting(
    signum: signal.Signals, code: int, tmp_path: Path
) -> None:
    lease = Lease(str(tmp_path), lambda message: None)

    def swallows(timeout: float) -> Any:
        with suppress(Exception):
            os.kill(os.getpid(), signum)
            time.sleep(0.1)
        raise NothingYet

    with interruptible(), pytest.raises(Interrupted, match=signum.name) as caught:
        list(Watch(lease, 60).results_of(swallows))
    assert caught.value.exit_code == code


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            assert not signals.arrived()
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.arrived()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_after_a_signal_what_is_begun_may_be_finished_and_workers_are_told(tmp_path: Path) -> None:
    with Lease(str(tmp_path), lambda message: None) as lease, interruptible():
        script: list[Any] = [1, 2, 3]

        def results(timeout: float) -> Any:
            if not script:
                raise StopIteration
            if script[0] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            if script[0] == 3:
                wait_until(lease.worker_lease.should_stop)
            return script.pop(0)

        watch = Watch(lease, 60, grace_s=30)
        assert not lease.worker_lease.should_stop()
        assert list(watch.results_of(results)) == [1, 2, 3]


def test_the_grace_after_a_signal_ends(tmp_path: Path) -> None:
    with Lease(str(tmp_path), lambda message: None) as lease, interruptible():

        def never(timeout: float) -> Any:
            time.sleep(0.05)
            raise NothingYet

        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            list(Watch(lease, 60, grace_s=0.3).results_of(never))


def test_patience_is_learnt_from_the_results_of_the_run() -> None:
    patience = Patience(shortest_s=30, longest_s=600)
    patience.begin()
    assert not any(patience.waited(60) for _ in range(20))  # nodes and workers are starting
    patience.came()
    assert not patience.waited(20)
    patience.came()
    assert patience.limit_s == 200
    assert [patience.waited(60) for _ in range(4)] == [False, False, False, True]
    patience.begin()
    assert not patience.waited(500)
    patience.came()
    assert not patience.waited(100)
    patience.came()
    assert patience.limit_s == 600
