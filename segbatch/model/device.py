"""Device: what a network runs on, by the name that its makers gave it."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from segbatch.errors import InputError, JobFailed
from segbatch.model.patches import Pixels
from segbatch.storage import one_line


def device_here(asked: str) -> str:
    """``cuda`` if this process has a GPU and ``asked`` (auto, cpu or cuda) allows it, else
    ``cpu``.
    """
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """``cpu``, or the name of the GPU: ``NVIDIA A10G``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# Lanes: on the CPU several batches go through the network at once, each on threads of its own.
#
# Threads that share the layers of one batch wait for each other at the end of each layer; those
# that have a batch each never wait, and batches can be small enough to stay in a core's cache. On
# two cores that is 1.4 to 1.8 times as many images a second (``benchmarks/README.md``).


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


# Transfer: bytes to the device and results back, while the device goes on computing.
#
# On a GPU, copies to it run on a stream of their own from pinned memory, one batch ahead of the
# computation, and results come back into pinned memory without anyone waiting for them. Elsewhere
# the same calls wait for what they move; on the CPU, whose batches go through lanes, there is
# nothing to move, and results are given as they are.


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


# JPEGs decoded where the model is: on a GPU by nvJPEG, so that CPUs have less to do.
#
# The decoder is torchvision's. Its pixels differ from those of libjpeg-turbo by rounding, which is
# why a run is decoded in one way from its beginning to its end.


def decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Pixels | None]:
    """RGB of each file, ``(height, width, 3)`` uint8 on the host; ``None`` for what the decoder on
    ``device`` does not take. Raises :class:`~segbatch.errors.JobFailed` for an image too large for
    the device.
    """
    try:
        return list(_decoded(files, device)) if files else []
    except RuntimeError as error:  # of one of them, and it does not say which
        if len(files) == 1:
            if isinstance(error, torch.OutOfMemoryError):
                raise JobFailed(
                    f"{device} has not enough memory to decode a JPEG: set predict.decode: cpu"
                ) from None
            return [None]
    half = len(files) // 2
    return decode_jpegs(files[:half], device) + decode_jpegs(files[half:], device)


def refuse_undecoding(device: torch.device) -> None:
    """Raises :class:`~segbatch.errors.InputError` where no JPEG can be decoded on ``device``."""
    sample = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sample, "JPEG")
    try:
        _decoded([sample.getvalue()], device)
    except RuntimeError as error:
        raise InputError(
            f"predict.decode: device: torchvision decodes no JPEG on {device} here"
            f" ({one_line(error)}): set predict.decode: cpu"
        ) from error


def _decoded(files: Sequence[bytes], device: torch.device) -> list[Pixels]:
    encoded = [torch.from_numpy(np.frombuffer(file, np.uint8).copy()) for file in files]
    decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return [pixels.permute(1, 2, 0).contiguous().cpu().numpy() for pixels in decoded]
