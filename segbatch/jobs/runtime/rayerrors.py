"""Errors of Ray as errors of segbatch: what a worker raised on purpose, or that it was lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ray.exceptions import RayError, RayTaskError

from segbatch import errors
from segbatch.errors import Incomplete, SegbatchError
from segbatch.storage import one_line


def raised_on_purpose(error: BaseException) -> SegbatchError | None:
    """The error of segbatch behind ``error``; ``None`` if no worker raised one.

    Ray only quotes what a stage of Ray Data raised, or an actor at its start: pickling loses the
    cause of Ray's own errors.
    """
    causes = list(causes_of(error))
    for cause in causes:
        if isinstance(cause, SegbatchError) and not isinstance(cause, RayTaskError):
            return cause
    for cause in causes:
        # With another cause it is a fault of the program; what it quotes was handled before.
        without_cause = isinstance(getattr(cause, "cause", cause), RayError)
        if without_cause and (quoted := _quoted(str(cause))):
            return quoted
    return None


def known_error(error: RayError) -> SegbatchError | None:
    """The error of a task as one of segbatch: what its worker raised on purpose, or that the worker
    was lost; ``None`` for a fault of the program.
    """
    known = raised_on_purpose(error)
    if known is None and not isinstance(error, RayTaskError):
        known = Incomplete(f"a worker was lost: {one_line(error)}; run it again")
    return known


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """``error``, its cause, the cause of that, and so on, through the errors of Ray's tasks."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.cause if isinstance(cause, RayTaskError) else cause.__cause__


def _quoted(text: str) -> SegbatchError | None:
    """The last error of segbatch that a traceback of Ray quotes."""
    quoted = re.findall(rf"^{errors.__name__}\.(\w+): (.+)$", text, re.MULTILINE)
    for name, message in reversed(quoted):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, SegbatchError):
            return kind.__new__(kind, message)  # without __init__: the message is made already
    return None
