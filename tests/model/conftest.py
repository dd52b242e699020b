"""Small networks with random weights, and a plain reference for their predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from segbatch.masks.classes import Classes
from segbatch.model import zoo
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network, build
from segbatch.model.patches import Pixels

CLASSES = Classes(["background", "wall", "window", "door", "roof"])

BACKBONES = {"deeplabv3": "mobilenet_v3_large", "deeplabv3plus": "mobilenet_v2"}


def random_network(arch: str, num_classes: int = len(CLASSES)) -> Network:
    """A network that tells its classes apart: statistics and head fit the pictures of the tests."""
    torch.manual_seed(7)
    network = build(arch, BACKBONES[arch], num_classes)
    pictures = torch.stack([normalized(picture(128, 128, seed)) for seed in range(4)])
    network.train()
    with torch.no_grad():
        for _ in range(5):  # of the batch norms
            network(pictures)
        network.eval()
        head = network.get_submodule(network.head_key)
        head.bias.zero_()
        logits = network.coarse(pictures)
        spread = logits.std((0, 2, 3))
        head.weight /= spread[:, None, None, None] / 3
        head.bias -= logits.mean((0, 2, 3)) / spread * 3
    return network


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours and a little noise; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, 5, 5, generator=generator)
    smooth = functional.interpolate(blocks, (height, width), mode="bilinear")[0]
    noise = torch.rand(3, height, width, generator=generator)
    pixels = (smooth * 0.9 + noise * 0.1) * 255
    return np.ascontiguousarray(pixels.byte().permute(1, 2, 0).numpy())


def normalized(image: Pixels) -> torch.Tensor:
    """Padded at the bottom and right with the mean colour, normalised: CHW float32."""
    height, width, _ = image.shape
    mean = torch.tensor(zoo.IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(zoo.IMAGENET_STD)[:, None, None]
    canvas = torch.empty(3, -(-height // 64) * 64, -(-width // 64) * 64)
    canvas[:] = (mean * 255).round()
    canvas[:, :height, :width] = torch.from_numpy(image).permute(2, 0, 1)
    return (canvas / 255 - mean).div(std)


def config_of(network: Network, arch: str, classes: Classes = CLASSES) -> ModelConfig:
    return ModelConfig(arch, BACKBONES[arch], network.output_stride, classes)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Inputs are tiny: waiting for a second thread takes longer than the work."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def in_fp32(fp32: None) -> None:
    """All references here compute in fp32."""


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    return {arch: random_network(arch) for arch in BACKBONES}


@pytest.fixture(scope="session")
def photo() -> Callable[..., Pixels]:
    return picture


@torch.inference_mode()
def plain_logits(network: Network, image: Pixels) -> torch.Tensor:
    """One image through the whole network in fp32, cropped to its own size: ``(C, H, W)``."""
    height, width, _ = image.shape
    return network(normalized(image)[None])[0, :, :height, :width]


def plain_mask(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class ids of ``(C, H, W)`` logits on a grid of ``size``."""
    return functional.interpolate(logits[None], size, mode="bilinear")[0].argmax(0)


def share_that_differs(mask: Pixels, expected: torch.Tensor) -> float:
    return float(np.mean(mask != expected.numpy()))
