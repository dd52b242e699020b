"""The zoo: the network architectures, behind one interface, and torchvision's published weights.

A :class:`Network` wraps a model of a library and keeps the names of its parts, so a state_dict of
torchvision or segmentation_models_pytorch fits as it is. Prediction calls :meth:`Network.coarse`,
the logits of the last convolution, at 1/4 to 1/16 of the input's resolution, and upsamples them
strip by strip (:mod:`segbatch.model.logits`). Training calls ``forward``, which upsamples them to
the input's size exactly as the library does.

To add an architecture, write a function that builds it and add a line to ``ARCHITECTURES``.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast
from urllib.error import URLError

import segmentation_models_pytorch as smp
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segbatch.errors import ModelError
from segbatch.masks.classes import PRESETS, Classes
from segbatch.storage import one_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ZOO_PREFIX = "zoo:"

# torchvision's backbones and their output strides; its weights allow no other stride.
TORCHVISION_STRIDES = {"resnet50": 8, "resnet101": 8, "mobilenet_v3_large": 16}

# smp backbones that are not listed: they cannot be dilated, or (timm-) smp deprecates them.
SMP_EXCLUDED = ("densenet", "inception", "timm-", "vgg", "xception")


class Network(nn.Module):
    """A segmentation network: normalised float images NCHW in, logits NCHW out.

    ``trunk_key`` names the submodule that classification weights fit, ``head_key`` the last
    convolution, which has one output channel per class.
    """

    trunk_key: str
    head_key: str
    output_stride: int
    size_multiple: int = 1
    """Height and width of the input must be multiples of this; callers pad."""
    # As the library upsamples the logits of this network to the input's size.
    align_corners: bool

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


class DeepLabV3(Network):
    """DeepLabV3 of torchvision; its auxiliary head is optional, and used in training only."""

    trunk_key = "backbone"
    head_key = "classifier.4"
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


class DeepLabV3Plus(Network):
    """DeepLabV3+ of segmentation_models_pytorch."""

    trunk_key = "encoder"
    head_key = "segmentation_head.0"
    align_corners = True

    def __init__(self, network: nn.Module, output_stride: int) -> None:
        super().__init__()
        self.encoder = network.get_submodule("encoder")
        self.decoder = network.get_submodule("decoder")
        self.segmentation_head = network.get_submodule("segmentation_head")
        self.output_stride = output_stride
        self.size_multiple = output_stride  # else its two feature maps do not meet in size

    def coarse(self, images: Tensor) -> Tensor:
        # The head is a convolution, the upsampling that `forward` does, and an empty activation.
        last_convolution = cast(nn.Sequential, self.segmentation_head)[0]
        logits: Tensor = last_convolution(self.decoder(self.encoder(images)))
        return logits


def _deeplabv3(
    backbone: str, num_classes: int, output_stride: int | None, pretrained: bool, auxiliary: bool
) -> Network:
    if backbone not in TORCHVISION_STRIDES:
        raise _unknown("backbone of deeplabv3", backbone, TORCHVISION_STRIDES)
    stride = TORCHVISION_STRIDES[backbone]
    if output_stride not in (None, stride):
        raise ModelError(
            f"deeplabv3 with {backbone} has output_stride {stride}, not {output_stride}: leave"
            " output_stride out, or use arch deeplabv3plus"
        )
    network = tv.get_model(
        f"deeplabv3_{backbone}",
        weights=None,
        weights_backbone="DEFAULT" if pretrained else None,
        num_classes=num_classes,
        aux_loss=auxiliary,
    )
    return DeepLabV3(network, stride)


def _deeplabv3plus(
    backbone: str, num_classes: int, output_stride: int | None, pretrained: bool, _: bool
) -> Network:
    universal = backbone.startswith("tu-")  # any model of timm
    if not universal and backbone not in smp.encoders.get_encoder_names():
        raise _unknown("backbone of deeplabv3plus", backbone, backbones()["deeplabv3plus"])
    stride = 16 if output_stride is None else output_stride
    if stride not in (8, 16):
        raise ModelError(f"deeplabv3plus has output_stride 8 or 16, not {stride}")
    weights = (True if universal else "imagenet") if pretrained else None
    try:
        network = smp.DeepLabV3Plus(
            backbone,
            encoder_weights=weights,
            encoder_output_stride=stride,
            classes=num_classes,
        )
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"deeplabv3plus cannot be built on backbone {backbone!r} with output_stride {stride}:"
            f" {one_line(error)}"
        ) from error
    return DeepLabV3Plus(network, stride)


ARCHITECTURES: dict[str, Callable[[str, int, int | None, bool, bool], Network]] = {
    "deeplabv3": _deeplabv3,
    "deeplabv3plus": _deeplabv3plus,
}


def build(
    arch: str,
    backbone: str,
    num_classes: int,
    output_stride: int | None = None,
    *,
    pretrained: bool = False,
    auxiliary: bool = False,
) -> Network:
    """A network with random weights, or ImageNet weights of its library in the backbone.

    ``output_stride`` ``None`` is the default of the architecture: 16 for ``deeplabv3plus``, the
    stride of torchvision's backbone for ``deeplabv3``. ``auxiliary`` adds the head for an
    auxiliary loss, where the architecture has one. Raises :class:`~segbatch.errors.ModelError`
    for an unknown architecture or backbone, a stride that it does not support, or weights that
    cannot be downloaded.
    """
    if arch not in ARCHITECTURES:
        raise _unknown("arch", arch, ARCHITECTURES)
    make = ARCHITECTURES[arch]
    if not pretrained:
        return make(backbone, num_classes, output_stride, False, auxiliary)
    try:
        return make(backbone, num_classes, output_stride, True, auxiliary)
    except OSError as error:
        remedy = "set backbone_weights to a local file, or to null"
        raise _no_download(f"the ImageNet weights of {backbone}", error, remedy) from error


def backbones() -> dict[str, list[str]]:
    """The names of the backbones of each architecture; ``deeplabv3plus`` also takes any model of
    timm, as ``tu-NAME``.
    """
    encoders = smp.encoders.get_encoder_names()
    return {
        "deeplabv3": list(TORCHVISION_STRIDES),
        "deeplabv3plus": [name for name in encoders if not name.startswith(SMP_EXCLUDED)],
    }


@dataclass(frozen=True)
class ZooModel:
    """Weights that torchvision publishes for one of its networks."""

    name: str
    backbone: str
    classes: Classes
    arch = "deeplabv3"

    @property
    def output_stride(self) -> int:
        return TORCHVISION_STRIDES[self.backbone]

    @property
    def url(self) -> str:
        """The address of the weights; the file name has the first digits of their SHA-256."""
        return str(self._weights.url)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 that changes with the weights; needs no download."""
        return hashlib.sha256(self.url.encode()).hexdigest()

    @property
    def _weights(self) -> Any:
        return tv.get_model_weights(f"deeplabv3_{self.backbone}")["COCO_WITH_VOC_LABELS_V1"]

    def load(self) -> Network:
        """The network with its published weights, downloaded once into torch's cache.

        Raises :class:`~segbatch.errors.ModelError` where the download fails.
        """
        network = build(self.arch, self.backbone, len(self.classes))
        try:
            state = self._weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
            remedy = (
                f"download {self.url} on a machine with a network and copy it into"
                f" {torch.hub.get_dir()}/checkpoints, or name a model bundle"
            )
            raise _no_download(f"the weights of {ZOO_PREFIX}{self.name}", error, remedy) from error
        network.load_state_dict(without_auxiliary(state))
        return network


