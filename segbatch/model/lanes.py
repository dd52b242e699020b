"""Lanes: on the CPU several batches go through the network at once, each on threads of its own.

Threads that share the layers of one batch wait for each other at the end of each layer; those that
have a batch each never wait, and batches can be small enough to stay in a core's cache. On two
cores that is 1.4 to 1.8 times as many images a second (``benchmarks/README.md``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # lanes: all run the Python of one process, and a video gives 8 frames at a time


class Lanes:
    """As many lanes as torch has threads now, up to ``MOST`` that share them out."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.number = min(self.threads, MOST)
        each = self.threads // self.number  # torch keeps the number that is set by thread
        self._pool = ThreadPoolExecutor(self.number, "lane", torch.set_num_threads, (each,))

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with what ``function`` makes of it, in their order; a few at a time.

        One alone is done here, and has the threads of all lanes.
        """
        rest = iter(items)
        first = list(islice(rest, 2))
        if len(first) < 2:
            if first and torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            yield from ((item, function(item)) for item in first)
            return
        ahead = deque((item, self.start(partial(function, item))) for item in first)
        while ahead:
            for item in islice(rest, 2 * self.number - len(ahead)):
                ahead.append((item, self.start(partial(function, item))))
            item, running = ahead.popleft()
            yield item, running.result()

    def start(self, call: Callable[[], Result]) -> Future[Result]:
        """Begin ``call`` in the next lane that is free."""
        return self._pool.submit(_inferring, call)


def _inferring(call: Callable[[], Result]) -> Result:
    with torch.inference_mode():  # which torch keeps by thread, too
        return call()
