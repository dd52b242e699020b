"""Checks that the driver makes while workers work: signals, its lease, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from segbatch import signals
from segbatch.console import say
from segbatch.errors import Incomplete
from segbatch.results.lease import Lease

PATIENCE_FACTOR = 10


class NothingYet(Exception):
    """Nothing came within the timeout; ask again."""


class Patience:
    """How long to wait for the next result of an execution before it is taken for hung.

    ``PATIENCE_FACTOR`` times the longest wait between two results of this run, at least
    ``shortest_s`` and at most ``longest_s``. Before its first result an execution is never taken
    for hung: nodes and workers are starting, and :class:`Watch` ends a run that gets none. Only the
    driver's waiting counts, not what it does in between.
    """

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self.shortest_s = shortest_s
        self.longest_s = longest_s
        self._slowest_s = 0.0
        self._waited_s = 0.0
        self._delivered = False

    def begin(self) -> None:
        """A new execution begins."""
        self._waited_s, self._delivered = 0.0, False

    def came(self) -> None:
        """A result came."""
        if self._delivered:
            self._slowest_s = max(self._slowest_s, self._waited_s)
        self._waited_s, self._delivered = 0.0, True

    def waited(self, seconds: float) -> bool:
        """Count a wait without a result; returns whether patience has run out."""
        self._waited_s += seconds
        return self._delivered and self._waited_s > self.limit_s

    @property
    def limit_s(self) -> float:
        return min(self.longest_s, max(self.shortest_s, PATIENCE_FACTOR * self._slowest_s))


class Watch:
    """Decides when the work of a driver has to end.

    ``stall_minutes`` after the last :meth:`note_progress` it raises
    :class:`~segbatch.errors.Incomplete`. Workers learn of a signal through the lease and begin
    nothing new.
    :class:`~segbatch.errors.Interrupted` follows ``grace_s`` later, or twice that if results still
    arrive.
    """

    def __init__(
        self, lease: Lease, stall_minutes: float, grace_s: float = 0.0, set_by: str | None = None
    ) -> None:
        self.lease = lease
        self.stall_minutes = stall_minutes
        self.grace_s = grace_s
        self.set_by = f" ({set_by})" if set_by else ""
        self._last_progress = time.monotonic()
        self._deadline: float | None = None  # once a signal arrived

    def note_progress(self) -> None:
        """Record that an image was finished."""
        self._last_progress = time.monotonic()

    def check(self) -> None:
        """Raises ``Interrupted``, ``Fenced`` or ``Incomplete`` if the work has to end."""
        now = time.monotonic()
        if signals.arrived() and self._deadline is None:
            self._deadline = now + self.grace_s
            if self.grace_s:
                say(
                    f"stopping: finishing files for up to {self.grace_s:.0f} s;"
                    " a second signal stops at once"
                )
            self.lease.announce_stop()
        if self._deadline is not None and now >= self._deadline + self.grace_s:
            signals.check()  # although results still arrive
        self.lease.check()
        if now - self._last_progress > self.stall_minutes * 60:
            raise Incomplete(
                f"no image was finished for {self.stall_minutes:g} minutes{self.set_by}; run again"
            )

    def results_of(self, next_result: Callable[[float], Any]) -> Iterator[Any]:
        """What ``next_result(timeout)`` returns, until ``StopIteration``; checks in between.

        ``next_result`` raises :class:`NothingYet` when the timeout passes without a result.
        """
        while True:
            self.check()
            try:
                yield next_result(1.0)
            except StopIteration:
                return
            except NothingYet:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    signals.check()

    def pause(self, seconds: float) -> None:
        """Sleep, and keep checking."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(1.0, left))
