"""Checkpoints of MMSegmentation: DeepLabV3 and DeepLabV3+, with their classes and configuration.

A checkpoint has the names and colours of its classes in ``meta``, and usually the text of its
configuration. A configuration is Python; its assignments of literals are read, and nothing is run.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
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
from segbatch.model.networks.mmsegmentation import (
    ASPP_DILATIONS,
    MOBILENET_STAGES,
    NORM_EPS,
    RESNET_STAGES,
)
from segbatch.model.weights import State

SIGNATURE = "decode_head.conv_seg.weight"
# The first convolution of a ResNetV1c, a MobileNetV2 and a ResNet.
STEMS = ("backbone.stem.0.weight", "backbone.conv1.conv.weight", "backbone.conv1.weight")
# What MMSegmentation takes for keys that a configuration does not have.
OF_HEAD: dict[str, Any] = {"dilations": (1, 6, 12, 18)}
OF_RESNET: dict[str, Any] = {
    "strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1), "contract_dilation": False,
    "style": "pytorch",
}  # fmt: skip
ONE_CHANNEL_THRESHOLD = 0.3
INSTEAD = "export it to ONNX with MMDeploy, and import that"
OF_MOBILENET: dict[str, Any] = {
    "strides": (1, 2, 2, 2, 1, 2, 1), "dilations": (1, 1, 1, 1, 1, 1, 1),
}  # fmt: skip


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A DeepLab of MMSegmentation; ``None`` for anything that has another kind of keys.

    Raises :class:`~segbatch.errors.ModelError` for another network of MMSegmentation.
    """
    inner = inner_state(checkpoint.state, SIGNATURE, needs="backbone.")
    if inner is None:
        return None
    state = inner.state
    config, config_uri = _configuration(checkpoint)
    uri = checkpoint.uri
    backbone = _backbone(state, uri)
    arch, options = _head(state, uri)
    model = _dict(config, "model")
    of_head, of_backbone = _dict(model, "decode_head"), _dict(model, "backbone")
    is_whole = "_base_" not in config  # else what it does not have is in another file
    if is_whole:
        of_head, of_backbone = _with_defaults(of_head, of_backbone, backbone)
    stride = known.output_stride or _output_stride(of_backbone, backbone) or 8
    if stride not in ASPP_DILATIONS:
        raise ModelError(
            f"{uri}: {_NAMES[arch]} of MMSegmentation has output stride 8 or 16, not {stride}"
        )
    _refuse_other_stages(of_backbone, backbone, stride, uri, is_asked=bool(known.output_stride))
    _refuse_other_layers(of_head, of_backbone, backbone, uri)
    if (eps := _norm_eps(of_head, of_backbone, uri, is_whole=is_whole)) != NORM_EPS:
        options["norm_eps"] = eps
    if of_head.get("align_corners"):
        options["align_corners"] = True
    dilations = list(of_head.get("dilations") or ASPP_DILATIONS[stride])
    if dilations != list(ASPP_DILATIONS[stride]):
        options["aspp_dilations"] = dilations
    if of_backbone.get("multi_grid"):
        options["multi_grid"] = list(of_backbone["multi_grid"])
    names, colors = _classes(checkpoint.saved)
    mean, std, is_bgr = _normalisation(config)
    long_side, assumed = _long_side(config)
    notes = _notes(config, config_uri, known, stride)
    if is_bgr:
        notes.append("it was trained on BGR; its first layer is changed so that it takes RGB")
        stem = next(key for key in STEMS if key in state)
        state = {**state, stem: state[stem].flip(1)}
    if assumed and known.long_side is None:
        notes.append(assumed)
    if (crops := _crops(_dict(model, "test_cfg"))) is not None:
        notes.append(crops)
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
        threshold=float(of_head.get("threshold") or ONE_CHANNEL_THRESHOLD),
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
        f" and DeepLabV3+ on ResNet-50, ResNet-101, ResNetV1c and MobileNetV2): {INSTEAD}"
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


def _notes(
    config: Mapping[str, Any], config_uri: str | None, known: Known, stride: int
) -> list[str]:
    """Where the configuration was found, and what is assumed because it does not have it."""
    if config_uri is None:
        return [
            f"no configuration with it: output stride {stride}, align_corners false and the"
            " normalisation of ImageNet are assumed; put its .py next to it to have them read"
        ]
    notes = [f"configuration: {config_uri}"]
    if "_base_" in config:
        notes.append(
            "it builds on others (_base_), which are not read: the one that MMSegmentation writes"
            " into the work_dir of a training has all"
        )
    if "strides" not in _dict(_dict(config, "model"), "backbone") and not known.output_stride:
        notes.append(f"output stride {stride} is assumed; --output-stride sets another")
    if None in _normalisation(config) and known.mean is None:
        notes.append("the normalisation of ImageNet is assumed; --mean and --std set others")
    return notes


