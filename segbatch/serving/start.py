"""Waits for an application of Ray Serve to run, and finds why it does not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from segbatch import errors
from segbatch.console import say
from segbatch.errors import InputError, JobFailed, SegbatchError

LOOK_S = 0.5
SAY_S = 60.0


class Start:
    """The start of one application, of which Serve says a status and messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said = time.monotonic()

    def is_over(self, status: str, messages: Iterable[str]) -> bool:
        """Whether it runs now; says once a minute what it waits for.

        Raises :class:`~segbatch.errors.JobFailed` if it does not start, or the error that segbatch
        raised in a replica.
        """
        if status == "RUNNING":
            return True
        why = "\n".join(message for message in messages if message)
        if failure := _failure(status, why):
            raise failure
        if time.monotonic() - self._said > SAY_S:
            self._said = time.monotonic()
            say(f"waiting for {self._name}: {_last_line(why) or 'its replicas are starting'}")
        return False


def _failure(status: str, why: str) -> SegbatchError | None:
    """The error that keeps an application from running, ``None`` if it may still start."""
    has_failed = status == "DEPLOY_FAILED"
    if raised := re.findall(r"^segbatch\.errors\.(\w+): (.*)$", why, re.MULTILINE):
        kind, message = raised[-1]
        error: SegbatchError = getattr(errors, kind, InputError)(message)
        if has_failed or isinstance(error, InputError):  # Serve would try it twice more
            return error
    return JobFailed(f"the server did not start: {_last_line(why)}") if has_failed else None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
