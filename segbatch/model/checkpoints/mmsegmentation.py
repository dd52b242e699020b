"""Checkpoints of MMSegmentation: DeepLabV3 and DeepLabV3+, with their classes and configuration.

A checkpoint has the names and colours of its classes in ``meta``, and usually the text of its
configuration. A configuration is Python; its assignments of literals are read, and nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from segbatch import storage
from segbatch.errors import ModelError
from segbatch.model.checkpoints.checkpoint import (
    Candidate,
    Checkpoint,
    Known,
    inner_state,
    long_side_of,
    read_text,
    resnet_of,
)
from segbatch.model.config import RGB
from segbatch.model.networks.mmsegmentation import ASPP_DILATIONS
from segbatch.model.weights import State

SIGNATURE = "decode_head.conv_seg.weight"


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A DeepLab of MMSegmentation; ``None`` for anything that has another kind of keys.

    Raises :class:`~segbatch.errors.ModelError` for another network of MMSegmentation.
    """
    inner = inner_state(checkpoint.state, SIGNATURE, needs="backbone.")
    if inner is None:
        return None
    state = inner.state
    config, config_uri = _configuration(checkpoint)
    backbone = _backbone(state, checkpoint.uri)
    arch, options = _head(state, checkpoint.uri)
    model = _dict(config, "model")
    of_head, of_backbone = _dict(model, "decode_head"), _dict(model, "backbone")
    stride = known.output_stride or _output_stride(of_backbone) or 8
    if of_head.get("align_corners"):
        options["align_corners"] = True
    dilations = list(of_head.get("dilations") or ASPP_DILATIONS[stride])
    if dilations != list(ASPP_DILATIONS[stride]):
        options["aspp_dilations"] = dilations
    if of_backbone.get("multi_grid"):
        options["multi_grid"] = list(of_backbone["multi_grid"])
    names, colors = _classes(checkpoint.saved)
    mean, std = _normalisation(config)
    notes = (
        [f"configuration: {config_uri}"]
        if config_uri
        else [
            f"no configuration with it: output stride {stride}, align_corners false and the"
            " normalisation of ImageNet are assumed; put its .py next to it to have them read"
        ]
    )
    long_side, note = _long_side(config)
    if note and known.long_side is None:
        notes.append(note)
    return Candidate(
        what=f"{_NAMES[arch]} of MMSegmentation on {backbone}",
        library="mmsegmentation",
        arch=arch,
        backbone=backbone,
        state=state,
        left_out=inner.left_out,
        output_stride=stride,
        options=options,
        names=names,
        colors=colors,
        mean=mean,
        std=std,
        long_side=long_side,
        notes=tuple(notes),
    )


_NAMES = {"deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3+"}


def _backbone(state: State, uri: str) -> str:
    if "backbone.conv1.conv.weight" in state and "backbone.layer7.0.conv.0.conv.weight" in state:
        return "mobilenet_v2"
    name = resnet_of(state, "backbone.layer3.")
    if name is None:
        raise _other(uri, "backbone")
    return f"{name}_v1c" if "backbone.stem.0.weight" in state else name


def _head(state: State, uri: str) -> tuple[str, dict[str, Any]]:
    bottleneck = state.get("decode_head.bottleneck.conv.weight")
    if bottleneck is None or not any(key.startswith("decode_head.aspp_modules.") for key in state):
        raise _other(uri, "head")
    options: dict[str, Any] = {}
    if (channels := len(bottleneck)) != 512:
        options["channels"] = channels
    low = state.get("decode_head.c1_bottleneck.conv.weight")
    if low is None:
        return "deeplabv3", options
    if len(low) != 48:
        options["c1_channels"] = len(low)
    return "deeplabv3plus", options


def _other(uri: str, part: str) -> ModelError:
    return ModelError(
        f"{uri}: a checkpoint of MMSegmentation with another {part} than segbatch has (DeepLabV3"
        " and DeepLabV3+ on ResNet-50, ResNet-101, ResNetV1c and MobileNetV2): export it to ONNX"
        " with MMDeploy, and import that"
    )


