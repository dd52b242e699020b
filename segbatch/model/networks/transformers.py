"""The DeepLabV3+ of Hugging Face transformers: MobileNetV2 as TensorFlow trained it.

Its other networks need no code of transformers: a SegFormer's weights fit the one of
segmentation_models_pytorch (:mod:`segbatch.model.checkpoints.transformers`).
"""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from segbatch.errors import ModelError
from segbatch.model.networks.network import Network, Spec

# Keys of a MobileNetV2Config that decide what is computed; the others are about transformers.
OPTIONS = (
    "depth_multiplier", "depth_divisible_by", "min_depth", "expand_ratio", "output_stride",
    "first_layer_is_expansion", "finegrained_output", "hidden_act", "tf_padding",
    "classifier_dropout_prob", "layer_norm_eps",
)  # fmt: skip


class MobileNetV2DeepLab(Network):
    """``MobileNetV2ForSemanticSegmentation``, whose convolutions pad as TensorFlow's SAME does."""

    trunk_key = "mobilenet_v2"
    head_key = "segmentation_head.classifier.convolution"
    align_corners = False

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        transformers: Any = import_module("transformers")
        config = transformers.MobileNetV2Config(**spec.options, num_labels=spec.num_classes)
        network = transformers.MobileNetV2ForSemanticSegmentation(config)
        self.mobilenet_v2 = network.mobilenet_v2
        self.segmentation_head = network.segmentation_head
        self.output_stride = config.output_stride

    def coarse(self, images: Tensor) -> Tensor:
        states = self.mobilenet_v2(images, output_hidden_states=True).hidden_states
        logits: Tensor = self.segmentation_head(states[-1])
        return logits

    def exportable(self) -> Network:
        network = super().exportable()
        for layer in network.modules():
            if type(layer).__name__ == "MobileNetV2ConvLayer":
                _pad_statically(layer)
        return network


def _pad_statically(layer: Any) -> None:
    """Give a layer the padding that SAME gives to sides that its stride divides."""
    if not layer.config.tf_padding:
        return
    convolution = layer.convolution
    shapes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    rows, columns = ((max(kernel - stride, 0), dilation) for kernel, stride, dilation in shapes)
    sides = [
        part * dilation
        for total, dilation in (columns, rows)
        for part in (total // 2, total - total // 2)
    ]
    left, right, top, bottom = sides
    layer.convolution = nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), convolution)
    layer.config = copy.copy(layer.config)
    layer.config.tf_padding = False


def deeplabv3plus(spec: Spec) -> Network:
    """:class:`MobileNetV2DeepLab`; ``spec.options`` are :data:`OPTIONS` of its configuration.

    Raises :class:`~segbatch.errors.ModelError` if transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ModelError(
            "this network is one of transformers: pip install 'segbatch[transformers]'"
        )
    if spec.backbone != "mobilenet_v2":
        raise ModelError(f"deeplabv3plus of transformers has mobilenet_v2, not {spec.backbone}")
    if unknown := spec.options.keys() - set(OPTIONS):
        raise ModelError(f"{', '.join(sorted(unknown))}: unknown options of transformers")
    return MobileNetV2DeepLab(spec)
