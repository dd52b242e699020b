"""Loads the batches of a training: which images come when, decoded and augmented.

Order and augmentation follow from the seed, the epoch and the image id alone. A resumed training,
or one on another number of workers, therefore sees the same images. Batches are made ahead by
threads and not by processes: Pillow and NumPy release the GIL, nothing is pickled between
processes, and none has to be started again for every epoch.
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

BATCHES_AHEAD = 3  # micro-batches that are being made while the network computes

Array = npt.NDArray[np.uint8]
Pair = tuple[Array, Array]  # an image, HWC RGB, and its label map, HW
Batch = tuple[Tensor, Tensor]  # images, uint8 NHWC, and label maps, int64 NHW


@dataclass(frozen=True)
class SampleIndex:
    """An image of the split, by its index, and the epoch that it is drawn for."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Sampler:
    """Says which images each worker takes at each step of a training.

    The epochs, each shuffled on its own, are joined into one sequence, and a step takes the next
    ``batch_size`` images of it, also across the border of two epochs. So within an epoch no image
    is left out and none comes twice; only the very last step is filled up with images that would
    have come next. A step is done in ``num_micro_batches``, which the workers share; it divides
    ``batch_size``.
    """

    num_images: int
    batch_size: int
    num_micro_batches: int
    epochs: int
    seed: int

    @property
    def num_steps(self) -> int:
        return math.ceil(self.epochs * self.num_images / self.batch_size)

    @property
    def total_images(self) -> int:
        """Images of all steps."""
        return self.num_steps * self.batch_size

    def last_step(self, epoch: int) -> int:
        """Number of steps after which every image of ``epoch``, from 0, has been seen."""
        return math.ceil((epoch + 1) * self.num_images / self.batch_size)

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[list[SampleIndex]]:
        """The micro-batches of ``step``, from 0, for worker ``rank`` of ``world_size``."""
        size = self.batch_size // self.num_micro_batches
        first = step * self.batch_size
        starts = [
            first + number * size for number in range(rank, self.num_micro_batches, world_size)
        ]
        return [[self._at(position) for position in range(s, s + size)] for s in starts]

    def _at(self, position: int) -> SampleIndex:
        epoch, place = divmod(position, self.num_images)
        return SampleIndex(epoch, int(_shuffled(self.num_images, self.seed, epoch)[place]))


@lru_cache(maxsize=4)
def _shuffled(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The indices 0 to ``num_images`` in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


class Loader:
    """Makes the micro-batches of one worker, a few ahead of the step that needs them.

    ``load`` gives the image (HWC uint8 RGB) and label map (HW uint8) of an index; ``image_ids``
    are their ids. ``fill`` is the RGB colour outside of an image.
    """

    def __init__(
        self,
        load: Callable[[int], Pair],
        image_ids: Sequence[int],
        sampler: Sampler,
        train: Train,
        *,
        fill: tuple[int, int, int],
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._load = load
        self._image_ids = image_ids
        self._sampler = sampler
        self._train = train
        self._fill = fill
        self._rank, self._world_size = rank, world_size
        self._threads = threads
        self._pin_memory = pin_memory
        self._wait_seconds = 0.0

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """The micro-batches of this worker, for each step from ``first`` on."""
        sampler = self._sampler
        per_step = len(range(self._rank, sampler.num_micro_batches, self._world_size))
        with ThreadPoolExecutor(self._threads, "loader") as pool:
            batches = self._submit_ahead(pool, first)
            try:
                for _ in range(first, sampler.num_steps):
                    yield [self._collate(batch) for batch in islice(batches, per_step)]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def pop_wait_seconds(self) -> float:
        """Seconds that steps had to wait for their batches since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def _submit_ahead(self, pool: ThreadPoolExecutor, first: int) -> Iterator[list[Future[Pair]]]:
        """The micro-batches of all steps, each submitted ``BATCHES_AHEAD`` before it is taken."""
        ahead: deque[list[Future[Pair]]] = deque()
        for step in range(first, self._sampler.num_steps):
            for batch in self._sampler.micro_batches(step, self._rank, self._world_size):
                ahead.append([pool.submit(self._make_sample, sample) for sample in batch])
                if len(ahead) == BATCHES_AHEAD:
                    yield ahead.popleft()
        yield from ahead

    def _make_sample(self, sample: SampleIndex) -> Pair:
        image, label_map = self._load(sample.index)
        train = self._train
        rng = np.random.default_rng([train.seed, sample.epoch, self._image_ids[sample.index]])
        return augment_sample(
            rng, image, label_map, crop=train.crop, augment=train.augment, fill=self._fill
        )

    def _collate(self, samples: list[Future[Pair]]) -> Batch:
        began = time.perf_counter()
        pairs = [sample.result() for sample in samples]
        images, label_maps = (torch.from_numpy(np.stack(half)) for half in zip(*pairs, strict=True))
        batch = images, label_maps.long()
        if self._pin_memory:
            batch = batch[0].pin_memory(), batch[1].pin_memory()
        self._wait_seconds += time.perf_counter() - began
        return batch


def augment_sample(
    rng: np.random.Generator,
    image: Array,
    label_map: Array,
    *,
    crop: int,
    augment: Augment,
    fill: tuple[int, int, int],
) -> Pair:
    """A random square of ``image`` (HWC) and ``label_map`` (HW), both ``crop`` pixels a side.

    Scales, crops, changes brightness, contrast and saturation, then mirrors. Outside of the image
    the picture is ``fill`` and the label map is ignored. Label maps are scaled to the nearest
    pixel, so no class id is interpolated.
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
