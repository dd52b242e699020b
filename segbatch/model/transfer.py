"""Transfer: bytes to the device and results back, while the device goes on computing.

On a GPU, copies to it run on a stream of their own from pinned memory, one batch ahead of the
computation, and results come back into pinned memory without anyone waiting for them. Elsewhere the
same calls wait for what they move; on the CPU, whose batches go through lanes, there is nothing to
move, and results are given as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Arriving:
    """Tensors on their way to the host, which are there once the device has got to ``done``."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, in memory that is not pinned, of which there is little."""
        if self.done is None:
            return self.tensors
        self.done.synchronize()
        return tuple(tensor.clone() for tensor in self.tensors)


class Transfer:
    """The way to ``device`` and back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def uploaded(
        self, batches: Iterable[Batch], pack: Callable[[Batch, bool], Tensor]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch with its tensor on the device; the next one is copied meanwhile.

        ``pack`` makes a batch's tensor on the host, in pinned memory if its second argument says
        so.
        """
        ahead: tuple[Batch, Tensor, torch.cuda.Event | None] | None = None
        for batch in batches:
            following = (batch, *self._send(pack(batch, self._copies is not None)))
            if ahead:
                yield self._received(*ahead)
            ahead = following
        if ahead:
            yield self._received(*ahead)

    def download(self, tensors: tuple[Tensor, ...]) -> Arriving:
        """Start to bring ``tensors`` to the host, behind everything that was asked for before."""
        if self._copies is None:
            return Arriving(tuple(tensor.cpu() for tensor in tensors), None)
        host = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)  # pins by itself
        return Arriving(host, torch.cuda.current_stream(self.device).record_event())

    def _send(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if self._copies is None:
            return host.to(self.device), None
        with torch.cuda.stream(self._copies):
            sent = host.to(self.device, non_blocking=True)
        return sent, self._copies.record_event()

    def _received(
        self, batch: Batch, sent: Tensor, copied: torch.cuda.Event | None
    ) -> tuple[Batch, Tensor]:
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            sent.record_stream(computing)  # its memory belongs to the stream of copies
        return batch, sent
