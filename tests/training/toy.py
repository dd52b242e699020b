"""A toy problem: pictures of coloured squares, and a network that learns them within seconds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segbatch.config.training import Train
from segbatch.training.loader import Loader, Sampler
from segbatch.training.loss import NetworkWithLoss
from segbatch.training.step import Training

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
COLORS = np.array([[40, 40, 40], [200, 60, 60], [60, 90, 200]], np.uint8)
NUM_IMAGES = 10

Array = npt.NDArray[np.uint8]


def squares(seed: int) -> tuple[Array, Array]:
    """A picture of two coloured squares on grey, with noise, and its label map."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros((40, 48), np.uint8)
    for class_id in (1, 2):
        top, left = rng.integers(0, 28, 2)
        label_map[top : top + 12, left : left + 12] = class_id
    noisy = COLORS[label_map] + rng.normal(0, 12, (40, 48, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), label_map


class Toy(nn.Module):
    """Three layers, with all that a training handles: a backbone, a norm, dropout, two heads.

    ``spare``: adds weights that the output does not depend on, as some backbones have.
    """

    align_corners = False
    size_multiple = 1

    def __init__(self, seed: int = 0, *, dropout: float = 0.1, spare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(12, 3, 1))
        self.auxiliary = nn.Conv2d(12, 3, 1)
        self.spare = nn.Linear(2, 2) if spare else None

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.trunk(images)
        return self.head(features), self.auxiliary(features) if self.training else None


def recipe(**keys: Any) -> Train:
    small = {"epochs": 6, "batch_size": 4, "long_side": None, "crop": 32}
    return Train.model_validate({**small, "optimizer": {"lr": 0.01}, **keys})


def sampler_of(train: Train, micro_batches: int = 1) -> Sampler:
    return Sampler(NUM_IMAGES, train.batch_size, micro_batches, train.epochs, train.seed)


def training(
    train: Train, network: Toy | None = None, *, micro_batches: int = 1, precision: str = "fp32"
) -> Training:
    """A training at its start."""
    network = network or Toy()
    return Training(
        NetworkWithLoss(network, train.loss, MEAN, STD),
        network.trunk,
        sampler_of(train, micro_batches),
        train,
        device=torch.device("cpu"),
        precision=precision,
    )


def loader(train: Train, *, micro_batches: int = 1, rank: int = 0, world_size: int = 1) -> Loader:
    ids = [100 + index for index in range(NUM_IMAGES)]
    return Loader(
        squares, ids, sampler_of(train, micro_batches), train,
        fill=(127, 127, 127), rank=rank, world_size=world_size,
    )  # fmt: skip


def run(
    given: Training, num_steps: int, *, micro_batches: int = 1, rank: int = 0, world_size: int = 1
) -> list[float]:
    """Do the next ``num_steps`` steps; the loss of each."""
    steps = loader(
        given.train, micro_batches=micro_batches, rank=rank, world_size=world_size
    ).steps(given.step)
    return [given.run_step(next(steps)) for _ in range(num_steps)]


def weights(given: Training) -> Tensor:
    """All weights, concatenated."""
    return torch.cat([parameter.detach().flatten() for parameter in given.network.parameters()])
