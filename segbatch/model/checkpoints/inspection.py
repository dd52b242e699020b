"""What a graph takes and gives, found out by its shapes and by running it on a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.console import say
from segbatch.errors import JobFailed, ModelError
from segbatch.model.checkpoints.checkpoint import Known
from segbatch.model.config import RGB, GraphInput, GraphOutput, Layout
from segbatch.model.graph import CLASS_AXIS, as_logits, import_openvino
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

Kind = Literal["logits", "probabilities", "labels"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order in which outputs are preferred

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
DTYPES = {"f32": "float32", "u8": "uint8", "i8": "int8"}
WHOLE_RANGES = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}  # of black and white
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
SMALLEST_SPAN, LARGEST_SPAN = 0.5, 8  # between black and white, once they are normalised
SMALLEST_OWN_SPAN = 2  # the same of a graph that takes 0 to 1, if the middle is not near 0
OFF_CENTRE = 0.35  # how far the middle of both may be from 0, as a share of that
PICTURE = (256, 320)  # height and width, for graphs that take any size
SUM_TOLERANCE = 1e-2  # of probabilities, of quantised graphs too


def with_plain_types(model: Any) -> tuple[Any, bool]:
    """The graph with an input of float32 or bytes, and whether that changed it."""
    ov = import_openvino()
    [taken, *_] = model.inputs
    if str(taken.element_type.to_string()) in DTYPES:
        return model, False
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input(0).tensor().set_element_type(ov.Type.f32)
    return steps.build(), True


def input_of(source: str, model: Any, known: Known) -> tuple[GraphInput, RGB, RGB]:
    """What the graph takes, and the mean and deviation by which its caller normalises."""
    if len(model.inputs) != 1:
        names = ", ".join(_name(one, i) for i, one in enumerate(model.inputs))
        raise ModelError(f"{source}: takes {len(model.inputs)} inputs ({names}), not one image")
    [taken] = model.inputs
    shape = taken.partial_shape
    if shape.rank.is_dynamic or len(shape) != 4:
        raise ModelError(f"{source}: takes {shape}, not a batch of images (4 dimensions)")
    if any(one.is_dynamic for one in shape):
        _set_channels(model)
        shape = taken.partial_shape
    sides = [None if one.is_dynamic else one.get_length() for one in shape]
    if 3 not in (sides[1], sides[3]):
        raise ModelError(f"{source}: takes {shape}, which is neither NCHW nor NHWC of RGB")
    layout: Layout = "NCHW" if sides[1] == 3 else "NHWC"
    height, width = (sides[2], sides[3]) if layout == "NCHW" else (sides[1], sides[2])
    size = None if height is None or width is None else (height, width)
    dtype = cast(Any, DTYPES[str(taken.element_type.to_string())])
    limits, mean, std = _range(source, model, dtype, known)
    return GraphInput(_name(taken, 0), layout, dtype, limits, size), mean, std


def _first_layer(model: Any) -> tuple[Any, Layout] | None:
    """The first layer, and the layout of the input: NHWC where it is transposed before that layer.

    ``None`` where the pixels go more than one way before it.
    """
    node = model.inputs[0].get_node()
    layout: Layout = "NCHW"
    while node.get_type_name() not in LAYERS:
        users = [one.get_node() for one in node.output(0).get_target_inputs()]
        users = [one for one in users if one.get_type_name() != "ShapeOf"]  # takes no pixels
        if len(users) != 1:
            return None
        [node] = users
        if node.get_type_name() == "Transpose":
            layout = "NHWC"
    return node, layout


def _set_channels(model: Any) -> None:
    """Set a number of channels that the input leaves open to that of the first convolution."""
    shape = model.inputs[0].partial_shape
    first = _first_layer(model)
    if first is None or first[0].get_type_name() != "Convolution":
        return
    layer, layout = first
    channels = layer.input_value(1).partial_shape[1]  # of its weights
    if shape[CLASS_AXIS[layout]].is_dynamic:
        shape[CLASS_AXIS[layout]] = channels
        model.reshape(shape)


def _range(
    source: str, model: Any, dtype: str, known: Known
) -> tuple[tuple[float, float], RGB, RGB]:
    """Black and white, and the mean and deviation by which the caller normalises them."""
    if (own := WHOLE_RANGES.get(dtype)) is not None:
        # Normalised pixels would be rounded to a few whole numbers.
        if known.mean is not None:
            raise ModelError(
                f"{source}: takes {dtype} and normalises by itself: leave --mean and --std out"
            )
        if known.input_range not in (None, own):
            raise ModelError(
                f"{source}: takes {dtype}, pixels from {own[0]:g} to {own[1]:g}: leave"
                " --input-range out"
            )
        return own, ZERO, ONE
    if known.mean is not None and known.std is not None:
        default = (0.0, 255.0) if known.is_up_to_255 else (0.0, 1.0)
        low, high = limits = known.input_range or default
        is_too_small = high > 2 and any(known.mean) and not known.is_up_to_255
        if is_too_small or max(known.mean) > high:
            raise ModelError(
                f"{source}: --mean {','.join(f'{value:g}' for value in known.mean)} is of pixels up"
                f" to {default[1]:g}, --input-range of {low:g} to {high:g}: leave --input-range out"
            )
        return limits, known.mean, known.std
    if known.input_range is not None:
        return known.input_range, ZERO, ONE
    if (found := _own_range(model)) is not None:
        say(f"{source}: normalises by itself, pixels from {found[0]:g} to {found[1]:g}")
        return found, ZERO, ONE
    mean_text, std_text = (",".join(map(str, values)) for values in (IMAGENET_MEAN, IMAGENET_STD))
    raise ModelError(
        f"{source}: takes float32 and does not normalise, so it cannot be seen how it was trained:"
        f" --input-range=-1,1 (TensorFlow and Keras, usually), --input-range=0,1, or --mean"
        f" {mean_text} --std {std_text} (PyTorch, usually)"
    )


def _own_range(model: Any) -> tuple[float, float] | None:
    """The range of pixels that the arithmetic before the first layer brings to about -1 to 1.

    ``None`` if there is none, or it fits neither 0 to 1 nor 0 to 255.
    """
    ov = import_openvino()
    first = _first_layer(model)
    if first is None:
        return None
    before = ov.Model([first[0].input_value(0)], model.get_parameters())
    compiled = ov.Core().compile_model(before, "CPU", EXACT)
    shape = [1 if side.is_dynamic else side.get_length() for side in model.inputs[0].partial_shape]
    shape = [64 if index in (1, 2, 3) and side == 1 else side for index, side in enumerate(shape)]
    for white in (1.0, 255.0):
        black_out, white_out = (
            _of_centre(compiled(np.full(shape, value, np.float32))[0]) for value in (0.0, white)
        )
        span, middle = abs(white_out - black_out), (white_out + black_out) / 2
        # As they are, or after a batch normalisation of pixels that were normalised before.
        is_plain = white == 1 and span < SMALLEST_OWN_SPAN
        is_scaled = SMALLEST_SPAN <= span <= LARGEST_SPAN and abs(middle) <= span
        # OpenVINO moves a factor into the weights of the layer, and leaves the shift.
        is_centred = black_out != 0 and abs(middle) <= OFF_CENTRE * span
        if is_centred or (is_scaled and not is_plain):
            return 0.0, white
    return None


def _of_centre(value: npt.NDArray[Any]) -> float:
    """The mean of the pixel in the middle, which no padding has changed."""
    rows, columns = value.shape[-2:]
    return float(value[..., rows // 2, columns // 2].mean())


def num_labels(model: Any, name: str) -> int | None:
    """The number of classes among which a graph's label map chooses; ``None`` if it is not seen."""
    [output] = [one for i, one in enumerate(model.outputs) if _name(one, i) == name]
    node = output.get_node()
    while node.get_type_name() != "TopK":
        if node.get_input_size() == 0:
            return None
        node = node.input_value(0).get_node()
    side = node.input_value(0).partial_shape[node.get_axis()]
    return None if side.is_dynamic else int(side.get_length())


