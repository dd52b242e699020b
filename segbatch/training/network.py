"""The network that a training starts from: on a backbone's weights, or on those of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from segbatch.config.training import FromBackbone, FromBundle
from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import bundle, networks, weights
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network
from segbatch.model.normalisation import normalisation_of


def build_network(
    keys: FromBackbone | FromBundle, classes: Classes, say: Callable[[str], None]
) -> tuple[Network, ModelConfig]:
    """The network to train, on the CPU and with its auxiliary head, and the config of its bundle.

    It normalises as its model, or as the weights of its backbone, were trained. New weights are
    drawn from torch's random numbers. ``say`` gets a line where the head of a model
    is rebuilt. Raises :class:`~segbatch.errors.ModelError` for a network that cannot be built, or
    weights that do not fit.
    """
    if isinstance(keys, FromBundle):
        return _from_bundle(keys.bundle, classes, say)
    network = networks.build(
        keys.arch,
        keys.backbone,
        len(classes),
        keys.output_stride,
        pretrained=keys.backbone_weights == "imagenet",
        auxiliary=True,
    )
    if keys.backbone_weights not in (None, "imagenet"):
        load_backbone(network, keys.backbone_weights)
    config = ModelConfig(keys.arch, keys.backbone, network.output_stride, classes)
    if keys.backbone_weights is not None:
        mean, std = normalisation_of(keys.backbone)
        config = replace(config, mean=mean, std=std)
    return network, config


def load_backbone(network: Network, uri: str) -> None:
    """Load classification weights into the backbone; the classifier's own layers are left out.

    Raises :class:`~segbatch.errors.ModelError` for a file that is not of this backbone.
    """
    backbone = network.get_submodule(network.trunk_key)
    expected = backbone.state_dict()
    own_keys = {_classifier_key(key): key for key in expected}
    parts = {key.partition(".")[0] for key in own_keys}
    given = {
        own_keys.get(name, key): value
        for key, value in weights.decode_state(weights.read_file(uri), uri).items()
        if (name := _classifier_key(key)).partition(".")[0] in parts
    }
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    unlike = [k for k, v in given.items() if k in expected and v.shape != expected[k].shape]
    unknown = [key for key in given if key not in expected]
    faults = [
        *(f"lack {key}" for key in missing),
        *(f"have another shape at {key}" for key in unlike),
        *(f"have {key}, which it does not" for key in unknown),
    ]
    if faults:
        raise ModelError(
            f"{uri}: not weights of this backbone: they {faults[0]}; set model.backbone to the"
            " network that they belong to"
        )
    backbone.load_state_dict(given, strict=False)


def _classifier_key(key: str) -> str:
    """Translate a key of a backbone to the key in its classification network.

    torchvision cuts out what is under ``features``; timm puts everything under ``model``, and calls
    ``stages.0`` ``stages_0``.
    """
    key = key.removeprefix("model.").removeprefix("features.")
    return re.sub(r"_(\d+\.)", r".\1", key)


def _from_bundle(
    uri: str, classes: Classes, say: Callable[[str], None]
) -> tuple[Network, ModelConfig]:
    old, config = bundle.load_bundle(uri)
    network = replace(config, classes=classes).build(auxiliary=True)
    state = old.state_dict()
    if config.classes.names != classes.names:
        new_state = network.state_dict()
        for key in [key for key in state if key.startswith(f"{old.head_key}.")]:
            state[key] = _rows_by_name(state[key], new_state[key], config.classes, classes)
        kept = [name for name in classes.names if name in config.classes.names]
        new = [name for name in classes.names if name not in kept]
        names = [", ".join(part) or "none" for part in (kept, new)]
        say(f"{uri}: head rebuilt; classes kept: {names[0]}; new: {names[1]}")
    own = network.without_auxiliary(network.state_dict())
    auxiliary = {key: value for key, value in network.state_dict().items() if key not in own}
    network.load_state_dict(state | auxiliary)
    return network, replace(config, classes=classes, metrics={}, provenance={"started_from": uri})


def _rows_by_name(
    old_rows: Tensor, new_rows: Tensor, old_classes: Classes, new_classes: Classes
) -> Tensor:
    """``new_rows``, with the row of ``old_rows`` for each class that both have by name."""
    rows = new_rows.clone()
    old_ids = {seg_class.name: seg_class.id for seg_class in old_classes}
    with torch.no_grad():
        for seg_class in new_classes:
            if seg_class.name in old_ids:
                rows[seg_class.id] = old_rows[old_ids[seg_class.name]]
    return rows
