"""Where a training starts: a network on a backbone's weights, or one that goes on from a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from segbatch.config.training import Network as Keys
from segbatch.config.training import Start
from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import bundle, weights, zoo
from segbatch.model.config import ModelConfig
from segbatch.model.zoo import Network


def start(
    keys: Keys | Start, classes: Classes, say: Callable[[str], None]
) -> tuple[Network, ModelConfig]:
    """The network to train, on the CPU and with its auxiliary head, and what its bundle will say.

    New weights are drawn from torch's random numbers. ``say`` is told what becomes of a head.
    Raises :class:`~segbatch.errors.ModelError` for a network that cannot be built or weights that
    do not fit.
    """
    if isinstance(keys, Start):
        return _from_bundle(keys.bundle, classes, say)
    network = zoo.build(
        keys.arch,
        keys.backbone,
        len(classes),
        keys.output_stride,
        pretrained=keys.backbone_weights == "imagenet",
        auxiliary=True,
    )
    if keys.backbone_weights not in (None, "imagenet"):
        fit_trunk(network, keys.backbone_weights)
    config = ModelConfig(keys.arch, keys.backbone, network.output_stride, classes)
    return network, config


def fit_trunk(network: Network, uri: str) -> None:
    """Load classification weights into the backbone; the layers that follow on it are left out.

    Raises :class:`~segbatch.errors.ModelError` for a file that is not of this backbone.
    """
    trunk = network.get_submodule(network.trunk_key)
    expected = trunk.state_dict()
    own = {_as_classified(key): key for key in expected}
    parts = {key.partition(".")[0] for key in own}
    given = {
        own.get(name, key): value
        for key, value in weights.decode_state(weights.read_file(uri), uri).items()
        if (name := _as_classified(key)).partition(".")[0] in parts
    }
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    unlike = [k for k, v in given.items() if k in expected and v.shape != expected[k].shape]
    unknown = [key for key in given if key not in expected]
    troubles = [
        *(f"lack {key}" for key in missing),
        *(f"have another shape at {key}" for key in unlike),
        *(f"have {key}, which it does not" for key in unknown),
    ]
    if troubles:
        raise ModelError(
            f"{uri}: not weights of this backbone: they {troubles[0]}; set model.backbone to the"
            " network that they are of"
        )
    trunk.load_state_dict(given, strict=False)


def _as_classified(key: str) -> str:
    """A backbone's key, as it is called in the classification network that it was cut out of.

    torchvision cuts out what stands under ``features``; timm puts all under ``model``, and calls
    ``stages.0`` ``stages_0``.
    """
    key = key.removeprefix("model.").removeprefix("features.")
    return re.sub(r"_(\d+\.)", r".\1", key)


def _from_bundle(
    uri: str, classes: Classes, say: Callable[[str], None]
) -> tuple[Network, ModelConfig]:
    old, config = bundle.load_bundle(uri)
    network = zoo.build(
        config.arch, config.backbone, len(classes), config.output_stride, auxiliary=True
    )
    state = old.state_dict()
    if config.classes.names != classes.names:
        head = [key for key in state if key.startswith(f"{old.head_key}.")]
        fresh = network.state_dict()
        kept = [name for name in classes.names if name in config.classes.names]
        for key in head:
            state[key] = _moved(state[key], fresh[key], config.classes, classes)
        new = [name for name in classes.names if name not in kept]
        names = [", ".join(part) or "none" for part in (kept, new)]
        say(f"{uri}: head rebuilt; classes kept: {names[0]}; new: {names[1]}")
    auxiliary = {k: v for k, v in network.state_dict().items() if k.startswith("aux_classifier.")}
    network.load_state_dict(state | auxiliary)
    return network, replace(config, classes=classes, metrics={}, provenance={"started_from": uri})


def _moved(rows: Tensor, fresh: Tensor, old: Classes, new: Classes) -> Tensor:
    """``fresh`` with the rows of ``rows`` whose classes have the same name."""
    moved = fresh.clone()
    ids = {seg_class.name: seg_class.id for seg_class in old}
    with torch.no_grad():
        for seg_class in new:
            if seg_class.name in ids:
                moved[seg_class.id] = rows[ids[seg_class.name]]
    return moved
