"""What a graph takes, found out by its shapes and first operations; and running it on a picture."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.console import say
from segbatch.errors import ModelError
from segbatch.model.checkpoints.checkpoint import Known
from segbatch.model.config import RGB, GraphInput, Layout
from segbatch.model.graph import CLASS_AXIS, import_openvino
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
DTYPES = {"f32": "float32", "u8": "uint8", "i8": "int8"}
WHOLE_RANGES = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}  # of black and white
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
SMALLEST_SPAN, LARGEST_SPAN = 0.5, 8  # between black and white, once they are normalised
SMALLEST_OWN_SPAN = 2  # the same of a graph that takes 0 to 1, if the middle is not near 0
OFF_CENTRE = 0.35  # how far the middle of both may be from 0, as a share of that
PICTURE = (256, 320)  # height and width, for graphs that take any size


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
        names = ", ".join(name_of(one, i) for i, one in enumerate(model.inputs))
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
    return GraphInput(name_of(taken, 0), layout, dtype, limits, size), mean, std


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
        # Nothing normalises here, or a batch normalisation of pixels that are normalised already.
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
    return {name_of(one, i): np.array(answer[i]) for i, one in enumerate(model.outputs)}


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


def name_of(port: Any, index: int) -> str:
    """The name of an input or output; its position where it has none."""
    names = sorted(port.names, key=len)
    return str(names[0]) if names else str(index)
