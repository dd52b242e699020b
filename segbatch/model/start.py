"""Where a training starts: a network on a backbone's weights, or one that goes on from a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from segbatch.classes import Classes
from segbatch.errors import ModelError
from segbatch.jobtrain import Network as Keys
from segbatch.jobtrain import Start
from segbatch.model import bundle, weights, zoo
from segbatch.model.bundle import ModelConfig
from segbatch.model.zoo import Network

# Last layers of classification networks, which a backbone has not.
CLASSIFIERS = ("fc.", "classifier.", "head.", "last_linear.")


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
    """Load classification weights into the backbone; their last layers are left out.

    Raises :class:`~segbatch.errors.ModelError` for a file that is not of this backbone.
    """
    trunk = network.get_submodule(network.trunk_key)
    expected = trunk.state_dict()
    given = weights.decode_state(weights.read_file(uri), uri)
    state = {key: value for key, value in given.items() if not key.startswith(CLASSIFIERS)}
    prefix = "model." if all(key.startswith("model.") for key in expected) else ""  # timm's
    state = {key if key in expected else prefix + key: value for key, value in state.items()}
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = expected.keys() - state.keys() - counters
    unlike = [k for k in state if k in expected and state[k].shape != expected[k].shape]
    if missing or unlike:
        what = f"lack {min(missing)}" if missing else f"have another shape at {unlike[0]}"
        raise ModelError(
            f"{uri}: not weights of this backbone: they {what}; set model.backbone to the network"
            " that they are of"
        )
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise ModelError(f"{uri}: not weights of this backbone: it has no {unknown[0]}")
    trunk.load_state_dict(state, strict=False)


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
