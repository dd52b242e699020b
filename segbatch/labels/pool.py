"""Calls a function for many arguments in several processes, with results in order.

Drawing shapes holds Python's lock, of which each process has one: threads alone would use one core.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from segbatch import signals
from segbatch.errors import Incomplete
from segbatch.machine import num_cores

A = TypeVar("A")
R = TypeVar("R")

FEW = 4  # tasks that are done sooner than processes start
IN_HAND = 2  # tasks per process: the current one and the next
CHECK_EVERY_S = 1.0  # for signals, while a result is awaited


def in_order(function: Callable[[A], R], arguments: Iterable[A]) -> Generator[R, None, None]:
    """The results of ``function`` for each argument, in their order, from one process per core.

    Other processes must be able to import ``function``; ``arguments`` are consumed as they are
    needed. Raises what ``function`` raises, :class:`~segbatch.errors.Interrupted` after a signal
    (within :func:`~segbatch.signals.interruptible`), and :class:`~segbatch.errors.Incomplete` if a
    process is killed.
    """
    remaining = iter(arguments)
    first = list(islice(remaining, FEW + 1))
    if len(first) <= FEW:
        for argument in first:
            signals.check()
            yield function(argument)
        return
    num_processes = num_cores()
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks of the clients
    with ProcessPoolExecutor(num_processes, spawn, _begin) as pool:
        upcoming = (pool.submit(function, argument) for argument in chain(first, remaining))
        try:
            in_hand = deque(islice(upcoming, IN_HAND * num_processes))
            while in_hand:
                result = _wait(in_hand.popleft())
                in_hand.extend(islice(upcoming, 1))
                yield result
        except BrokenProcessPool as error:
            signals.check()
            raise Incomplete(
                "a process that worked on labels was killed, perhaps for lack of memory, or could"
                ' not start: a script must do this under `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _wait(future: Future[R]) -> R:
    while True:
        signals.check()
        # Not result(timeout=…): its TimeoutError is also what the function itself may raise.
        if wait([future], timeout=CHECK_EVERY_S).done:
            return future.result()


def _begin() -> None:
    """Set up a process of the pool: its parent handles signals, and it ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
