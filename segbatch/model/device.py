"""The device that a network runs on: which one, at which precision, and how it is kept busy.

On the CPU, several batches run side by side in :class:`Lanes`. On a GPU, :class:`Transfer` copies
the next batch to the device, and results back, while the GPU computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from segbatch.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_LANES = 8  # all lanes run the Python of one process, and a video gives 8 frames at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device for ``device``; ``auto`` is the first GPU, or the CPU if there is no GPU.

    Raises :class:`~segbatch.errors.InputError` for an unknown device, or a GPU that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, but torch sees no GPU here")
    return resolved


def predict_precision(precision: str, device: torch.device) -> str:
    """The precision of predictions: ``precision``, or for ``auto`` bf16 where the device computes
    it in hardware, else fp16 on GPUs and fp32 on CPUs.
    """
    if precision == "auto" and device.type == "cpu" and computes_bf16():
        return "bf16"
    return resolve_precision(precision, device)


def computes_bf16() -> bool:
    """Whether this machine's CPU computes bf16 in hardware (AVX512-BF16 or AMX)."""
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.13
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def resolve_precision(precision: str, device: torch.device) -> str:
    """The key of :data:`DTYPES` for ``precision``; ``auto`` is fp32 on the CPU, bf16 on GPUs that
    have it, and fp16 on others.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def device_here(asked: str) -> str:
    """``cuda`` if this process has a GPU and ``asked`` (auto, cpu or cuda) allows it, else
    ``cpu``.
    """
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """``cpu``, or the product name of the GPU: ``NVIDIA A10G``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class Lanes:
    """Threads of the CPU that each take a whole batch, with a share of torch's threads.

    Threads that share the layers of one batch wait for each other at the end of each layer;
    threads with a batch of their own never wait, and their batches can be small enough for a
    core's cache. On two cores that gives 1.4 to 1.8 times as many images a second
    (``benchmarks/README.md``). There are as many lanes as torch has threads when they are made, up
    to ``MAX_LANES``.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.number = self.count()
        each = self.threads // self.number  # torch keeps this setting per thread
        self._pool = ThreadPoolExecutor(self.number, "lane", torch.set_num_threads, (each,))

    @staticmethod
    def count() -> int:
        """The number of lanes that would be made now."""
        return min(torch.get_num_threads(), MAX_LANES)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with its result, in order; at most two items a lane are taken ahead.

        A single item runs in the calling thread, with the threads of all lanes.
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
        """Run ``call`` in the next free lane."""
        return self._pool.submit(_in_inference_mode, call)


def _in_inference_mode(call: Callable[[], Result]) -> Result:
    with torch.inference_mode():  # torch keeps this setting per thread, too
        return call()


@dataclass(frozen=True)
class HostCopy:
    """Tensors that are being copied to the host; they are complete once ``done`` has occurred."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    def result(self) -> tuple[Tensor, ...]:
        """Wait for the tensors; in pageable memory, because pinned memory is scarce."""
        if self.done is None:
            return self.tensors
        self.done.synchronize()
        return tuple(tensor.clone() for tensor in self.tensors)


class Transfer:
    """Copies to and from a device while it computes.

    On a GPU, copies to it go from pinned memory through a stream of their own, one batch ahead of
    the computation, and results are copied into pinned memory without waiting for them. On other
    devices the same calls wait for each copy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(
        self, batches: Iterable[Item], pack: Callable[[Item, bool], Tensor]
    ) -> Iterator[tuple[Item, Tensor]]:
        """Each batch with its tensor on the device, while the tensor of the next one is copied.

        ``pack`` makes the tensor of a batch on the host, in pinned memory if its second argument
        is true.
        """
        ahead: tuple[Item, Tensor, torch.cuda.Event | None] | None = None
        for batch in batches:
            following = (batch, *self._send(pack(batch, self._copies is not None)))
            if ahead:
                yield self._received(*ahead)
            ahead = following
        if ahead:
            yield self._received(*ahead)

    def download(self, tensors: tuple[Tensor, ...]) -> HostCopy:
        """Start to copy ``tensors`` to the host, after all work that was queued before."""
        if self._copies is None:
            return HostCopy(tuple(tensor.cpu() for tensor in tensors), None)
        host = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)  # torch pins it
        return HostCopy(host, torch.cuda.current_stream(self.device).record_event())

    def _send(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if self._copies is None:
            return host.to(self.device), None
        with torch.cuda.stream(self._copies):
            sent = host.to(self.device, non_blocking=True)
        return sent, self._copies.record_event()

    def _received(
        self, batch: Item, sent: Tensor, copied: torch.cuda.Event | None
    ) -> tuple[Item, Tensor]:
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            sent.record_stream(computing)  # its memory belongs to the stream of copies
        return batch, sent
