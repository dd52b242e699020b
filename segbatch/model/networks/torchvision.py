"""Networks of torchvision."""

from __future__ import annotations

from typing import cast

import torchvision.models as tv
from torch import Tensor, nn

from segbatch.errors import ModelError
from segbatch.model.networks.network import Network, Spec

# The backbones and their output strides; torchvision's weights allow no other stride.
STRIDES = {"resnet50": 8, "resnet101": 8, "mobilenet_v3_large": 16}


class DeepLabV3(Network):
    """DeepLabV3 of torchvision; its auxiliary head is optional, and used in training only."""

    trunk_key = "backbone"
    head_key = "classifier.4"
    auxiliary_key = "aux_classifier"
    align_corners = False

    def __init__(self, network: nn.Module, output_stride: int) -> None:
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.classifier = network.get_submodule("classifier")
        self.aux_classifier = cast(nn.Module | None, network.aux_classifier)
        self.output_stride = output_stride

    def coarse(self, images: Tensor) -> Tensor:
        return self.heads(images)[0]

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.backbone(images)
        auxiliary = self.aux_classifier
        return self.classifier(features["out"]), (
            auxiliary(features["aux"]) if auxiliary is not None and self.training else None
        )


def deeplabv3(spec: Spec) -> Network:
    """DeepLabV3 on one of the backbones of :data:`STRIDES`."""
    if spec.backbone not in STRIDES:
        raise ModelError(
            f"the deeplabv3 of torchvision has {', '.join(STRIDES)}, not {spec.backbone}"
        )
    stride = STRIDES[spec.backbone]
    if spec.output_stride not in (None, stride):
        raise ModelError(
            f"deeplabv3 with {spec.backbone} has output_stride {stride}, not {spec.output_stride}:"
            " leave output_stride out, or use arch deeplabv3plus"
        )
    network = tv.get_model(
        f"deeplabv3_{spec.backbone}",
        weights=None,
        weights_backbone="DEFAULT" if spec.pretrained else None,
        num_classes=spec.num_classes,
        aux_loss=spec.auxiliary,
    )
    return DeepLabV3(network, stride)