def run(source: str, model: Any, takes: GraphInput) -> dict[str, npt.NDArray[Any]]:
    """What the graph gives for a picture, by the names of its outputs."""
    height, width = takes.size or PICTURE
    low, high = takes.range
    pixels = _picture(height, width) * (high - low) + low
    if takes.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    given = np.rint(pixels) if takes.dtype != "float32" else pixels
    given = np.ascontiguousarray(given[None], takes.dtype)
    try:
        compiled = import_openvino().Core().compile_model(model, "CPU", EXACT)
        answer = compiled.create_infer_request().infer({0: given})
    except Exception as error:  # its kernels raise anything
        raise ModelError(
            f"{source}: OpenVINO reads it and cannot run it: {storage.one_line(error)}"
        ) from error
    return {_name(one, i): np.array(answer[i]) for i, one in enumerate(compiled.outputs)}


def _picture(height: int, width: int) -> npt.NDArray[np.float64]:
    """A smooth picture, HWC from 0 to 1: blobs of colour, and a little noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width) * 6
    channels = [
        0.5 + 0.4 * np.sin(rows * a + b) * np.cos(columns * c + d)
        for a, b, c, d in random.uniform(0.5, 2.5, (3, 4))
    ]
    noise = random.uniform(-0.05, 0.05, (height, width, 3))
    return cast(npt.NDArray[np.float64], np.clip(np.stack(channels, axis=2) + noise, 0, 1))


def output_of(
    source: str, answers: dict[str, npt.NDArray[Any]], known: Known
) -> tuple[GraphOutput, npt.NDArray[Any]]:
    """The output to use and what it is: logits before probabilities before labels.

    ``known.output`` is a kind, the name of an output, or ``NAME=KIND``.
    """
    name, kind = _asked_output(source, answers, known.output)
    if name is not None:
        answers = {name: answers[name]}
    fitting = {key: value for key, value in answers.items() if _fits(value)}
    if not fitting:
        fitting = {key: value for key, value in answers.items() if is_one_channel(value)}
    found = [(GraphOutput(key, _kind(value)), value) for key, value in fitting.items()]
    if kind is not None:
        found = [(replace(one, kind=kind), value) for one, value in found]
    if not found:
        shapes = ", ".join(f"{key} {value.shape}" for key, value in answers.items())
        raise ModelError(
            f"{source}: gives {shapes}, which is neither a label map nor values for each class at"
            " each pixel; segbatch takes semantic segmentation of two classes or more"
        )
    chosen = min(found, key=lambda pair: KINDS.index(pair[0].kind))
    if len(found) > 1:
        others = ", ".join(one.name for one, _ in found if one.name != chosen[0].name)
        say(f"{source}: taken is {chosen[0].name}, not {others}; --output names another")
    return chosen


def _asked_output(
    source: str, answers: dict[str, Any], asked: str | None
) -> tuple[str | None, Kind | None]:
    if asked is None:
        return None, None
    if asked in KINDS:
        return None, asked
    name, _, kind = asked.rpartition("=")
    if kind not in KINDS:
        name, kind = asked, ""
    if name not in answers:
        raise ModelError(
            f"{source}: --output {asked}: must be {', '.join(KINDS)}, NAME, or NAME=KIND; its"
            f" outputs are {', '.join(answers)}"
        )
    return name, cast(Kind, kind) if kind else None


def _fits(value: npt.NDArray[Any]) -> bool:
    """Whether an output has the rank of a label map, or of values for several classes."""
    if value.ndim == 3:
        return min(value.shape[1:]) > 1 and _is_whole(value)
    if value.ndim != 4:
        return False
    return _is_whole(value) if 1 in (value.shape[1], value.shape[3]) else True


def is_one_channel(value: npt.NDArray[Any]) -> bool:
    """Whether an output has one value for each pixel: a sigmoid, or its logit."""
    if value.ndim != 4:
        return False
    sides = value.shape[2:] if value.shape[1] == 1 else value.shape[1:3]
    return 1 in (value.shape[1], value.shape[3]) and min(sides) > 1


def _is_whole(value: npt.NDArray[Any]) -> bool:
    return bool(value.dtype.kind in "iu" or (value == np.rint(value)).all())


def _kind(value: npt.NDArray[Any]) -> Kind:
    if value.ndim == 3 or (1 in (value.shape[1], value.shape[3]) and _is_whole(value)):
        return "labels"
    if is_one_channel(value):
        return "probabilities" if 0 <= value.min() <= value.max() <= 1 else "logits"
    if value.dtype.kind == "f" and value.min() >= 0:
        for axis in (1, 3):
            if np.allclose(value.sum(axis), 1, atol=SUM_TOLERANCE):
                return "probabilities"
    return "logits"


def classes_of(answer: npt.NDArray[Any], takes: GraphInput, known: Known) -> tuple[int, Layout]:
    """The number of classes of logits or probabilities, and the layout: that of the input, or the
    other one where only that has as many classes as the user names. One channel has two classes.
    """
    numbers: dict[Layout, int] = {
        key: max(2, answer.shape[axis]) for key, axis in CLASS_AXIS.items()
    }
    layout = takes.layout
    if known.classes is not None and numbers[layout] != len(known.classes):
        fitting = (key for key, number in numbers.items() if number == len(known.classes))
        layout = next(fitting, layout)
    return numbers[layout], layout


def stride_of(gives: GraphOutput, answer: npt.NDArray[Any], num: int, takes: GraphInput) -> int:
    """The side of the input divided by that of the output, rounded; ``num`` is that of classes.

    Raises :class:`~segbatch.errors.ModelError` for class ids that are none.
    """
    try:
        coarse = as_logits(answer, gives, num)
    except JobFailed as error:
        raise ModelError(str(error)) from error
    return max(1, round((takes.size or PICTURE)[0] / coarse.shape[2]))


def _name(port: Any, index: int) -> str:
    """The name of an input or output; its position where it has none."""
    names = sorted(port.names, key=len)
    return str(names[0]) if names else str(index)
