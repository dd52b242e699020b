"""Weights of segmentation_models_pytorch: a state_dict, or a folder of ``save_pretrained``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch

from segbatch.errors import ModelError
from segbatch.model.checkpoints.checkpoint import Candidate, Checkpoint, Known, inner_state
from segbatch.model.networks.smp import CLASSES, DEPRECATED, DILATED, UNIVERSAL, options_of
from segbatch.model.normalisation import normalisation_of
from segbatch.model.weights import State

SIGNATURE = "segmentation_head.0.weight"
COUNTERS = ("total_ops", "total_params")  # of thop, which counts a network's operations

# The first key of its decoder, by architecture.
DECODERS = {
    "deeplabv3plus": "decoder.aspp.0.convs.0.0.weight",
    "deeplabv3": "decoder.aspp.convs.0.0.weight",
    "segformer": "decoder.mlp_stage.0.linear.weight",
    "upernet": "decoder.feature_norms.0.weight",
    "fpn": "decoder.p5.weight",
    "unet": "decoder.blocks.0.conv1.0.weight",
    "pspnet": "decoder.psp.blocks.0.pool.1.0.weight",
}
# Blocks of the four stages of mit_b1 to mit_b5; mit_b0 is mit_b1 with half the channels.
DEPTHS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2): "mit_b1", (3, 4, 6, 3): "mit_b2", (3, 4, 18, 3): "mit_b3",
    (3, 8, 27, 3): "mit_b4", (3, 6, 40, 3): "mit_b5",
}  # fmt: skip


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A network of smp; ``None`` for anything that has another kind of keys.

    Raises :class:`~segbatch.errors.ModelError` for another network of smp than segbatch has, and
    for a backbone that the weights do not tell.
    """
    inner = inner_state(checkpoint.state, SIGNATURE, needs="encoder.")
    if inner is None:
        return None
    state = {
        key: value
        for key, value in inner.state.items()
        if not key.startswith("classification_head.") and not key.endswith(COUNTERS)
    }
    config = checkpoint.read_json("config.json") or {}
    config = config if "encoder_name" in config else {}
    arch = _arch(state, config, checkpoint.uri)
    backbone = known.backbone or config.get("encoder_name") or _backbone(state, checkpoint.uri)
    if backbone is None:
        raise ModelError(
            f"{checkpoint.uri}: {_name(arch)} of segmentation_models_pytorch, on a backbone that"
            " its weights do not tell: name it with --backbone, one of timm as tu-NAME"
        )
    mean, std = normalisation_of(backbone)
    stride = known.output_stride or _stride(arch, config)
    notes: tuple[str, ...] = ()
    if stride is None and arch in DILATED:
        stride = DILATED[arch]
        notes = (
            f"output stride {stride} is assumed, as is smp's default: --output-stride"
            f" {8 if stride == 16 else 16} for a network that was trained so",
        )
    return Candidate(
        what=f"{_name(arch)} of segmentation_models_pytorch on {backbone}",
        library="smp",
        arch=arch,
        backbone=backbone,
        state=state,
        left_out=inner.left_out,
        output_stride=stride,
        options=_options(arch, config, checkpoint.folder) or _widths(arch, state),
        mean=mean,
        std=std,
        notes=notes,
        has_sigmoids=config.get("activation") in ("sigmoid", "logsigmoid"),
    )


def _arch(state: State, config: Mapping[str, Any], uri: str) -> str:
    name = str(config.get("_model_class", ""))
    if not name and "decoder.center.top_conv.weight" in state:  # otherwise it looks like a Unet
        name = "MAnet"
    for arch, key in DECODERS.items():
        if name == CLASSES[arch].__name__ or (not name and key in state):
            return arch
    raise ModelError(
        f"{uri}: {name or 'a network'} of segmentation_models_pytorch that segbatch does not have"
        f" (it has {', '.join(CLASSES)}): export it with torch.onnx.export, and import that"
    )


