"""Loader: batches of augmented images, made by threads while the network computes.

Threads and not processes: Pillow and NumPy let others run while they work, nothing has to be sent
from one process to another, and none has to be started again with every epoch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segbatch.config.training import Train
from segbatch.training.augment import augmented
from segbatch.training.order import Order, Place

Array = npt.NDArray[np.uint8]
Pair = tuple[Array, Array]
Batch = tuple[Tensor, Tensor]

PARTS_AHEAD = 3


class Loader:
    """The parts that one worker does of each step, from a step on.

    ``load`` gives the image (HWC uint8) and label map (HW uint8) of an index, ``image_ids`` their
    ids: a picture's augmentation follows from the seed, the epoch and its id, and from nothing
    else. ``fill`` is the colour of what lies outside of an image.
    """

    def __init__(
        self,
        load: Callable[[int], Pair],
        image_ids: Sequence[int],
        order: Order,
        train: Train,
        *,
        fill: tuple[int, int, int],
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        pinned: bool = False,
    ) -> None:
        self._load = load
        self._image_ids = image_ids
        self._order = order
        self._train = train
        self._fill = fill
        self._rank, self._world_size = rank, world_size
        self._threads = threads
        self._pinned = pinned
        self._waited = 0.0

    def take_waited(self) -> float:
        """Seconds that steps had to wait for their batches since this was asked last."""
        waited, self._waited = self._waited, 0.0
        return waited

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """For each step from ``first`` on, its parts: uint8 NHWC images, int64 NHW label maps."""
        num_parts = len(range(self._rank, self._order.parts, self._world_size))
        with ThreadPoolExecutor(self._threads, "loader") as threads:
            parts = self._under_way(threads, first)
            try:
                for _ in range(first, self._order.num_steps):
                    yield [self._batch(part) for part in islice(parts, num_parts)]
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _under_way(self, threads: ThreadPoolExecutor, first: int) -> Iterator[list[Future[Pair]]]:
        """The parts of all steps from ``first`` on; a few more than asked for are being made."""
        ahead: deque[list[Future[Pair]]] = deque()
        for step in range(first, self._order.num_steps):
            for places in self._order.share(step, self._rank, self._world_size):
                ahead.append([threads.submit(self._sample, place) for place in places])
                if len(ahead) == PARTS_AHEAD:
                    yield ahead.popleft()
        yield from ahead

    def _batch(self, part: list[Future[Pair]]) -> Batch:
        began = time.perf_counter()
        pairs = [future.result() for future in part]
        images, label_maps = (torch.from_numpy(np.stack(half)) for half in zip(*pairs, strict=True))
        batch = images, label_maps.long()
        if self._pinned:
            batch = batch[0].pin_memory(), batch[1].pin_memory()
        self._waited += time.perf_counter() - began
        return batch

    def _sample(self, place: Place) -> Pair:
        image, label_map = self._load(place.index)
        train = self._train
        rng = np.random.default_rng([train.seed, place.epoch, self._image_ids[place.index]])
        return augmented(
            rng, image, label_map, crop=train.crop, augment=train.augment, fill=self._fill
        )
