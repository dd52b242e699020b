"""Folders of Hugging Face transformers: SegFormer, and MobileNetV2 with DeepLabV3+.

SegFormer is translated to the key names of segmentation_models_pytorch, which has the same network;
transformers need not be installed for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from segbatch.errors import ModelError
from segbatch.model.checkpoints.checkpoint import (
    Candidate,
    Checkpoint,
    Inner,
    Known,
    inner_state,
    long_side_of,
)
from segbatch.model.checkpoints.smp import mix_transformer
from segbatch.model.config import RGB
from segbatch.model.networks.transformers import OPTIONS
from segbatch.model.weights import State
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

SEGFORMER = ("decode_head.linear_c.0.proj.weight", "decode_head.linear_projections.0.proj.weight")
HALF = (0.5, 0.5, 0.5)  # mean and deviation of MobileNetV2ImageProcessor
MOBILENET = "segmentation_head.classifier.convolution.weight"

# What the parts of a block are called, up to transformers 4 and since 5, and in smp.
PARTS = {
    "layer_norm_1": "norm1", "layernorm_before": "norm1",
    "layer_norm_2": "norm2", "layernorm_after": "norm2",
    "attention.self.query": "attn.q", "attention.q_proj": "attn.q",
    "attention.self.key": "attn.key", "attention.k_proj": "attn.key",
    "attention.self.value": "attn.value", "attention.v_proj": "attn.value",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    "attention.self.sr": "attn.sr",
    "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.sequence_reduction.layer_norm": "attn.norm",
    "mlp.dense1": "mlp.fc1", "mlp.fc1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2", "mlp.fc2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
}  # fmt: skip
BLOCK = re.compile(r"(?:block|stages)\.(\d+)\.(?:blocks\.)?(\d+)\.(.+)\.(weight|bias)")
PATCHES = re.compile(
    r"(?:stages\.(\d+)\.patch_embeddings|patch_embeddings\.(\d+))\.(proj|layer_norm)\.(weight|bias)"
)
NORM = re.compile(r"(?:stages\.(\d+)\.layer_norm|layer_norm\.(\d+))\.(weight|bias)")


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A SegFormer or MobileNetV2 of transformers; ``None`` for anything with another kind of keys.

    Raises :class:`~segbatch.errors.ModelError` for a folder of another of its networks, or of
    another SegFormer than b0 to b5.
    """
    for signature in SEGFORMER:
        if (inner := inner_state(checkpoint.state, signature, needs="segformer.")) is not None:
            return _segformer(checkpoint, inner, known)
    if (inner := inner_state(checkpoint.state, MOBILENET, needs="mobilenet_v2.")) is not None:
        return _mobilenet(checkpoint, inner, known)
    config = checkpoint.read_json("config.json") or {}
    if "transformers_version" in config:
        what = ", ".join(map(str, config.get("architectures") or ["?"]))
        raise ModelError(
            f"{checkpoint.folder}: {what} of transformers; segbatch takes"
            " SegformerForSemanticSegmentation and MobileNetV2ForSemanticSegmentation, and any"
            " network as ONNX: optimum-cli export onnx"
        )
    return None


def _segformer(checkpoint: Checkpoint, inner: Inner, known: Known) -> Candidate:
    config = checkpoint.read_json("config.json") or {}
    translated = to_smp(inner.state)
    backbone = mix_transformer(translated)
    if backbone is None:
        raise ModelError(f"{checkpoint.uri}: a SegFormer of other sizes than b0 to b5")
    hidden = len(translated["decoder.fuse_stage.0.weight"])
    return Candidate(
        what=f"SegFormer of transformers on {backbone}",
        library="smp",
        arch="segformer",
        backbone=backbone,
        state=translated,
        left_out=inner.left_out,
        options={"align_corners": False, "decoder_segmentation_channels": hidden},
        **_facts(checkpoint, config, known, (IMAGENET_MEAN, IMAGENET_STD)),
    )


def _mobilenet(checkpoint: Checkpoint, inner: Inner, known: Known) -> Candidate:
    config = checkpoint.read_json("config.json")
    if config is None:
        raise ModelError(
            f"{checkpoint.uri}: a MobileNetV2 of transformers without its config.json, which has"
            " its widths: import the folder of save_pretrained"
        )
    options = {key: config[key] for key in OPTIONS if key in config}
    return Candidate(
        what="DeepLabV3+ of transformers on mobilenet_v2",
        library="transformers",
        arch="deeplabv3plus",
        backbone="mobilenet_v2",
        state=inner.state,
        left_out=inner.left_out,
        output_stride=options.get("output_stride", 32),
        options=options,
        **_facts(checkpoint, config, known, (HALF, HALF)),
    )


def to_smp(state: State) -> State:
    """The weights of a SegFormer of transformers, of any version, under the keys of smp."""
    renamed = {smp_key(key): value for key, value in state.items()}
    for key in [key for key in renamed if ".attn.key." in key]:
        other = key.replace(".attn.key.", ".attn.value.")
        both = renamed.pop(key), renamed.pop(other)
        renamed[key.replace(".attn.key.", ".attn.kv.")] = torch.cat(both)
    return renamed


