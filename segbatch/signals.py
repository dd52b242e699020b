"""Stop a job cleanly on SIGINT and SIGTERM, so that it can be resumed.

A handler that raises would do so at any point of the program; inside a library that catches
everything, or that is half-way through starting, the exception gets lost or turns into another one.
So the handler only records the signal, and the job calls :func:`check` where it can stop: at every
step, and every second while it waits. A second signal kills at once.
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
    """Record SIGINT and SIGTERM for :func:`check` in the block; a second one kills.

    A signal that is ignored stays so: a shell lets ``command &`` in a script ignore SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, _: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        _arrived.append(signum)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: was for number, was in handlers.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        _arrived.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def arrived() -> bool:
    """Whether a signal has arrived that :func:`check` has not raised yet."""
    return bool(_arrived)


def check() -> None:
    """Raises :class:`~segbatch.errors.Interrupted`, once, if a signal has arrived."""
    if _arrived:
        raise Interrupted(_arrived.pop())
