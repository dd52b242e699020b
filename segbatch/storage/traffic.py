"""Counts what this process asks of remote storage to read: requests, and the bytes that come."""

from __future__ import annotations

import threading
from typing import NamedTuple


class Traffic(NamedTuple):
    """Requests and bytes since the process began."""

    requests: int
    num_bytes: int


_lock = threading.Lock()
_total = Traffic(0, 0)


def traffic() -> Traffic:
    """What was asked for so far."""
    return _total


def count_request(num_bytes: int = 0) -> None:
    """Count one request that is made, or that brings ``num_bytes``."""
    _count(1, num_bytes)


def count_bytes(num_bytes: int) -> None:
    """Count bytes that come with a request which is counted already."""
    _count(0, num_bytes)


def _count(requests: int, num_bytes: int) -> None:
    global _total  # noqa: PLW0603 - one count a process
    with _lock:
        _total = Traffic(_total.requests + requests, _total.num_bytes + num_bytes)
