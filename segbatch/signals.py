"""Signals: SIGINT and SIGTERM end a job in order, so that it can be gone on with.

A handler raises wherever the program is at that moment. Inside a library that catches everything
the exception can get lost: so the signal is remembered, and :func:`check` is asked while waiting.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from segbatch.errors import Interrupted

_arrived: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM become :class:`~segbatch.errors.Interrupted`; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, _: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        _arrived.append(signum)
        raise Interrupted(signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        _arrived.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raises :class:`~segbatch.errors.Interrupted` if a signal arrived and the job still runs."""
    if _arrived:
        raise Interrupted(_arrived.pop())
