"""Signals: SIGINT and SIGTERM end a job in order, so that it can be gone on with.

A handler that raises does so wherever the program is at that moment; inside a library that catches
everything, or that is half-way through starting, the exception gets lost or becomes another one. So
a signal is only remembered, and :func:`check` is asked where the job can end: at every step, and
every second while it waits. A second signal kills at once.
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
    """Inside, SIGINT and SIGTERM are remembered for :func:`check`; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, _: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        _arrived.append(signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        _arrived.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def arrived() -> bool:
    """Whether a signal has arrived and the job still runs."""
    return bool(_arrived)


def check() -> None:
    """Raises :class:`~segbatch.errors.Interrupted` if a signal arrived and the job still runs."""
    if _arrived:
        raise Interrupted(_arrived.pop())