def smp_key(key: str) -> str:
    """A key of transformers as smp's, which counts stages from 1, and those of the decoder from the
    last one; keys and values of an attention, which smp has in one tensor, stay apart.
    """
    if not key.startswith("segformer."):
        if match := re.match(r"decode_head\.(?:linear_c|linear_projections)\.(\d)\.proj\.", key):
            return f"decoder.mlp_stage.{3 - int(match[1])}.linear.{key[match.end() :]}"
        for old, new in DECODER.items():
            key = key.replace(old, new)
        return key
    name = key.removeprefix("segformer.").removeprefix("encoder.")
    if (match := BLOCK.fullmatch(name)) and match[3] in PARTS:
        stage, block, part, kind = match.groups()
        return f"encoder.block{int(stage) + 1}.{block}.{PARTS[part]}.{kind}"
    if match := PATCHES.fullmatch(name):
        part = {"proj": "proj", "layer_norm": "norm"}[match[3]]
        return f"encoder.patch_embed{int(match[1] or match[2]) + 1}.{part}.{match[4]}"
    if match := NORM.fullmatch(name):
        return f"encoder.norm{int(match[1] or match[2]) + 1}.{match[3]}"
    return key


DECODER = {
    "decode_head.linear_fuse.": "decoder.fuse_stage.0.",
    "decode_head.batch_norm.": "decoder.fuse_stage.1.",
    "decode_head.classifier.": "segmentation_head.0.",
}


def _facts(
    checkpoint: Checkpoint, config: Mapping[str, Any], known: Known, default: tuple[RGB, RGB]
) -> dict[str, Any]:
    """Names of classes, normalisation and size, as ``config.json`` and the processor have them.

    ``default`` are mean and deviation that the network's processor has if nobody sets others.
    """
    processor = checkpoint.read_json("preprocessor_config.json") or {}
    long_side, assumed_side = _long_side(processor)
    (mean, std), assumed = _normalisation(processor, default)
    notes = []
    if assumed_side and known.long_side is None:
        notes.append(assumed_side)
    if assumed and known.mean is None:
        notes.append(
            f"{assumed}: taken are mean {_listed(mean)} and deviation {_listed(std)} of pixels from"
            " 0 to 1; --mean and --std set others"
        )
    return {
        "names": _names(config.get("id2label")),
        "mean": mean,
        "std": std,
        "long_side": long_side,
        "notes": tuple(notes),
    }


def _names(id2label: Any) -> list[str] | None:
    """Class names by id; ``None`` where they are those that transformers makes up."""
    if not isinstance(id2label, dict):
        return None
    names = [id2label.get(str(index)) for index in range(len(id2label))]
    if not all(isinstance(name, str) for name in names):
        return None
    if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
        return None
    return [str(name) for name in names]


def _normalisation(
    processor: Mapping[str, Any], default: tuple[RGB, RGB]
) -> tuple[tuple[RGB, RGB], str | None]:
    """Mean and deviation of RGB from 0 to 1 that do what the processor does, and why they are
    assumed, if they are.

    It multiplies pixels by a factor, 1/255 by default, and normalises the products. Either step can
    be switched off by somebody who did it before: ``do_rescale`` for pixels from 0 to 1.
    """
    mean = _rgb(processor.get("image_mean")) or default[0]
    std = _rgb(processor.get("image_std")) or default[1]
    off = [key for key in ("do_rescale", "do_normalize") if processor.get(key) is False]
    if "do_normalize" in off:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    largest = 255 * float(processor.get("rescale_factor") or 1 / 255)
    if "do_rescale" in off:
        largest = 255.0 if max(mean) > 1 else 1.0
    scaled = _divided(mean, largest), _divided(std, largest)
    if not processor:
        return scaled, "no preprocessor_config.json with it"
    return (
        scaled,
        f"its processor has {' and '.join(f'{key}: false' for key in off)}" if off else None,
    )


def _rgb(values: Any) -> RGB | None:
    """Three numbers, or one for all three channels."""
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list) or len(values) != 3:
        return None
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _divided(values: RGB, divisor: float) -> RGB:
    red, green, blue = (round(value / divisor, 9) for value in values)
    return red, green, blue


def _listed(values: RGB) -> str:
    return ",".join(f"{value:g}" for value in values)


def _long_side(processor: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """The longer side to which its processor brings images, and a note if that is assumed.

    It keeps their shape where it has limits for edges, and squeezes them to a square elsewhere.
    """
    if not processor.get("do_resize", True):
        return None, None
    size = processor.get("size")
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if isinstance(size, int):
        size = {"shortest_edge" if str(kind).startswith("MobileNetV2") else "height": size}
    sides = size.items() if isinstance(size, dict) else ()
    found = {key: side for key, side in sides if type(side) is int}
    if "shortest_edge" in found:
        read = f"size={json.dumps(found)}"
        return long_side_of(read, found["shortest_edge"], found.get("longest_edge"))
    return max(found.values(), default=None), None
