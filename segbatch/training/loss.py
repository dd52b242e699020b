"""Loss: what a training makes small, measured on augmented images and their label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from segmentation_models_pytorch import losses
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segbatch.config.training import Loss
from segbatch.masks.classes import IGNORE_INDEX

HARDEST = 0.25  # share of the pixels that `ohem` looks at

Color = tuple[float, float, float]


class Trainable(Protocol):
    """What :mod:`segbatch.model.zoo`'s networks are to a training."""

    align_corners: bool

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coarse logits, and those of the auxiliary head where there is one."""


class HardestCrossEntropy(nn.Module):
    """Cross entropy over the hardest pixels: online hard example mining.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
    Mining", 2016, as segmentation uses it (Wu et al., "High-performance Semantic Segmentation
    Using Very Deep Fully Convolutional Networks", 2016).
    """

    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.pixelwise = nn.CrossEntropyLoss(weight, ignore_index=IGNORE_INDEX, reduction="none")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        values = self.pixelwise(logits, truth)[truth != IGNORE_INDEX]
        hardest: Tensor = values.topk(max(1, int(HARDEST * values.numel()))).values
        return hardest.mean()


class CrossEntropy(nn.Module):
    """Cross entropy; 0, and not NaN, where there is nothing but classes of weight 0."""

    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.summed = nn.CrossEntropyLoss(weight, ignore_index=IGNORE_INDEX, reduction="sum")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        known = truth[truth != IGNORE_INDEX]
        weight = self.summed.weight
        total = known.numel() if weight is None else weight[known].sum()
        loss: Tensor = self.summed(logits, truth) / max(total, 1e-9)
        return loss


LOSSES: dict[str, Callable[[Tensor | None], nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "ohem": HardestCrossEntropy,
    "dice": lambda _: losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX),
    "focal": lambda _: losses.FocalLoss("multiclass", ignore_index=IGNORE_INDEX),
    "lovasz": lambda _: losses.LovaszLoss("multiclass", ignore_index=IGNORE_INDEX),
}


class Objective(nn.Module):
    """A network together with its loss: uint8 NHWC images and int64 NHW label maps in, a number
    out. It is this that workers share the gradients of.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Any,
        loss: Loss,
        mean: Color,
        std: Color,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.keys = loss
        weight = None if class_weights is None else torch.tensor(class_weights)
        self.loss = LOSSES[loss.name](weight)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, truth: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return torch.stack([self._at(scale, images, truth) for scale in self.keys.scales]).mean()

    def _at(self, scale: float, images: Tensor, truth: Tensor) -> Tensor:
        if scale != 1.0:
            images = interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
        main, auxiliary = self.network.heads(images)
        loss = self._loss(main, truth)
        if auxiliary is not None:  # with weight 0 as well: workers wait for all gradients
            loss = loss + self.keys.auxiliary * self._loss(auxiliary, truth)
        return loss

    def _loss(self, coarse: Tensor, truth: Tensor) -> Tensor:
        logits = interpolate(
            coarse.float(),
            size=truth.shape[-2:],
            mode="bilinear",
            align_corners=self.network.align_corners,
        )
        if (truth == IGNORE_INDEX).all():  # several losses would be NaN
            return logits.sum() * 0.0
        loss: Tensor = self.loss(logits, truth)
        return loss