def _name(arch: str) -> str:
    return str(CLASSES[arch].__name__) if arch in CLASSES else arch


def _stride(arch: str, config: Mapping[str, Any]) -> int | None:
    return config.get("encoder_output_stride") if arch in DILATED else None


def _options(arch: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of the constructor that differ from its defaults."""
    if (channels := config.get("in_channels", 3)) != 3:
        raise ModelError(f"{where}: takes {channels} channels, not RGB")
    parameters = _defaults(arch)
    return {
        key: value
        for key, value in config.items()
        if key in parameters and _plain(value) != _plain(parameters[key])
    }


def _widths(arch: str, state: State) -> dict[str, Any]:
    """Options of a decoder as its weights tell them, where they are not the constructor's."""
    keys = {
        "deeplabv3plus": {"decoder_channels": DECODERS["deeplabv3plus"]},
        "deeplabv3": {"decoder_channels": DECODERS["deeplabv3"]},
        "segformer": {"decoder_segmentation_channels": "decoder.fuse_stage.0.weight"},
        "fpn": {
            "decoder_pyramid_channels": DECODERS["fpn"],
            "decoder_segmentation_channels": "decoder.seg_blocks.0.block.0.block.0.weight",
        },
    }
    found: dict[str, Any] = {
        option: len(state[key]) for option, key in keys.get(arch, {}).items() if key in state
    }
    if arch == "fpn" and state[SIGNATURE].shape[1] == 4 * found["decoder_segmentation_channels"]:
        found["decoder_merge_policy"] = "cat"
    if arch == "unet":
        blocks = [f"decoder.blocks.{index}.conv1.0.weight" for index in range(5)]
        found["decoder_channels"] = [len(state[key]) for key in blocks if key in state]
        found["encoder_depth"] = len(found["decoder_channels"])
        if any(".attention1.attention.cSE." in key for key in state):
            found["decoder_attention_type"] = "scse"
    defaults = _defaults(arch)
    return {option: value for option, value in found.items() if value != _plain(defaults[option])}


def _defaults(arch: str) -> dict[str, Any]:
    parameters = inspect.signature(CLASSES[arch].__init__).parameters
    return {key: parameters[key].default for key in options_of(arch) if key in parameters}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _backbone(state: State, uri: str) -> str | None:
    """The backbone of smp whose keys and shapes are those of ``encoder.``; ``None`` for timm's.

    Raises :class:`~segbatch.errors.ModelError` for one that takes something else than RGB.
    """
    own = {
        key.removeprefix("encoder."): value.shape
        for key, value in state.items()
        if key.startswith("encoder.")
    }
    if all(key.startswith("model.") for key in own):
        return None
    if "patch_embed1.proj.weight" in own:
        return mix_transformer(state)
    for name in smp.encoders.get_encoder_names():
        if name.startswith((*DEPRECATED, "mit_", UNIVERSAL)):
            continue
        with torch.device("meta"):
            encoder = smp.encoders.get_encoder(name, weights=None)
        expected = {key: value.shape for key, value in encoder.state_dict().items()}
        if not own.keys() <= expected.keys() or len(own) <= len(expected) / 4:
            continue
        others = [key for key, shape in own.items() if shape != expected[key]]
        if not others:
            return str(name)
        channels = own[others[0]][1:2]
        if len(others) == 1 and tuple(channels) != (3,) == tuple(expected[others[0]][1:2]):
            raise ModelError(f"{uri}: takes {channels[0]} channels, not RGB")
    return None


def mix_transformer(state: State) -> str | None:
    """Which of mit_b0 to mit_b5 the keys under ``encoder.`` are of."""
    depths = tuple(
        len({key.split(".")[2] for key in state if key.startswith(f"encoder.block{stage}.")})
        for stage in range(1, 5)
    )
    width = len(state.get("encoder.patch_embed1.proj.weight", ()))
    if width == 32 and depths == (2, 2, 2, 2):
        return "mit_b0"
    return DEPTHS.get(depths) if width == 64 else None
