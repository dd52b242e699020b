"""The DeepLabV3 and DeepLabV3+ of MMSegmentation, under its key names and without its packages.

Source: github.com/open-mmlab/mmsegmentation 1.2.2, ``mmseg/models``; the backbones are a ResNet,
one whose stem is three convolutions (ResNetV1c), and MobileNetV2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.resnet import Bottleneck

from segbatch.errors import ModelError
from segbatch.model.networks.network import Maker, Network, Spec

RESNETS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}  # blocks of each stage
DEEP_STEM = "_v1c"
BACKBONES = (*RESNETS, *(f"{name}{DEEP_STEM}" for name in RESNETS), "mobilenet_v2")

# By output stride: strides and dilations of a ResNet's stages, of MobileNetV2's, and of the ASPP.
RESNET_STAGES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
MOBILENET_STAGES = {
    8: ((1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)),
    16: ((1, 2, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2)),
}
ASPP_DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}
# Expansion, channels and blocks of each stage of MobileNetV2.
MOBILENET_V2 = (
    (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1),
)  # fmt: skip
AUXILIARY_CHANNELS = 256
NORM_EPS = 1e-5

OPTIONS = {"align_corners", "channels", "c1_channels", "aspp_dilations", "multi_grid", "norm_eps"}


class ConvModule(nn.Sequential):
    """A convolution, its batch norm and its activation, under their names in mmcv."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        padding = dilation * (kernel // 2)
        layers: dict[str, nn.Module] = {
            "conv": nn.Conv2d(num_in, num_out, kernel, stride, padding, dilation, groups, False),
            "bn": nn.BatchNorm2d(num_out),
        }
        if activation is not None:
            layers["activate"] = activation()
        super().__init__(OrderedDict(layers))


class SeparableConvModule(nn.Sequential):
    """mmcv's ``DepthwiseSeparableConvModule`` with a 3×3 kernel."""

    def __init__(self, num_in: int, num_out: int, *, dilation: int = 1) -> None:
        layers = {
            "depthwise_conv": ConvModule(num_in, num_in, 3, dilation=dilation, groups=num_in),
            "pointwise_conv": ConvModule(num_in, num_out, 1),
        }
        super().__init__(OrderedDict(layers))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, num_in: int, num_out: int, stride: int, dilation: int, expand: int) -> None:
        super().__init__()
        hidden = num_in * expand
        expansion = [] if expand == 1 else [ConvModule(num_in, hidden, 1, activation=nn.ReLU6)]
        self.conv = nn.Sequential(
            *expansion,
            ConvModule(
                hidden,
                hidden,
                3,
                stride=stride,
                dilation=dilation,
                groups=hidden,
                activation=nn.ReLU6,
            ),
            ConvModule(hidden, num_out, 1, activation=None),
        )
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(features)
        return features + result if self.is_residual else result


