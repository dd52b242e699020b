"""Lanes: on the CPU several batches go through the network at once, each on a thread of its own.

Threads that share the layers of one batch wait for each other at the end of each layer; those that
have a batch each never wait. On two cores a network takes a third of the time less that way, and
small batches, which stay in the cores' caches, save as much again (``benchmarks/README.md``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import ParamSpec, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class Lanes:
    """As many lanes as torch has threads now, in the process."""

    def __init__(self) -> None:
        self.number = torch.get_num_threads()
        # torch keeps this setting by thread.
        self._pool = ThreadPoolExecutor(self.number, "lane", torch.set_num_threads, (1,))

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with what ``function`` makes of it, in their order; a few at a time.

        One alone is done here, and has the threads of all lanes.
        """
        rest = iter(items)
        first = list(islice(rest, 2))
        if len(first) < 2:
            if first and torch.get_num_threads() != self.number:
                torch.set_num_threads(self.number)
            yield from ((item, function(item)) for item in first)
            return
        ahead = deque((item, self.start(function, item)) for item in first)
        while ahead:
            for item in islice(rest, 2 * self.number - len(ahead)):
                ahead.append((item, self.start(function, item)))
            item, running = ahead.popleft()
            yield item, running.result()

    def start(
        self,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Begin a call in the next lane that is free."""

        @torch.inference_mode()  # of a thread, too
        def call() -> Result:
            return function(*args, **kwargs)

        return self._pool.submit(call)
