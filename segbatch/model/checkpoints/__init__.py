"""``segbatch model import``: makes a bundle of what people have.

Weights of a network are recognised by the names of their keys, under any prefix, one library a
file; graphs, which can only predict, by their files (:mod:`segbatch.model.checkpoints.graphs`).
Nothing is unpickled and no code of a file is run.

To add a library, write a function ``recognise`` and add a line to ``LIBRARIES``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from segbatch import storage
from segbatch.console import say
from segbatch.errors import InputError, ModelError
from segbatch.masks.classes import Classes
from segbatch.model import networks, weights
from segbatch.model.bundle import CONFIG, save_bundle
from segbatch.model.checkpoints import (
    graphs,
    mmsegmentation,
    smp,
    torchvision,
    transformers,
    vainf,
)
from segbatch.model.checkpoints.checkpoint import (
    WEIGHT_FILES,
    Candidate,
    Checkpoint,
    Inner,
    Known,
    check_names_of_sigmoids,
    exists,
    inner_state,
    read_json,
)
from segbatch.model.config import RGB, ModelConfig
from segbatch.model.networks import Network
from segbatch.model.weights import State, listed
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Known", "import_model"]

# The order matters: the keys of VainF end in those of torchvision.
LIBRARIES: dict[str, Callable[[Checkpoint, Known], Candidate | None]] = {
    "MMSegmentation": mmsegmentation.recognise,
    "Hugging Face transformers": transformers.recognise,
    "segmentation_models_pytorch": smp.recognise,
    "VainF/DeepLabV3Plus-Pytorch": vainf.recognise,
    "torchvision": torchvision.recognise,
}

MEAN_AND_STD = ("mean", "std")

LICENCE = (
    "NVIDIA's own SegFormer weights are for research and evaluation, not for commercial use: see"
    " the licence of the weights that these were trained from"
)


def import_model(source: str, bundle_uri: str, known: Known) -> ModelConfig:
    """Write a bundle from weights or a graph that were made elsewhere, and say what they are.

    ``source`` is a file or a folder, at any URI. Raises :class:`~segbatch.errors.ModelError` for
    what is not recognised, cannot be read safely, or needs more of ``known``.
    """
    if {"arch", "provenance"} <= (read_json(storage.join(source, CONFIG)) or {}).keys():
        raise ModelError(f"{source}: is a bundle already: name it as the model of a job")
    if (known.mean is None) != (known.std is None):
        raise ModelError("--mean and --std belong together: give both, or neither")
    if graphs.is_graph(source):
        _refuse_options(known, ("arch", "backbone", "output_stride"), f"{source}: is a graph")
        return graphs.import_graph(source, bundle_uri, known)
    checkpoint = _open(source)
    _refuse_options(
        known,
        ("input_range", "output"),
        f"{checkpoint.uri}: has weights and is no graph, so --mean and --std say what it takes",
    )
    candidate = _with_own_normalisation(_recognised(checkpoint, known), checkpoint, known)
    classes = _classes(candidate, known, checkpoint.uri)
    network = networks.build(
        candidate.arch,
        candidate.backbone,
        len(classes),
        candidate.output_stride,
        library=candidate.library,
        options=candidate.options,
    )
    state, left_out = _without_extra(candidate, network)
    num_channels = len(state.get(f"{network.head_key}.weight", ()))
    has_sigmoids = num_channels == 1 or (num_channels > 1 and candidate.has_sigmoids)
    if has_sigmoids:
        check_names_of_sigmoids(checkpoint.uri, classes, num_channels)
        state = _with_background(state, network.head_key, candidate.threshold)
    weights.fit(network, state, f"{candidate.arch} with {candidate.backbone}", checkpoint.uri)
    config = _config(candidate, network, classes, known)
    say(f"{checkpoint.uri}: {candidate.what}, {len(classes)} classes")
    for note in candidate.notes:
        say(note)
    if has_sigmoids:
        say(
            f"it has a sigmoid for {', '.join(classes.names[1:])}; where none is above"
            f" {candidate.threshold:g}, pixels are {classes[0].name}"
        )
    if left_out:
        say(f"{checkpoint.uri}: left out, because they are not the network's: {listed(left_out)}")
    if config.backbone.startswith("mit_"):
        say(LICENCE)
    provenance = {
        "imported_from": source,
        "sha256": checkpoint.sha256,
        "recognised_as": candidate.what,
    }
    config = replace(config, provenance=provenance)
    try:
        ModelConfig.from_json(config.to_json())
    except InputError as error:
        raise ModelError(f"{checkpoint.uri}: cannot become a bundle: {error}") from error
    save_bundle(bundle_uri, network, config)
    return config


def _without_extra(candidate: Candidate, network: Network) -> tuple[State, list[str]]:
    """The weights without those of training, and all keys that are left out of the file."""
    own = network.without_auxiliary(candidate.state)
    expected = network.state_dict()
    extra = [key for key in own if key not in expected and weights.is_extra(key)]
    state = {key: value for key, value in own.items() if key not in extra}
    return state, extra + candidate.left_out


def _with_background(state: State, head: str, threshold: float) -> State:
    """The weights of a network with a sigmoid for each channel, with one more class before them.

    Its logit is a constant, that of ``threshold``: it wins where no sigmoid is above ``threshold``.
    With one channel x and a constant b, the softmax of the second class is the sigmoid of x - b.
    """
    weight = state[f"{head}.weight"]
    bias = state.get(f"{head}.bias", torch.zeros(len(weight)))
    constant = torch.full((1,), threshold).logit().to(bias)
    return {
        **state,
        f"{head}.weight": torch.cat([torch.zeros_like(weight[:1]), weight]),
        f"{head}.bias": torch.cat([constant, bias]),
    }


def _refuse_options(known: Known, names: Iterable[str], why: str) -> None:
    """Raise for options of these names, which would have no effect."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(known, name) is not None]
    if given:
        raise ModelError(f"{why}: leave {' and '.join(given)} out")


