"""Calls a function for many arguments in threads, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def map_in_threads(
    function: Callable[[A], R], arguments: Iterable[A], num_threads: int
) -> Iterator[R]:
    """The results in the order of ``arguments``; at most two calls per thread are started ahead."""
    with ThreadPoolExecutor(num_threads) as threads:
        ahead: deque[Future[R]] = deque()
        for argument in arguments:
            ahead.append(threads.submit(function, argument))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
