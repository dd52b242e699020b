"""The zoo, models named ``zoo:NAME``: those that come with segbatch, and torchvision's.

``zoo:facades`` is a bundle inside the package, and needs no network. The others are weights that
torchvision publishes for its networks, downloaded when they are first used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import torchvision.models as tv

from segbatch.masks.classes import PRESETS, Classes
from segbatch.model import networks
from segbatch.model.networks import Network
from segbatch.model.networks.torchvision import STRIDES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ZOO_PREFIX = "zoo:"


@dataclass(frozen=True)
class ZooModel:
    """Weights that torchvision publishes for one of its networks."""

    name: str
    backbone: str
    classes: Classes
    arch = "deeplabv3"

    @property
    def output_stride(self) -> int:
        return STRIDES[self.backbone]

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
        network = networks.build(self.arch, self.backbone, len(self.classes))
        try:
            state = self._weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
            remedy = (
                f"download {self.url} on a machine with a network and copy it into"
                f" {torch.hub.get_dir()}/checkpoints, or name a model bundle"
            )
            what = f"the weights of {ZOO_PREFIX}{self.name}"
            raise networks.no_download(what, error, remedy) from error
        network.load_state_dict(network.without_auxiliary(state))
        return network


ZOO: dict[str, ZooModel] = {
    f"deeplabv3_{backbone}": ZooModel(f"deeplabv3_{backbone}", backbone, PRESETS["voc"])
    for backbone in STRIDES
}


# Bundles that come with segbatch, as folders of this package.
SHIPPED = ("facades",)


def shipped_bundle(uri: str) -> str | None:
    """The folder of the bundle that ``zoo:NAME`` is, if it comes with segbatch."""
    name = uri.removeprefix(ZOO_PREFIX)
    if not uri.startswith(ZOO_PREFIX) or name not in SHIPPED:
        return None
    return str(files(__package__) / name)


def zoo_model(uri: str) -> ZooModel:
    """The model for ``zoo:NAME``; raises ``ModelError`` for an unknown name."""
    name = uri.removeprefix(ZOO_PREFIX)
    if name not in ZOO:
        raise networks.unknown_name("model of the zoo", name, [*SHIPPED, *ZOO])
    return ZOO[name]
