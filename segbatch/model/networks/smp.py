"""Networks of segmentation_models_pytorch: seven architectures over any of its backbones."""

from __future__ import annotations

import inspect
from typing import Any, cast

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segbatch.errors import ModelError
from segbatch.model.networks.network import Maker, Network, Spec
from segbatch.storage import one_line

CLASSES: dict[str, Any] = {
    "deeplabv3plus": smp.DeepLabV3Plus,
    "deeplabv3": smp.DeepLabV3,
    "segformer": smp.Segformer,
    "upernet": smp.UPerNet,
    "fpn": smp.FPN,
    "unet": smp.Unet,
    "pspnet": smp.PSPNet,
}
DILATED = {"deeplabv3plus": 16, "deeplabv3": 8}  # their default output strides; 8 and 16 are known
UNIVERSAL = "tu-"  # any model of timm

DEPRECATED = ("timm-",)  # smp deprecates them
CANNOT_DILATE = ("densenet", "inception", "vgg", "xception")

# Parameters of smp's constructors that a Spec has fields for, or that concern its own use.
_OWN = {
    "self", "encoder_name", "encoder_weights", "encoder_output_stride", "in_channels", "classes",
    "activation", "upsampling", "aux_params", "kwargs",
}  # fmt: skip


class SmpNetwork(Network):
    """A network of segmentation_models_pytorch: encoder, decoder, and a head that upsamples."""

    trunk_key = "encoder"
    head_key = "segmentation_head.0"

    def __init__(self, network: nn.Module, *, align_corners: bool = True) -> None:
        super().__init__()
        self.encoder = network.get_submodule("encoder")
        self.decoder = network.get_submodule("decoder")
        self.segmentation_head = network.get_submodule("segmentation_head")
        self.output_stride = cast(int, self.encoder.output_stride)
        self.size_multiple = self.output_stride  # else its feature maps do not meet in size
        self.align_corners = align_corners

    def coarse(self, images: Tensor) -> Tensor:
        # The head is a convolution, the upsampling that `forward` does, and an empty activation.
        last_convolution = cast(nn.Sequential, self.segmentation_head)[0]
        logits: Tensor = last_convolution(self.decoder(self.encoder(images)))
        return logits

    def exportable(self) -> Network:
        network = super().exportable()
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, PSPBlock):
                    setattr(module, name, PoolingBlock(child.pool))
        return network


class PoolingBlock(nn.Module):
    """smp's ``PSPBlock`` without what it does in an export, which ONNX has at one size only."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        return interpolate(self.pool(features), size=size, mode="bilinear", align_corners=True)


def options_of(arch: str) -> set[str]:
    """The names of the options of an architecture: those of smp's constructor, and
    ``align_corners``, for weights that were trained with another upsampling than smp's.
    """
    return {"align_corners", *inspect.signature(CLASSES[arch].__init__).parameters} - _OWN


def backbones(arch: str) -> list[str]:
    """The names of smp's backbones for an architecture; also any model of timm, as ``tu-NAME``."""
    excluded = DEPRECATED + (CANNOT_DILATE if arch in DILATED else ())
    return [name for name in smp.encoders.get_encoder_names() if not name.startswith(excluded)]


def is_backbone(name: str) -> bool:
    return name.startswith(UNIVERSAL) or name in smp.encoders.get_encoder_names()


def build(spec: Spec) -> Network:
    """A network of :data:`CLASSES`."""
    arch, backbone, stride = spec.arch, spec.backbone, spec.output_stride
    given: dict[str, Any] = {}
    if arch in DILATED:
        stride = DILATED[arch] if stride is None else stride
        if stride not in (8, 16):
            raise ModelError(f"{arch} has output_stride 8 or 16, not {stride}")
        given = {"encoder_output_stride": stride}
    options = dict(spec.options)
    if unknown := options.keys() - options_of(arch):
        raise ModelError(f"{', '.join(sorted(unknown))}: unknown options of {arch}")
    align_corners = options.pop("align_corners", True)
    weights = (True if backbone.startswith(UNIVERSAL) else "imagenet") if spec.pretrained else None
    try:
        network = CLASSES[arch](
            backbone, encoder_weights=weights, classes=spec.num_classes, **given, **options
        )
    except (
        AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        dilated = f" with output_stride {stride}" if given else ""
        raise ModelError(
            f"{arch} cannot be built on backbone {backbone!r}{dilated}: {one_line(error)}"
        ) from error
    built = SmpNetwork(network, align_corners=align_corners)
    if not given and stride not in (None, built.output_stride):
        raise ModelError(
            f"{arch} with {backbone} has output_stride {built.output_stride}, not {stride}: leave"
            " output_stride out, or use arch deeplabv3plus"
        )
    return built


ARCHITECTURES: dict[str, Maker] = dict.fromkeys(CLASSES, build)