def _with_defaults(
    of_head: dict[str, Any], of_backbone: dict[str, Any], backbone: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of both, with MMSegmentation's defaults if a configuration has them at all."""
    defaults = OF_MOBILENET if backbone == "mobilenet_v2" else OF_RESNET
    return (OF_HEAD | of_head if of_head else {}), (defaults | of_backbone if of_backbone else {})


def _refuse_other_stages(
    of_backbone: Mapping[str, Any], backbone: str, stride: int, uri: str, *, is_asked: bool
) -> None:
    """Raises :class:`~segbatch.errors.ModelError` for a backbone that computes otherwise than the
    one that is built; ``is_asked``: the user gives the stride, not the configuration.
    """
    stages = MOBILENET_STAGES if backbone == "mobilenet_v2" else RESNET_STAGES
    strides, dilations = stages[stride]
    built: dict[str, Any] = {"contract_dilation": True, "style": "pytorch"}
    if not is_asked:
        built |= {"strides": strides, "dilations": dilations}
    for key, value in built.items():
        found = of_backbone.get(key, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise ModelError(
                f"{uri}: its configuration has {key}={found} in the backbone, and segbatch has"
                f" {value} at output stride {stride}: {INSTEAD}"
            )


def _refuse_other_layers(
    of_head: Mapping[str, Any], of_backbone: Mapping[str, Any], backbone: str, uri: str
) -> None:
    """Raises :class:`~segbatch.errors.ModelError` for activations and convolutions that compute
    otherwise than those that are built; their weights have the same keys.
    """
    of_trunk = "ReLU6" if backbone == "mobilenet_v2" else "ReLU"
    for part, keys, activation in (
        ("backbone", of_backbone, of_trunk),
        ("decode_head", of_head, "ReLU"),
    ):
        for key, built in (("act_cfg", (activation,)), ("conv_cfg", ("Conv2d", "Conv", None))):
            found = _dict(keys, key).get("type") if key in keys else built[0]
            if found not in built:
                raise ModelError(
                    f"{uri}: its configuration has {key} of type {found} in the {part}, and"
                    f" segbatch has {built[0]}: {INSTEAD}"
                )


def _norm_eps(
    of_head: Mapping[str, Any], of_backbone: Mapping[str, Any], uri: str, *, is_whole: bool
) -> float:
    """What the batch norms add to variances; of a part that another file configures, as the other
    part has it.
    """
    found = {
        float(_dict(keys, "norm_cfg").get("eps", NORM_EPS))
        for keys in (of_head, of_backbone)
        if "norm_cfg" in keys or (is_whole and keys is of_backbone)
    } or {NORM_EPS}
    if len(found) > 1:
        raise ModelError(
            f"{uri}: its configuration has one eps in the norm_cfg of the backbone and another in"
            f" that of the decode_head: {INSTEAD}"
        )
    return found.pop()


def _output_stride(of_backbone: Mapping[str, Any], backbone: str) -> int | None:
    strides = of_backbone.get("strides")
    if not isinstance(strides, list | tuple):
        return None
    return (2 if backbone == "mobilenet_v2" else 4) * math.prod(int(stride) for stride in strides)


def _normalisation(config: Mapping[str, Any]) -> tuple[RGB | None, RGB | None, bool]:
    """Mean and deviation of RGB from 0 to 1, and whether the network takes BGR.

    Those of a configuration are from 0 to 255, in the order that the network takes. It reads images
    as BGR and converts them to RGB where ``bgr_to_rgb`` is true, in version 0 unless ``to_rgb`` is
    false.
    """
    # MMEngine takes the variable only where the model has none of its own.
    keys = _dict(_dict(config, "model"), "data_preprocessor") or _dict(config, "data_preprocessor")
    if keys:
        turned = [keys[key] for key in ("bgr_to_rgb", "rgb_to_bgr") if key in keys]
        is_known = bool(turned) or ("_base_" not in config and "mean" in keys)
        is_bgr = is_known and not any(turned)
    else:
        steps = (step for step in _test_steps(config) if step.get("type") == "Normalize")
        keys = next(steps, _dict(config, "img_norm_cfg"))
        is_bgr = not keys.get("to_rgb", True)
    mean, std = (_rgb(keys.get(key), is_bgr) for key in ("mean", "std"))
    return mean, std, is_bgr


def _rgb(values: Any, is_bgr: bool) -> RGB | None:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    ordered = values[::-1] if is_bgr else values
    red, green, blue = (round(float(value) / 255, 6) for value in ordered)
    return red, green, blue


def _test_steps(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of its test pipeline, with those inside of others.

    The pipeline of the data is the one that is used (version 1: ``test_dataloader``, version 0:
    ``data.test``); the variable that it was made from may have another value by then.
    """
    of_version_1 = _dict(_dict(config, "test_dataloader"), "dataset").get("pipeline")
    of_version_0 = _dict(_dict(config, "data"), "test").get("pipeline")
    return _with_inner(of_version_1 or of_version_0 or config.get("test_pipeline"))


def _with_inner(steps: Any) -> Iterator[dict[str, Any]]:
    for step in steps if isinstance(steps, list | tuple) else ():
        if isinstance(step, dict):
            yield step
            yield from _with_inner(step.get("transforms"))


def _crops(test_cfg: Mapping[str, Any]) -> str | None:
    """A note for a network that was tested on crops of the image, with what does the same here."""
    size, stride = test_cfg.get("crop_size"), test_cfg.get("stride")
    if test_cfg.get("mode") != "slide" or not size or not stride:
        return None
    overlap = min(size[0] - stride[0], size[0] // 2)  # a job allows no more
    return (
        f"it was tested in crops (mode slide, crop_size {size}, stride {stride}): for the same,"
        f" give the job predict: {{tile: {{size: {size[0]}, overlap: {overlap}}}}}"
    )


def _long_side(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """The longer side to which its test pipeline brings images, and a note if that is assumed."""
    for step in _test_steps(config):
        if step.get("type") not in ("Resize", "MultiScaleFlipAug"):
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