class Backbone(nn.Sequential):
    """Stages one after the other; gives the features of those that the heads take."""

    channels: tuple[int, int, int]
    """Numbers of channels: of the low-level features, the auxiliary head's, and the last ones."""
    taken: tuple[str, str, str]
    """The names of the stages that these features come from."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = {}
        for name, stage in self.named_children():
            images = stage(images)
            found[name] = images
        low, middle, high = (found[name] for name in self.taken)
        return low, middle, high


class ResNet(Backbone):
    """A ResNet of bottlenecks whose last stages are dilated; a dilation grows after one block."""

    channels = (256, 1024, 2048)
    taken = ("layer1", "layer3", "layer4")

    def __init__(
        self, backbone: str, output_stride: int, multi_grid: Sequence[int] | None = None
    ) -> None:
        layers: dict[str, nn.Module] = {}
        if backbone.endswith(DEEP_STEM):
            layers["stem"] = nn.Sequential(
                *(layer for widths in ((3, 32), (32, 32), (32, 64)) for layer in _plain(*widths))
            )
            layers["stem"][0].stride = (2, 2)  # type: ignore[index]
        else:
            layers["conv1"] = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            layers["bn1"] = nn.BatchNorm2d(64)
            layers["relu"] = nn.ReLU()
        layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        num_in = 64
        strides, dilations = RESNET_STAGES[output_stride]
        counts = RESNETS[backbone.removesuffix(DEEP_STEM)]
        for index, (count, stride, dilation) in enumerate(
            zip(counts, strides, dilations, strict=True)
        ):
            width = 64 * 2**index
            grid = [max(1, dilation // 2), *[dilation] * (count - 1)]
            if index == len(counts) - 1 and multi_grid:
                grid = list(multi_grid)
            blocks = []
            for position in range(count):
                blocks.append(
                    _bottleneck(num_in, width, stride if position == 0 else 1, grid[position])
                )
                num_in = width * Bottleneck.expansion
            layers[f"layer{index + 1}"] = nn.Sequential(*blocks)
        super().__init__(OrderedDict(layers))


class MobileNetV2(Backbone):
    """MobileNetV2 whose stages are dilated in their first block only, as MMSegmentation has it."""

    channels = (24, 96, 320)
    taken = ("layer2", "layer5", "layer7")

    def __init__(self, output_stride: int) -> None:
        layers: dict[str, nn.Module] = {
            "conv1": ConvModule(3, 32, 3, stride=2, activation=nn.ReLU6)
        }
        num_in = 32
        stages = zip(MOBILENET_V2, *MOBILENET_STAGES[output_stride], strict=True)
        for index, ((expand, num_out, count), stride, dilation) in enumerate(stages):
            blocks = [InvertedResidual(num_in, num_out, stride, dilation, expand)]
            blocks += [InvertedResidual(num_out, num_out, 1, 1, expand) for _ in range(1, count)]
            layers[f"layer{index + 1}"] = nn.Sequential(*blocks)
            num_in = num_out
        super().__init__(OrderedDict(layers))


class Head(nn.Module):
    """``ASPPHead`` of DeepLabV3, or with ``low`` channels ``DepthwiseSeparableASPPHead`` of V3+."""

    def __init__(
        self,
        num_in: int,
        num_classes: int,
        channels: int,
        dilations: Sequence[int],
        *,
        low: tuple[int, int] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(num_in, channels, 1))
        self.aspp_modules = nn.ModuleList(
            ConvModule(num_in, channels, 1)
            if dilation == 1
            else SeparableConvModule(num_in, channels, dilation=dilation)
            if low
            else ConvModule(num_in, channels, 3, dilation=dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvModule((len(dilations) + 1) * channels, channels, 3)
        self.is_plus = low is not None
        if low is not None:
            low_in, low_out = low
            self.c1_bottleneck = ConvModule(low_in, low_out, 1)
            self.sep_bottleneck = nn.Sequential(
                SeparableConvModule(channels + low_out, channels),
                SeparableConvModule(channels, channels),
            )
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        pooled = self._resized(self.image_pool(high), high)
        parts = [pooled, *(module(high) for module in self.aspp_modules)]
        features = self.bottleneck(torch.cat(parts, dim=1))
        if self.is_plus:
            detail = self.c1_bottleneck(low)
            features = torch.cat([self._resized(features, detail), detail], dim=1)
            features = self.sep_bottleneck(features)
        logits: Tensor = self.conv_seg(self.dropout(features))
        return logits

    def _resized(self, features: Tensor, like: Tensor) -> Tensor:
        return interpolate(
            features, size=like.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )


class AuxiliaryHead(nn.Module):
    """``FCNHead`` with one convolution."""

    def __init__(self, num_in: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(num_in, AUXILIARY_CHANNELS, 3))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(AUXILIARY_CHANNELS, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.dropout(self.convs(features)))
        return logits


class MMSegDeepLab(Network):
    """A DeepLab of MMSegmentation."""

    trunk_key = "backbone"
    head_key = "decode_head.conv_seg"
    auxiliary_key = "auxiliary_head"

    def __init__(self, spec: Spec, output_stride: int) -> None:
        super().__init__()
        options = spec.options
        self.output_stride = output_stride
        self.align_corners = options.get("align_corners", False)
        self.backbone: Backbone = (
            MobileNetV2(output_stride)
            if spec.backbone == "mobilenet_v2"
            else ResNet(spec.backbone, output_stride, options.get("multi_grid"))
        )
        low, middle, high = self.backbone.channels
        is_plus = spec.arch == "deeplabv3plus"
        self.decode_head = Head(
            high,
            spec.num_classes,
            options.get("channels", 512),
            options.get("aspp_dilations", ASPP_DILATIONS[output_stride]),
            low=(low, options.get("c1_channels", 48)) if is_plus else None,
            align_corners=self.align_corners,
        )
        self.auxiliary_head = AuxiliaryHead(middle, spec.num_classes) if spec.auxiliary else None
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = options.get("norm_eps", NORM_EPS)

    def coarse(self, images: Tensor) -> Tensor:
        return self.heads(images)[0]

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        low, middle, high = self.backbone.features(images)
        auxiliary = self.auxiliary_head
        return self.decode_head(low, high), (
            auxiliary(middle) if auxiliary is not None and self.training else None
        )


def build(spec: Spec) -> Network:
    """A DeepLabV3 or DeepLabV3+ on one of :data:`BACKBONES`, at output stride 8 or 16."""
    if spec.backbone not in BACKBONES:
        raise ModelError(
            f"the DeepLabs of MMSegmentation that segbatch has are on {', '.join(BACKBONES)}, not"
            f" on {spec.backbone}"
        )
    stride = 8 if spec.output_stride is None else spec.output_stride
    if stride not in RESNET_STAGES:
        raise ModelError(f"{spec.arch} has output_stride 8 or 16, not {stride}")
    if unknown := spec.options.keys() - OPTIONS:
        raise ModelError(f"{', '.join(sorted(unknown))}: unknown options of MMSegmentation")
    return MMSegDeepLab(spec, stride)


ARCHITECTURES: dict[str, Maker] = {"deeplabv3": build, "deeplabv3plus": build}


def _plain(num_in: int, num_out: int) -> list[nn.Module]:
    return [nn.Conv2d(num_in, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()]


def _bottleneck(num_in: int, width: int, stride: int, dilation: int) -> Bottleneck:
    num_out = width * Bottleneck.expansion
    downsample = None
    if stride != 1 or num_in != num_out:
        downsample = nn.Sequential(
            nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out)
        )
    return Bottleneck(num_in, width, stride, downsample, dilation=dilation)
