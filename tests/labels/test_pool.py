"""Function calls in several processes."""

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest

from segbatch.errors import Incomplete, Interrupted
from segbatch.labels import pool
from segbatch.labels.pool import FEW, in_order
from segbatch.signals import interruptible


def slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.3 if number == 0 else 0)
    return number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


def give_up(number: int) -> int:
    raise TimeoutError("the camera does not answer")


def die_of_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_are_in_order_from_other_processes() -> None:
    results = list(in_order(slow_first, range(20)))
    assert [number for number, _ in results] == list(range(20))
    assert os.getpid() not in {process for _, process in results}


def test_a_few_are_done_here() -> None:
    assert {process for _, process in in_order(slow_first, range(FEW))} == {os.getpid()}


def test_arguments_are_taken_as_they_are_needed() -> None:
    arguments = iter(range(1, 1000))
    results = in_order(slow_first, arguments)
    for _ in range(3):
        next(results)
    assert next(arguments) < 3 + 4 * (os.cpu_count() or 1) + FEW
    results.close()


def test_an_error_is_raised_as_it_was() -> None:
    with pytest.raises(ValueError, match="seven"):
        list(in_order(refuse_seven, range(20)))


def test_a_timeout_of_the_function_is_raised_as_any_error() -> None:
    with pytest.raises(TimeoutError, match="the camera"):
        list(in_order(give_up, range(20)))


class DoneWhenAsked(Future[int]):
    """Finishes between the end of a wait and the question whether it is done."""

    def done(self) -> bool:
        if not super().done():
            self.set_result(7)
        return super().done()


def test_a_result_that_comes_just_after_a_wait_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHECK_EVERY_S", 0.01)
    future = DoneWhenAsked()
    asked = threading.Timer(0.05, future.done)
    asked.start()
    assert pool._wait(future) == 7
    asked.join()


def test_a_process_that_is_killed_ends_the_work_and_says_so() -> None:
    with pytest.raises(Incomplete, match="was killed"):
        list(in_order(die_of_seven, range(20)))


@pytest.mark.parametrize("number", [FEW, 20])
def test_a_signal_ends_the_work(number: int) -> None:
    with interruptible():
        results = in_order(slow_first, range(number))
        next(results)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            list(results)
