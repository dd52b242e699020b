"""Watch: what a driver looks at while it waits: signals, its lease, and whether anything moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from segbatch import signals
from segbatch.console import say
from segbatch.errors import Incomplete
from segbatch.results.lease import Lease


class NothingYet(Exception):
    """What is waited for has not come in time."""


class Watch:
    """Over the work of one driver.

    After ``stall_minutes`` without :meth:`moved` it raises
    :class:`~segbatch.errors.Incomplete`. A signal is told to the workers through the lease, so that
    they begin nothing new; :class:`~segbatch.errors.Interrupted` is raised ``grace_s`` later, or as
    much again if results still come.
    """

    def __init__(self, lease: Lease, stall_minutes: float, grace_s: float = 0.0) -> None:
        self.lease = lease
        self.stall_minutes = stall_minutes
        self.grace_s = grace_s
        self._moved = time.monotonic()
        self._deadline: float | None = None  # once a signal arrived

    def moved(self) -> None:
        """An image was finished."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raises ``Interrupted``, ``Fenced`` or ``Incomplete`` where the work has to end."""
        now = time.monotonic()
        if signals.arrived() and self._deadline is None:
            self._deadline = now + self.grace_s  # and as much again while results come
            if self.grace_s:
                say(
                    f"finishing what is being written, {self.grace_s:.0f} s for it;"
                    " a second signal stops at once"
                )
            self.lease.announce_stop()
        if self._deadline is not None and now >= self._deadline + self.grace_s:
            signals.check()
        self.lease.check()
        if now - self._moved > self.stall_minutes * 60:
            raise Incomplete(
                f"no image was finished for {self.stall_minutes:g} minutes"
                " (limits.stall_minutes); run again"
            )

    def over(self, results: Callable[[float], Any]) -> Iterator[Any]:
        """What ``results(timeout)`` gives, until it raises ``StopIteration``.

        It raises :class:`NothingYet` while there is nothing.
        """
        while True:
            self.check()
            try:
                yield results(1.0)
            except StopIteration:
                return
            except NothingYet:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    signals.check()

    def pause(self, seconds: float) -> None:
        """Sleep, and wake up for what :meth:`check` finds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(1.0, left))
