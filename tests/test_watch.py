"""Watch: what ends the waiting for workers."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segbatch.errors import Fenced, Incomplete, Interrupted
from segbatch.results.lease import Lease
from segbatch.signals import interruptible
from segbatch.watch import Watch


def test_nothing_for_too_long_is_a_stall(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)

    def never(timeout: float) -> Any:
        raise TimeoutError

    with pytest.raises(Incomplete, match=r"no image was finished for 0.001 minutes"):
        list(Watch(lease, 0.001).over(never))


def test_slow_results_are_no_stall(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)
    script: list[Any] = [TimeoutError, 1, TimeoutError, TimeoutError, 2, StopIteration]

    def slow(timeout: float) -> Any:
        item = script.pop(0)
        if isinstance(item, type):
            raise item
        return item

    assert list(Watch(lease, 60).over(slow)) == [1, 2]


def test_a_lost_lease_is_noticed_while_nothing_comes(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)
    lease.lost = Fenced("taken over")

    def never(timeout: float) -> Any:
        raise TimeoutError

    with pytest.raises(Fenced):
        list(Watch(lease, 60).over(never))


def test_a_signal_whose_exception_a_library_swallowed_ends_the_waiting(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), lambda message: None)

    def swallows(timeout: float) -> Any:
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        raise TimeoutError

    with interruptible(), pytest.raises(Interrupted, match="SIGTERM") as caught:
        list(Watch(lease, 60).over(swallows))
    assert caught.value.exit_code == 143
