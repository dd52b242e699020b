"""The DeepLabV3 and DeepLabV3+ of VainF/DeepLabV3Plus-Pytorch, under its key names.

They differ from torchvision's in the low-level features of V3+, the dilations of the ASPP at
stride 16, and a MobileNetV2 that pads before it expands.
Source: github.com/VainF/DeepLabV3Plus-Pytorch, ``network/``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.models.segmentation.deeplabv3 import ASPP

from segbatch.errors import ModelError
from segbatch.model.networks.network import Maker, Network, Spec

BACKBONES = ("resnet50", "resnet101", "mobilenet_v2")
ATROUS_RATES = {8: [12, 24, 36], 16: [6, 12, 18]}  # by output stride
CHANNELS = {"resnet50": (256, 2048), "resnet101": (256, 2048), "mobilenet_v2": (24, 320)}


class PaddedResidual(nn.Module):
    """A block of MobileNetV2 that pads its input instead of the input of its 3×3 convolution.

    So the border is what expansion makes of zeros, and not zero.
    """

    def __init__(self, num_in: int, num_out: int, stride: int, dilation: int, expand: int) -> None:
        super().__init__()
        hidden = num_in * expand
        expansion = [] if expand == 1 else [_unpadded(num_in, hidden, 1)]
        self.conv = nn.Sequential(
            *expansion,
            _unpadded(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden),
            nn.Conv2d(hidden, num_out, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.dilation = dilation
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(pad(features, [self.dilation] * 4))
        return features + result if self.is_residual else result


class LowLevelDecoder(nn.Module):
    """The decoder and head of DeepLabV3+."""

    def __init__(self, channels: tuple[int, int], num_classes: int, rates: list[int]) -> None:
        super().__init__()
        low, high = channels
        self.project = nn.Sequential(
            nn.Conv2d(low, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU()
        )
        self.aspp = _aspp(high, rates)
        self.classifier = nn.Sequential(*_convolution(304), nn.Conv2d(256, num_classes, 1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        projected = self.project(low)
        context = interpolate(
            self.aspp(high), size=projected.shape[-2:], mode="bilinear", align_corners=False
        )
        logits: Tensor = self.classifier(torch.cat([projected, context], dim=1))
        return logits


class ContextHead(nn.Module):
    """The head of DeepLabV3."""

    def __init__(self, channels: tuple[int, int], num_classes: int, rates: list[int]) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            _aspp(channels[1], rates), *_convolution(256), nn.Conv2d(256, num_classes, 1)
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        logits: Tensor = self.classifier(high)
        return logits


class VainfDeepLab(Network):
    """A DeepLab of VainF's repository."""

    trunk_key = "backbone"
    align_corners = False

    def __init__(self, spec: Spec, output_stride: int) -> None:
        super().__init__()
        is_plus = spec.arch == "deeplabv3plus"
        is_mobile = spec.backbone == "mobilenet_v2"
        self.output_stride = output_stride
        self.backbone = (_mobilenet if is_mobile else _resnet)(spec.backbone, output_stride)
        self.classifier = (LowLevelDecoder if is_plus else ContextHead)(
            CHANNELS[spec.backbone], spec.num_classes, ATROUS_RATES[output_stride]
        )
        self.head_key = f"classifier.classifier.{3 if is_plus else 4}"
        self._low_level = "low_level_features" if is_mobile else "layer1"

    def coarse(self, images: Tensor) -> Tensor:
        low = high = images
        for name, module in self.backbone.named_children():
            high = module(high)
            if name == self._low_level:
                low = high
        logits: Tensor = self.classifier(low, high)
        return logits


def build(spec: Spec) -> Network:
    """A DeepLabV3 or DeepLabV3+ on one of :data:`BACKBONES`, at output stride 16 or 8."""
    if spec.backbone not in BACKBONES:
        raise ModelError(
            f"the DeepLabs of VainF that segbatch has are on {', '.join(BACKBONES)}, not on"
            f" {spec.backbone}"
        )
    stride = 16 if spec.output_stride is None else spec.output_stride
    if stride not in ATROUS_RATES:
        raise ModelError(f"{spec.arch} has output_stride 8 or 16, not {stride}")
    return VainfDeepLab(spec, stride)


ARCHITECTURES: dict[str, Maker] = {"deeplabv3": build, "deeplabv3plus": build}


def _resnet(backbone: str, output_stride: int) -> nn.Module:
    dilated = [False, output_stride == 8, True]
    network = tv.get_model(backbone, weights=None, replace_stride_with_dilation=dilated)
    layers = [(name, module) for name, module in network.named_children()][:-2]  # not pool and fc
    return nn.Sequential(OrderedDict(layers))


def _mobilenet(_: str, output_stride: int) -> nn.Module:
    blocks: list[nn.Module] = [_unpadded(3, 32, 3, stride=2)]
    num_in, current, dilation = 32, 2, 1
    for expand, num_out, repeats, stride in MOBILENET_V2:
        first_dilation, first_stride = dilation, stride
        if current == output_stride:
            first_stride, dilation = 1, dilation * stride
        else:
            current *= stride
        for index in range(repeats):
            step = (first_stride, first_dilation) if index == 0 else (1, dilation)
            blocks.append(PaddedResidual(num_in, num_out, *step, expand))
            num_in = num_out
    low, high = ({str(i): blocks[i] for i in part} for part in (range(4), range(4, len(blocks))))
    return nn.Sequential(
        OrderedDict(
            low_level_features=nn.Sequential(OrderedDict(low)),
            high_level_features=nn.Sequential(OrderedDict(high)),
        )
    )


# Expansion, channels, blocks and stride of each stage. Source: Sandler et al., "MobileNetV2:
# Inverted Residuals and Linear Bottlenecks", 2018, table 2.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def _unpadded(
    num_in: int, num_out: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride, 0, dilation, groups, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU6(),
    )


def _convolution(num_in: int) -> list[nn.Module]:
    return [nn.Conv2d(num_in, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]


def _aspp(num_in: int, rates: list[int]) -> nn.Module:
    """torchvision's module, which has the same keys; VainF drops out less."""
    aspp: nn.Module = ASPP(num_in, rates)
    aspp.get_submodule("project").register_module("3", nn.Dropout(0.1))
    return aspp
