"""What the keys under ``train:`` mean in torch: optimizer, schedule, freezing, class weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from segbatch.config.training import Schedule, Train
from segbatch.labels.dataset import Dataset
from segbatch.masks import decode_mask

# Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017: poly.
SCHEDULES: dict[str, Callable[[float, Schedule], float]] = {
    "poly": lambda progress, keys: (1 - progress) ** keys.power,
    "cosine": lambda progress, _: 0.5 + 0.5 * math.cos(math.pi * progress),
    "constant": lambda progress, _: 1.0,
}


def make_optimizer(network: nn.Module, backbone: nn.Module, train: Train) -> Optimizer:
    """The optimizer of ``network``, with parameter groups of its ``backbone`` and of the rest.

    The key ``peak_lr`` of a group is its highest learning rate.
    """
    keys = train.optimizer
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            # Decay is for what multiplies; a norm's scale or a bias has no reason to be small.
            kind = id(parameter) in in_backbone, parameter.ndim > 1
            groups.setdefault(kind, []).append(parameter)
    options = [
        {
            "params": parameters,
            "peak_lr": keys.lr * (1 if of_backbone else keys.head_lr_factor),
            "weight_decay": keys.weight_decay if decayed else 0.0,
        }
        for (of_backbone, decayed), parameters in groups.items()
    ]
    if keys.name == "adamw":
        return AdamW(options, lr=keys.lr, betas=(keys.momentum, 0.999))
    return SGD(options, lr=keys.lr, momentum=keys.momentum)


def set_learning_rates(optimizer: Optimizer, keys: Schedule, seen: int, total: int) -> float:
    """Set the learning rates of the step that begins after ``seen`` of ``total`` images.

    Returns them as a share of their highest, 0 to 1.
    """
    share = SCHEDULES[keys.name](seen / total, keys)
    if seen < keys.warmup:
        share *= (seen + 1) / (keys.warmup + 1)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return share


def set_train_mode(network: nn.Module, backbone: nn.Module, freeze: str | None) -> None:
    """Put the network into train mode, except for what ``train.freeze`` freezes."""
    network.train()
    if freeze == "backbone":
        backbone.eval().requires_grad_(False)
    for norm in batch_norms(network) if freeze == "batchnorm" else ():
        norm.eval()


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def synchronise_norms(network: nn.Module) -> nn.Module:
    """The network with batch norms whose statistics are those of all workers.

    timm's function: torch's drops the activation that is part of many of timm's norms.
    """
    synchronised: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return synchronised


def class_pixels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Pixels of each class in ``train``, ``(classes,)``; reads the masks of a dataset that an
    earlier version imported.
    """
    num_classes = len(dataset.classes)
    if counts := dataset.pixels.get("train"):
        return np.array([counts.get(class_id, 0) for class_id in range(num_classes)], np.int64)
    return sum(_mask_counts(dataset), np.zeros(256, np.int64))[:num_classes]


def median_frequency_weights(dataset: Dataset) -> list[float]:
    """:func:`median_frequency` over the masks of ``train``."""
    return weights_of_counts(_mask_counts(dataset), len(dataset.classes))


def weights_of_counts(
    mask_counts: Iterable[npt.NDArray[np.int64]], num_classes: int
) -> list[float]:
    """:func:`median_frequency` over masks, given as pixels by id, ``(256,)`` each."""
    pixels, image_pixels = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for all_counts in mask_counts:
        counts = all_counts[:num_classes]
        pixels += counts
        image_pixels += np.where(counts > 0, all_counts.sum(), 0)
    return median_frequency(pixels, image_pixels)


def _mask_counts(dataset: Dataset) -> Iterator[npt.NDArray[np.int64]]:
    """Pixels by id, ``(256,)``, of each mask of ``train``."""
    for table in dataset.tables("train", ["mask"]):
        for mask in table["mask"].to_pylist():
            yield count_ids(mask["bytes"])


def count_ids(mask: bytes) -> npt.NDArray[np.int64]:
    """Pixels by id, ``(256,)``, of a mask as it is stored."""
    return np.bincount(decode_mask(mask).ravel(), minlength=256)


def median_frequency(
    pixels: npt.NDArray[np.int64], image_pixels: npt.NDArray[np.int64]
) -> list[float]:
    """Class weights: the median class frequency divided by each class's own.

    ``pixels`` counts the pixels of each class, ``image_pixels`` all pixels of the images in which
    it occurs. A class without any has weight 0. Source: Eigen and Fergus, "Predicting Depth,
    Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional Architecture", 2015.
    """
    present = pixels > 0
    frequency = np.where(present, pixels / np.maximum(image_pixels, 1), np.nan)
    weights = np.where(present, np.nanmedian(frequency) / frequency, 0.0)
    return [float(weight) for weight in weights]


def seed_everything(seed: int, *more: int) -> None:
    """Seed torch's random numbers: new weights, dropout."""
    torch.manual_seed(int(np.random.default_rng([seed, *more]).integers(2**63)))