def _with_own_normalisation(
    candidate: Candidate, checkpoint: Checkpoint, known: Known
) -> Candidate:
    """The candidate with the mean and deviation that a training saved as buffers next to its
    network, as in the examples of segmentation_models_pytorch; unchanged if there are none of three
    channels from 0 to 1.
    """
    found: list[RGB] = []
    for name in MEAN_AND_STD:
        values = [v for k, v in checkpoint.state.items() if k.rpartition(".")[2] == name]
        if len(values) != 1 or values[0].numel() != 3:
            return candidate
        red, green, blue = (round(float(value), 6) for value in values[0].flatten())
        found.append((red, green, blue))
    mean, std = found
    if not 0 <= min(mean) <= max(mean) <= 1 or min(std) <= 0:
        return candidate
    notes = candidate.notes
    if known.mean is None:
        of_bytes = [",".join(f"{value / 255:.3g}" for value in values) for values in found]
        note = (
            "its file has the mean and deviation of its training, taken for pixels from 0 to 1; if"
            f" it took them from 0 to 255: --mean {of_bytes[0]} --std {of_bytes[1]}"
        )
        notes = (note, *notes)
    return replace(
        candidate,
        state={
            k: v for k, v in candidate.state.items() if k.rpartition(".")[2] not in MEAN_AND_STD
        },
        left_out=[k for k in candidate.left_out if k.rpartition(".")[2] not in MEAN_AND_STD],
        mean=mean,
        std=std,
        notes=notes,
    )


def _open(source: str) -> Checkpoint:
    """The weights of a file, or of the folder of a library."""
    uri, folder = source, source.rpartition("/")[0] or "."
    for name in WEIGHT_FILES:
        if exists(storage.join(source, name)):
            uri, folder = storage.join(source, name), source
            break
    if storage.is_local(uri) and storage.local_path(uri).is_dir():
        raise ModelError(
            f"{source}: is a folder without {WEIGHT_FILES[0]}: name the file of weights in it"
        )
    data = weights.read_file(uri)
    saved, state = weights.decode_checkpoint(data, uri)
    return Checkpoint(uri, folder, state, saved, hashlib.sha256(data).hexdigest())


def _recognised(checkpoint: Checkpoint, known: Known) -> Candidate:
    """What the weights are; what the user says, if that is another architecture."""
    for recognise in LIBRARIES.values():
        candidate = recognise(checkpoint, known)
        if candidate is None:
            continue
        if known.arch in (None, candidate.arch):
            if known.backbone not in (None, candidate.backbone):
                raise ModelError(
                    f"{checkpoint.uri}: {candidate.what}, not on {known.backbone}: leave --backbone"
                    " out"
                )
            return candidate
        if known.backbone is None:
            raise ModelError(
                f"{checkpoint.uri}: {candidate.what}, not {known.arch}: leave --arch out"
            )
        break
    if known.arch is None or known.backbone is None:
        raise ModelError(
            f"{checkpoint.uri}: weights of a network that is none of {', '.join(LIBRARIES)} that"
            f" segbatch has; they have {listed(list(checkpoint.state))}: name their --arch and"
            " --backbone, or export the network to ONNX and import that"
        )
    library = networks.library_of(known.arch, known.backbone)
    # For the names of its parts.
    network = networks.build(known.arch, known.backbone, 1, known.output_stride, library=library)
    inner = inner_state(
        checkpoint.state, f"{network.head_key}.weight", needs=f"{network.trunk_key}."
    ) or Inner(checkpoint.state, [])
    return Candidate(
        f"{known.arch} on {known.backbone}",
        library,
        known.arch,
        known.backbone,
        *inner,
        output_stride=known.output_stride,
    )


def _classes(candidate: Candidate, known: Known, uri: str) -> Classes:
    if known.classes is not None:
        return known.classes
    if candidate.names is not None:
        return Classes(candidate.names, candidate.colors)
    raise ModelError(
        f"{uri}: {candidate.what}; its files do not name its classes: name them in the order of"
        " their ids with --classes a,b,c or --classes FILE"
    )


def _config(candidate: Candidate, network: Network, classes: Classes, known: Known) -> ModelConfig:
    default = networks.library_of(candidate.arch, candidate.backbone)
    return ModelConfig(
        candidate.arch,
        candidate.backbone,
        network.output_stride,
        classes,
        mean=known.from_0_to_1(known.mean) or candidate.mean or IMAGENET_MEAN,
        std=known.from_0_to_1(known.std) or candidate.std or IMAGENET_STD,
        long_side=known.long_side or candidate.long_side,
        library=None if candidate.library == default else candidate.library,
        options=candidate.options,
    )
