"""Recipe: what the keys under ``train:`` mean in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from segbatch.config.training import Schedule, Train

# Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017: poly.
SCHEDULES: dict[str, Callable[[float, Schedule], float]] = {
    "poly": lambda progress, keys: (1 - progress) ** keys.power,
    "cosine": lambda progress, _: 0.5 + 0.5 * math.cos(math.pi * progress),
    "constant": lambda progress, _: 1.0,
}


def make_optimizer(network: nn.Module, trunk: nn.Module, train: Train) -> Optimizer:
    """The optimizer of ``network``, whose backbone is ``trunk``.

    Each group's learning rate at its highest stands under ``peak_lr``.
    """
    keys = train.optimizer
    backbone = {id(parameter) for parameter in trunk.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            # Decay is for what multiplies; a norm's scale or a bias has no reason to be small.
            kind = id(parameter) in backbone, parameter.ndim > 1
            groups.setdefault(kind, []).append(parameter)
    options = [
        {
            "params": parameters,
            "peak_lr": keys.lr * (1 if in_backbone else keys.head_lr_factor),
            "weight_decay": keys.weight_decay if decayed else 0.0,
        }
        for (in_backbone, decayed), parameters in groups.items()
    ]
    if keys.name == "adamw":
        return AdamW(options, lr=keys.lr, betas=(keys.momentum, 0.999))
    return SGD(options, lr=keys.lr, momentum=keys.momentum)


def set_rate(optimizer: Optimizer, keys: Schedule, seen: int, total: int) -> float:
    """Set the learning rates for the step that begins after ``seen`` of ``total`` images; returns
    the share of their highest that they have, 0 to 1.
    """
    share = SCHEDULES[keys.name](seen / total, keys)
    if seen < keys.warmup:
        share *= (seen + 1) / (keys.warmup + 1)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return share


def set_mode(network: nn.Module, trunk: nn.Module, freeze: str | None) -> None:
    """Train mode, but for what is frozen."""
    network.train()
    if freeze == "backbone":
        trunk.eval().requires_grad_(False)
    for norm in norms(network) if freeze == "batchnorm" else ():
        norm.eval()


def norms(network: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def median_frequency(
    pixels: npt.NDArray[np.int64], image_pixels: npt.NDArray[np.int64]
) -> Sequence[float]:
    """Class weights: the median class frequency over each class's own.

    ``pixels`` of each class, ``image_pixels`` the pixels of all images in which it occurs. A class
    without any has weight 0. Source: Eigen and Fergus, "Predicting Depth, Surface Normals and
    Semantic Labels with a Common Multi-Scale Convolutional Architecture", 2015.
    """
    present = pixels > 0
    frequency = np.where(present, pixels / np.maximum(image_pixels, 1), np.nan)
    weights = np.where(present, np.nanmedian(frequency) / frequency, 0.0)
    return [float(weight) for weight in weights]


def seed_everything(seed: int, *more: int) -> None:
    """Torch's random numbers from here on: new weights, dropout."""
    torch.manual_seed(int(np.random.default_rng([seed, *more]).integers(2**63)))