def _classes(
    saved: Mapping[str, Any],
) -> tuple[list[str] | None, list[tuple[int, int, int]] | None]:
    """Names and colours, from ``dataset_meta`` of version 1 or ``CLASSES`` of version 0."""
    meta = _dict(saved, "meta")
    of_dataset = _dict(meta, "dataset_meta") or meta
    lower = {str(key).lower(): value for key, value in of_dataset.items()}
    names, palette = lower.get("classes"), lower.get("palette")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None, None
    rows = palette.tolist() if isinstance(palette, np.ndarray) else palette
    if not isinstance(rows, list | tuple) or len(rows) != len(names):
        return list(names), None
    colors = [(int(red), int(green), int(blue)) for red, green, blue in rows]
    return list(names), colors


def _configuration(checkpoint: Checkpoint) -> tuple[dict[str, Any], str | None]:
    """The configuration, and where it was found: in the file, or a ``.py`` next to it."""
    meta = _dict(checkpoint.saved, "meta")
    for key in ("cfg", "config"):
        if isinstance(text := meta.get(key), str) and (found := parse_config(text)):
            return found, f"the text in {storage.name_of(checkpoint.uri)}"
    stem = storage.name_of(checkpoint.uri).rpartition(".")[0]
    for name in (f"{stem}.py", "config.py"):
        uri = storage.join(checkpoint.folder, name)
        if (text := read_text(uri)) is not None:
            found = parse_config(text)
            if not found.get("model"):
                raise ModelError(
                    f"{uri}: has no `model = dict(…)` of literals; MMSegmentation writes one that"
                    " has into the work_dir of a training: put that one next to the weights"
                )
            return found, uri
    return {}, None


def parse_config(text: str) -> dict[str, Any]:
    """The values that a configuration in Python assigns to names, where they are literals, calls of
    ``dict``, or names that were assigned before; the others are left out. Nothing is run.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return values
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                values[statement.targets[0].id] = _value(statement.value, values)
            except (ValueError, RecursionError):
                continue
    return values


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {key.arg: _value(key.value, values) for key in keywords if key.arg}
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.List(elts=items):
            return [_value(item, values) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, values) for item in items)
        case ast.Dict(keys=keys, values=items):
            pairs = zip(keys, items, strict=True)
            return {_value(key, values): _value(item, values) for key, item in pairs if key}
    return ast.literal_eval(node)


def _output_stride(backbone: Mapping[str, Any]) -> int | None:
    strides = backbone.get("strides")
    if not isinstance(strides, list | tuple):
        return None
    stem = 2 if backbone.get("type") == "MobileNetV2" else 4
    product = stem
    for stride in strides:
        product *= int(stride)
    return product


def _normalisation(config: Mapping[str, Any]) -> tuple[RGB | None, RGB | None]:
    """Mean and deviation of RGB from 0 to 1; those of a configuration are from 0 to 255."""
    keys = (
        _dict(config, "data_preprocessor")
        or _dict(_dict(config, "model"), "data_preprocessor")
        or _dict(config, "img_norm_cfg")
    )
    mean, std = (_rgb(keys.get(key)) for key in ("mean", "std"))
    return mean, std


def _rgb(values: Any) -> RGB | None:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    red, green, blue = (round(float(value) / 255, 6) for value in values)
    return red, green, blue


def _long_side(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """The longer side to which its test pipeline brings images, and a note if that is assumed."""
    steps = config.get("test_pipeline")
    for step in steps if isinstance(steps, list | tuple) else ():
        if not isinstance(step, dict) or step.get("type") not in ("Resize", "MultiScaleFlipAug"):
            continue
        key = "scale" if "scale" in step else "img_scale"  # of version 1, and of version 0
        scale = step.get(key)
        if not isinstance(scale, list | tuple) or [type(side) for side in scale] != [int, int]:
            continue
        if not step.get("keep_ratio", key == "img_scale"):  # their defaults
            return max(scale), None
        # mmcv's `imrescale` takes both as limits, whichever way the photograph lies.
        return long_side_of(f"{key}={tuple(scale)}", min(scale), max(scale))
    return None, None


def _dict(values: Any, key: str) -> dict[str, Any]:
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if isinstance(value, dict) else {}