ZOO: dict[str, ZooModel] = {
    f"deeplabv3_{backbone}": ZooModel(f"deeplabv3_{backbone}", backbone, PRESETS["voc"])
    for backbone in TORCHVISION_STRIDES
}


def zoo_model(uri: str) -> ZooModel:
    """The model for ``zoo:NAME``; raises ``ModelError`` for an unknown name."""
    name = uri.removeprefix(ZOO_PREFIX)
    if name not in ZOO:
        raise _unknown("model of the zoo", name, ZOO)
    return ZOO[name]


def without_auxiliary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict without the auxiliary head, which torchvision's files have."""
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


def _unknown(what: str, given: str, known: Iterable[str]) -> ModelError:
    names = list(known)
    close = difflib.get_close_matches(given, names, n=3)
    if close:
        return ModelError(f"{given!r} is no {what}; did you mean {' or '.join(close)}?")
    more = f" and {len(names) - 8} more, see `segbatch model list`" if len(names) > 8 else ""
    return ModelError(f"{given!r} is no {what}; known: {', '.join(names[:8])}{more}")


def _no_download(what: str, error: Exception, remedy: str) -> ModelError:
    reason = error.reason if isinstance(error, URLError) else error
    return ModelError(
        f"{what} could not be downloaded: {one_line(cast(Exception, reason))}; {remedy}"
    )
