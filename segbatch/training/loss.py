"""The loss function, computed on augmented images and their label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from segmentation_models_pytorch import losses
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from segbatch.config.training import Loss
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.model.normalisation import normalized

HARDEST = 0.25  # share of the pixels that `ohem` looks at

Color = tuple[float, float, float]


class NetworkWithLoss(nn.Module):
    """A network and its loss as one module, so that DDP exchanges the gradients of both.

    Takes images, uint8 NHWC RGB, and label maps, int64 NHW; gives the loss as a scalar. ``network``
    is a :class:`~segbatch.model.networks.Network`; ``mean`` and ``std`` normalise pixels from 0 to
    1.
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
        images = normalized(pixels.permute(0, 3, 1, 2).float(), self.mean, self.std)
        return torch.stack(
            [self._at_scale(scale, images, truth) for scale in self.keys.scales]
        ).mean()

    def _at_scale(self, scale: float, images: Tensor, truth: Tensor) -> Tensor:
        if scale != 1.0:
            images = interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
        height, width = images.shape[-2:]
        bottom, right = (-side % self.network.size_multiple for side in (height, width))
        padded = pad(images, (0, right, 0, bottom))  # with the mean colour, as in prediction
        main, auxiliary = self.network.heads(padded)
        loss = self._of_logits(main, padded, (height, width), truth)
        if auxiliary is not None:  # with weight 0 as well: DDP waits for all gradients
            of_auxiliary = self._of_logits(auxiliary, padded, (height, width), truth)
            loss = loss + self.keys.auxiliary * of_auxiliary
        return loss

    def _of_logits(
        self, coarse: Tensor, padded: Tensor, size: tuple[int, int], truth: Tensor
    ) -> Tensor:
        """The loss of coarse logits of ``padded`` images, which had ``size`` before."""
        logits = coarse.float()
        if padded.shape[-2:] != size:
            logits = self._upsample(logits, padded.shape[-2:])[..., : size[0], : size[1]]
        logits = self._upsample(logits, truth.shape[-2:])
        if (truth == IGNORE_INDEX).all():  # several losses would be NaN
            return logits.sum() * 0.0
        loss: Tensor = self.loss(logits, truth)
        return loss

    def _upsample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if logits.shape[-2:] == torch.Size(size):
            return logits
        return interpolate(
            logits, size=size, mode="bilinear", align_corners=self.network.align_corners
        )


class CrossEntropy(nn.Module):
    """Cross entropy; 0, and not NaN, where all classes of the truth have weight 0."""

    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.summed = nn.CrossEntropyLoss(weight, ignore_index=IGNORE_INDEX, reduction="sum")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        known = truth[truth != IGNORE_INDEX]
        weight = self.summed.weight
        total = known.numel() if weight is None else weight[known].sum()
        loss: Tensor = self.summed(logits, truth) / max(total, 1e-9)
        return loss


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


LOSSES: dict[str, Callable[[Tensor | None], nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "ohem": HardestCrossEntropy,
    "dice": lambda _: losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX),
    "focal": lambda _: losses.FocalLoss("multiclass", ignore_index=IGNORE_INDEX),
    "lovasz": lambda _: losses.LovaszLoss("multiclass", ignore_index=IGNORE_INDEX),
}
