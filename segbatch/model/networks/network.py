"""The interface of all networks, and what is needed to build one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Spec:
    """What a network is built from.

    ``output_stride`` ``None`` is the default of the architecture. ``options`` are those of the
    library, where a network differs from the library's defaults. ``pretrained`` asks for the
    library's ImageNet weights in the backbone, ``auxiliary`` for the head of an auxiliary loss,
    where the architecture has one.
    """

    arch: str
    backbone: str
    num_classes: int
    output_stride: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    auxiliary: bool = False


Maker = Callable[[Spec], "Network"]


class Network(nn.Module):
    """A segmentation network: normalised float images NCHW in, logits NCHW out.

    ``trunk_key`` names the submodule that classification weights fit, ``head_key`` the last
    convolution, which has one output channel per class, ``auxiliary_key`` the head that only
    training uses.
    """

    trunk_key: str
    head_key: str
    auxiliary_key: str | None = None
    output_stride: int
    size_multiple: int = 1
    """Height and width of the input must be multiples of this; callers pad."""
    align_corners: bool
    """How the logits are upsampled to the input's size, as the network's library does it."""

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at the resolution of the last convolution."""
        raise NotImplementedError

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The coarse logits, and those of the auxiliary head if the network has one in training."""
        return self.coarse(images), None

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the resolution of ``images``."""
        return interpolate(
            self.coarse(images),
            size=images.shape[-2:],
            mode="bilinear",
            align_corners=self.align_corners,
        )

    def exportable(self) -> Network:
        """A copy that computes the same with operations that ONNX has at any size of image.

        The size must be a multiple of 64, as prediction pads it.
        """
        network = copy.deepcopy(self)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                    size: Any = child.output_size
                    setattr(module, name, AveragePool(size))
        return network

    def without_auxiliary(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict without the auxiliary head, which bundles do not have."""
        if self.auxiliary_key is None:
            return state
        prefix = f"{self.auxiliary_key}."
        return {key: value for key, value in state.items() if not key.startswith(prefix)}


class AveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products of matrices, which ONNX has.

    Cell ``i`` of ``n`` over a side of ``length`` is the mean of the pixels from
    ``floor(i * length / n)`` to ``ceil((i + 1) * length / n) - 1``, as in torch.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.rows, self.columns = (
            (output_size, output_size) if isinstance(output_size, int) else output_size
        )

    def forward(self, images: Tensor) -> Tensor:
        over_rows = _means(images.shape[2], self.rows, images)
        over_columns = _means(images.shape[3], self.columns, images)
        return over_rows @ images @ over_columns.T


def _means(length: int, number: int, like: Tensor) -> Tensor:
    """The matrix ``(number, length)`` that takes the mean of each cell."""
    cell = torch.arange(number, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)[None]
    first = cell * length // number
    last = ((cell + 1) * length + number - 1) // number
    inside = ((pixel >= first) & (pixel < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
