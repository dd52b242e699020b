"""Loader: batches of augmented images, made by threads while the network computes.

Threads and not processes: Pillow and NumPy let others run while they work, nothing has to be sent
from one process to another, and none has to be started again with every epoch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from segbatch.config.training import Augment, Train
from segbatch.images.scaling import FILTER
from segbatch.masks.classes import IGNORE_INDEX

# Order: which image comes when, and which worker takes it; all of it follows from the seed.
#
# The images of all epochs are one long row: epoch 0 shuffled, epoch 1 shuffled otherwise, and so
# on. A step takes the next ``batch_size`` of them, also over the border of two epochs, so within an
# epoch no image is left out and none comes twice. Only the very last step is filled up with images
# that would have come next.


@dataclass(frozen=True)
class Place:
    """One image's turn: its index in the split, and the epoch in which it comes."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Order:
    """The order of a training on ``num_images``. A step is done in ``parts``, which the workers
    share out among themselves; ``parts`` divides ``batch_size``.
    """

    num_images: int
    batch_size: int
    parts: int
    epochs: int
    seed: int

    @property
    def num_steps(self) -> int:
        return math.ceil(self.epochs * self.num_images / self.batch_size)

    @property
    def total(self) -> int:
        """Images of the whole training."""
        return self.num_steps * self.batch_size

    def epoch_ends(self, epoch: int) -> int:
        """Steps that are done once every image of ``epoch``, from 0, has been seen."""
        return math.ceil((epoch + 1) * self.num_images / self.batch_size)

    def at(self, position: int) -> Place:
        epoch, place = divmod(position, self.num_images)
        return Place(epoch, int(shuffled(self.num_images, self.seed, epoch)[place]))

    def share(self, step: int, rank: int, world_size: int) -> list[list[Place]]:
        """The parts of ``step``, from 0, that worker ``rank`` of ``world_size`` does."""
        size = self.batch_size // self.parts
        first = step * self.batch_size
        starts = [first + part * size for part in range(rank, self.parts, world_size)]
        return [[self.at(position) for position in range(s, s + size)] for s in starts]


@lru_cache(maxsize=4)
def shuffled(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The indices 0 to ``num_images`` in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


# Augmentation: another photograph of the same thing, and the label map that goes with it.


Array = npt.NDArray[np.uint8]


Box = tuple[int, int, int, int]


def augmented(
    rng: np.random.Generator,
    image: Array,
    label_map: Array,
    *,
    crop: int,
    augment: Augment,
    fill: tuple[int, int, int],
) -> tuple[Array, Array]:
    """A random square of ``image`` (HWC) and ``label_map`` (HW), both ``crop`` pixels a side.

    Scaled, cropped, changed in brightness, contrast and saturation, then mirrored. What lies
    outside of the image is ``fill``, and ignored. Label maps are only ever scaled to the nearest
    pixel: between two class ids lies no third.
    """
    low, high = augment.scale_range
    # Uniform in the logarithm: half as large is as likely as twice as large.
    factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    height, width = label_map.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    left, top = (int(rng.integers(max(0, length - crop) + 1)) for length in size)
    inside = min(crop, size[0] - left), min(crop, size[1] - top)

    # Only what the crop shows is scaled.
    scale = width / size[0], height / size[1]
    shown = (
        left * scale[0], top * scale[1],
        (left + inside[0]) * scale[0], (top + inside[1]) * scale[1],
    )  # fmt: skip
    seen = Image.fromarray(image).resize(inside, FILTER, shown)
    jitter = augment.color_jitter
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        seen = change(seen).enhance(float(rng.uniform(1 - jitter, 1 + jitter)))
    picture = Image.new("RGB", (crop, crop), fill)
    picture.paste(seen)
    labels = Image.new("L", (crop, crop), IGNORE_INDEX)
    labels.paste(Image.fromarray(label_map).resize(inside, Image.Resampling.NEAREST, shown))

    if rng.random() < augment.flip_probability:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture), np.asarray(labels)


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
