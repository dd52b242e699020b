"""Order: which image comes when, and which worker takes it; all of it follows from the seed.

The images of all epochs are one long row: epoch 0 shuffled, epoch 1 shuffled otherwise, and so on.
A step takes the next ``batch_size`` of them, also over the border of two epochs, so within an epoch
no image is left out and none comes twice. Only the very last step is filled up with images that
would have come next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


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
