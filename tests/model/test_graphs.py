"""Graphs of other tools: what they take and give is found out, and they predict as they did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from segbatch.config.job import Predict
from segbatch.errors import InputError, JobFailed, ModelError
from segbatch.masks.classes import PRESETS, Classes
from segbatch.model import engine
from segbatch.model.bundle import describe, fingerprint, list_bundles, load_config
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.config import GraphOutput, ModelConfig
from segbatch.model.engine import OnnxRuntimeEngine
from segbatch.model.graph import as_logits
from segbatch.model.onnx import export_onnx
from segbatch.model.predict import Model, load_model
from segbatch.model.quantize import quantize_bundle
from tests.model.conftest import picture

pytestmark = pytest.mark.unit

ORIGINALS = Path(__file__).with_name("originals")  # of benchmarks/originals/keras_deeplab.py
CLASSES = Classes(["a", "b", "c", "d", "e"])
NAMED = Known(classes=CLASSES)
FROM_0_TO_1 = Known(classes=CLASSES, input_range=(0.0, 1.0))


def graph_file(
    path: Path,
    *,
    layout: str = "NCHW",
    dtype: int = TensorProto.FLOAT,
    size: tuple[int | str, int | str] = ("h", "w"),
    batch: int | str = "n",
    stride: int = 2,
    before: tuple[tuple[str, float], ...] = (),
    kinds: tuple[str, ...] = ("logits",),
    channels: int = 3,
    number: int = 5,
) -> Path:
    """A network of one convolution in ONNX, with what people have around it."""
    random = np.random.default_rng(1)
    weights = random.normal(0, 1, (number, channels, 3, 3)).astype(np.float32)
    nodes: list[Any] = []
    constants = [numpy_helper.from_array(weights, "weights")]
    last = "image"

    def then(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal last
        result = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *more], [result], **attributes))
        last = result

    if dtype != TensorProto.FLOAT:
        then("Cast", to=TensorProto.FLOAT)
    if layout == "NHWC":
        then("Transpose", perm=[0, 3, 1, 2])
    for kind, value in before:
        name = f"constant{len(constants)}"
        constants.append(numpy_helper.from_array(np.float32(value), name))
        then(kind, name)
    then("Conv", "weights", strides=[stride] * 2, pads=[1] * 4)
    logits, outputs = last, []
    for kind in kinds:
        last, shape, of = logits, ["n", number, "y", "x"], TensorProto.FLOAT
        if kind == "probabilities" and number == 1:
            then("Sigmoid")
        elif kind == "probabilities":
            then("Softmax", axis=1)
        if layout == "NHWC" and kind != "labels":
            then("Transpose", perm=[0, 2, 3, 1])
            shape = ["n", "y", "x", number]
        if kind == "labels":
            then("ArgMax", axis=1, keepdims=0)
            shape, of = ["n", "y", "x"], TensorProto.INT64
        nodes.append(helper.make_node("Identity", [last], [kind]))
        outputs.append(helper.make_tensor_value_info(kind, of, shape))
    sides = [batch, channels, *size] if layout == "NCHW" else [batch, *size, channels]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", dtype, sides)], outputs, constants
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


Step = tuple[Any, ...]  # operation, attributes, constants


def graph_with(
    path: Path,
    number: int,
    outputs: dict[str, list[Step]],
    *,
    first: tuple[Step, ...] = (),
    sides: tuple[int | str, ...] = ("n", 3, "h", "w"),
) -> Path:
    """A convolution to ``number`` channels in ONNX, and after it the steps to each output."""
    weights = np.random.default_rng(1).normal(0, 1, (number, 3, 3, 3))
    is_half = first[:1] == (TO_HALF,)
    nodes: list[Any] = []
    constants: list[Any] = []

    def chain(last: str, steps: Sequence[Step]) -> str:
        for kind, attributes, *arrays in steps:
            names = [f"constant{len(constants) + index}" for index in range(len(arrays))]
            constants.extend(map(numpy_helper.from_array, arrays, names))
            # The optional regions of a Resize come before its scales.
            inputs = [last, "", *names] if kind == "Resize" else [last, *names]
            last = f"{kind}{len(nodes)}"
            nodes.append(helper.make_node(kind, inputs, [last], **attributes))
        return last

    kernel = weights.astype(np.float16 if is_half else np.float32)
    logits = chain("image", [*first, ("Conv", {"pads": [1] * 4}, kernel)])
    for name, steps in outputs.items():
        nodes.append(helper.make_node("Identity", [chain(logits, steps)], [name]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, sides)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "g", [image], results, constants)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
    return path


TO_HALF: Step = ("Cast", {"to": TensorProto.FLOAT16})
SIGMOID: Step = ("Sigmoid", {})
SOFTMAX: Step = ("Softmax", {"axis": 1})
TWO = Known(classes=Classes(["background", "crack"]), input_range=(0.0, 1.0))


def as_one_image(image: np.ndarray) -> np.ndarray:
    """A picture as the graphs with NCHW float32 from 0 to 1 take it."""
    return np.ascontiguousarray((image[None] / np.float32(255)).transpose(0, 3, 1, 2))


def imported(path: Path, tmp_path: Path, known: Known = FROM_0_TO_1) -> ModelConfig:
    return import_model(str(path), str(tmp_path / "m"), known)


def runs(path: Path, image: np.ndarray, output: str) -> np.ndarray:
    """What ONNX Runtime gives for an image as the graph takes it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given] = session.run([output], {"image": image})
    return np.asarray(given)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels"])
def test_layout_and_kind_are_found_and_the_label_map_is_the_graphs(
    tmp_path: Path, layout: str, kind: str
) -> None:
    path = graph_file(tmp_path / "g.onnx", layout=layout, kinds=(kind,), stride=1)
    config = imported(path, tmp_path)
    assert config.input is not None
    assert config.output is not None
    assert (config.input.layout, config.output.kind) == (layout, kind)
    assert (config.input.size, config.output.stride) == (None, 1)
    image = picture(64, 128)
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    scaled = image.astype(np.float32)[None] / 255
    given = runs(path, scaled if layout == "NHWC" else scaled.transpose(0, 3, 1, 2), kind)
    if kind != "labels":
        given = given.argmax(1 if layout == "NCHW" else 3)
    assert len(np.unique(prediction.mask)) > 2
    assert np.array_equal(prediction.mask, given[0])
    assert np.isnan(prediction.uncertainty) == (kind == "labels")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [("h", "w"), (320, 320)])
def test_an_output_with_as_many_rows_and_columns_as_classes_is_not_turned_over(
    tmp_path: Path, layout: str, size: tuple[int | str, int | str]
) -> None:
    path = graph_file(tmp_path / "g.onnx", layout=layout, size=size, stride=64)
    config = imported(path, tmp_path)
    assert config.output is not None
    assert (config.output.layout, config.output.stride) == (layout, 64)
    model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    pixels = torch.from_numpy(np.stack([picture(320, 320)]))  # five cells of 64, and five classes
    found = model.engine(model._normalized(pixels)).numpy()
    given = pixels.numpy().astype(np.float32) / 255
    is_nchw = layout == "NCHW"
    given = np.ascontiguousarray(given.transpose(0, 3, 1, 2)) if is_nchw else given
    expected = runs(path, given, "logits")
    assert expected.shape == (1, 5, 5, 5)
    if not is_nchw:
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_layout_of_a_bundle_of_earlier_versions_is_guessed(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", layout="NHWC", stride=1)
    values = imported(path, tmp_path).to_json()
    expected = load_model(str(tmp_path / "m"), "cpu").predict(picture(64, 64))
    del values["output"]["layout"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    old = load_config(str(tmp_path / "m"))
    assert old.output is not None
    assert old.output.layout is None
    found = load_model(str(tmp_path / "m"), "cpu").predict(picture(64, 64))
    assert np.array_equal(found.mask, expected.mask)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_one_channel_is_that_of_the_second_class(
    tmp_path: Path, layout: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = graph_file(tmp_path / "g.onnx", layout=layout, kinds=(kind,), stride=1, number=1)
    crack = Known(classes=Classes(["background", "crack"]), input_range=(0.0, 1.0))
    config = imported(path, tmp_path, crack)
    assert config.output is not None
    assert config.output.kind == kind
    assert "crack where that is likelier than not, else background" in capsys.readouterr().err
    image = picture(64, 128)
    given = (image / 255).astype(np.float32)[None]
    given = given if layout == "NHWC" else given.transpose(0, 3, 1, 2)
    answer = runs(path, given, kind).squeeze()
    probability = answer if kind == "probabilities" else 1 / (1 + np.exp(-answer))
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    assert np.array_equal(prediction.mask, probability > 0.5)
    assert 0 < prediction.mask.mean() < 1
    expected = probability[probability > 0.5].mean()
    assert prediction.confidences[1] == pytest.approx(expected, abs=1e-3)


def quantized(scale: float) -> list[Step]:
    constants = (np.float32(scale), np.uint8(0))
    return [("QuantizeLinear", {}, *constants), ("DequantizeLinear", {}, *constants)]


def resized(scale: float, mode: str) -> Step:
    return "Resize", {"mode": mode}, np.array([1, 1, scale, scale], np.float32)


def head(number: int) -> Step:
    """A second convolution, from 16 channels."""
    weights = np.random.default_rng(2).normal(0, 1, (number, 16, 1, 1)).astype(np.float32)
    return "Conv", {}, weights - weights.mean(1, keepdims=True)


HARD_SIGMOID: Step = ("HardSigmoid", {})
ROUND: Step = ("Round", {})
ABOVE_0: Step = ("Greater", {}, np.float32(0))
CLIP: Step = ("Clip", {}, np.float32(0), np.float32(1))
WITHOUT_CHANNELS: Step = ("Squeeze", {}, np.array([1]))
TO_FLOAT: Step = ("Cast", {"to": TensorProto.FLOAT})
TO_BYTES: Step = ("Cast", {"to": TensorProto.UINT8})
ARGMAX_4D: Step = ("ArgMax", {"axis": 1})
ARGMAX: Step = ("ArgMax", {"axis": 1, "keepdims": 0})
MORE_THAN_1 = 1.000001  # by rounding
LOUD: Step = ("Mul", {}, np.float32(50))
SHIFT: Step = ("Sub", {}, np.float32(100))  # after which a sigmoid is 0 everywhere


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("probabilities", [SIGMOID, *quantized(1 / 255)]),
        ("probabilities", [LOUD, SIGMOID, *quantized(MORE_THAN_1 / 255)]),
        ("probabilities", [LOUD, CLIP, *quantized(MORE_THAN_1 / 255)]),
        ("probabilities", [HARD_SIGMOID]),
        ("probabilities", [HARD_SIGMOID, WITHOUT_CHANNELS]),
        ("probabilities", [resized(0.5, "linear"), LOUD, SIGMOID, resized(2, "cubic")]),
        ("probabilities", [resized(0.5, "linear"), CLIP, resized(2, "linear")]),
        ("labels", [ABOVE_0, TO_FLOAT]),
        ("labels", [SIGMOID, ROUND, WITHOUT_CHANNELS]),
        ("labels", [resized(0.5, "linear"), ABOVE_0, TO_BYTES, resized(2, "nearest")]),
    ],
)
def test_the_kind_of_one_channel_is_that_of_its_last_operations(
    tmp_path: Path, kind: str, steps: list[Step]
) -> None:
    path = graph_with(tmp_path / "g.onnx", 1, {"out": steps})
    config = imported(path, tmp_path, TWO)
    assert config.output is not None
    assert config.output.kind == kind
    image = picture(64, 128)
    answer = runs(path, as_one_image(image), "out").squeeze()
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    assert np.mean(prediction.mask != (answer > 0.5)) < 1e-3
    assert 0.01 < prediction.mask.mean() < 0.99


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("probabilities", [SHIFT, SIGMOID, *quantized(1 / 255)]),
        ("probabilities", [SHIFT, HARD_SIGMOID, WITHOUT_CHANNELS]),
        ("labels", [SHIFT, ABOVE_0, TO_FLOAT]),
        ("labels", [SHIFT, ABOVE_0, TO_BYTES]),
    ],
)
def test_nothing_on_the_test_picture_does_not_change_the_kind(
    tmp_path: Path, kind: str, steps: list[Step]
) -> None:
    config = imported(graph_with(tmp_path / "g.onnx", 1, {"out": steps}), tmp_path, TWO)
    assert config.output is not None
    assert config.output.kind == kind


def test_ids_that_are_moved_after_the_choice_have_as_many_names_as_the_user_says(
    tmp_path: Path,
) -> None:
    path = graph_with(tmp_path / "g.onnx", 2, {"out": [ARGMAX, ("Add", {}, np.int64(1))]})
    names = Classes(["background", "window", "door"])
    imported(path, tmp_path, Known(classes=names, input_range=(0.0, 1.0)))
    image = picture(64, 64)
    mask = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image).mask
    assert np.array_equal(np.unique(mask), [1, 2])
    assert np.mean(mask != runs(path, as_one_image(image), "out")[0]) < 1e-3


def test_a_kind_that_cannot_be_seen_is_asked_for(tmp_path: Path) -> None:
    path = graph_with(tmp_path / "g.onnx", 1, {"out": [SHIFT, CLIP]})
    with pytest.raises(ModelError, match="out is 0 at each pixel of a test picture") as refused:
        imported(path, tmp_path, TWO)
    for asked in ("out=labels", "out=probabilities", "out=logits"):
        assert asked in str(refused.value)
        config = imported(path, tmp_path, replace(TWO, output=asked))
        assert config.output is not None
        assert config.output.kind == asked.removeprefix("out=")


@pytest.mark.parametrize(
    ("number", "steps", "asked", "message"),
    [
        (1, [SIGMOID], "labels", "out gives probabilities, not labels: --output out=prob"),
        (1, [SIGMOID], "out=logits", "out gives probabilities, not logits: --output out=prob"),
        (1, [CLIP], "labels", r"gives 0\.\d+ as a class id: import it without --output labels"),
        (1, [ABOVE_0, TO_FLOAT], "logits", "out gives labels, not logits: --output out=labels"),
        (1, [SIGMOID, ROUND, ("Mul", {}, np.float32(255)), TO_BYTES], None, "scaled to 0 and 255"),
        (1, [SIGMOID, quantized(1 / 255)[0]], None, "probabilities as uint8: export it with an ou"),
        (2, [ARGMAX], "probabilities", "out gives labels, not probabilities"),
        (2, [ARGMAX], "out=logits", "out gives labels, not logits"),
        (2, [], "labels", r"gives out \(.*\); labels must be \(n, h, w\)"),
        (2, [SOFTMAX], "out=labels", r"gives out \(.*\); labels must be \(n, h, w\)"),
        (
            2,
            [ARGMAX, ("Squeeze", {}, np.array([0]))],
            None,
            r"gives out \(64, 96\); an output must",
        ),
        (2, [("Reshape", {}, np.array([1, 384, 32]))], None, "an output must be"),
        (
            2,
            [resized(0.5, "linear"), ARGMAX_4D, TO_FLOAT, resized(2, "linear")],
            None,
            "as a class",
        ),
    ],
)
def test_outputs_that_are_not_what_was_said_or_seen_are_refused_in_one_line(
    tmp_path: Path, number: int, steps: list[Step], asked: str | None, message: str
) -> None:
    path = graph_with(tmp_path / "g.onnx", number, {"out": steps}, sides=(1, 3, 64, 96))
    with pytest.raises(ModelError, match=message) as refused:
        imported(path, tmp_path, replace(TWO, output=asked))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([0, 255], np.uint8), "masks scaled to 0 and 255, and class ids are 0 and 1"),
        (np.array([0, 255, 7], np.uint8), "class ids from 0 to 255, and the model has 2 classes"),
        (np.array([0, 1, 0.25], np.float32), r"gives 0\.25 as a class id"),
    ],
)
def test_labels_that_are_no_class_ids_end_the_job(ids: np.ndarray, message: str) -> None:
    with pytest.raises(JobFailed, match=message):
        as_logits(ids[None, None], GraphOutput("out", "labels"), 2)


@pytest.mark.parametrize("last", [SIGMOID, HARD_SIGMOID, CLIP])
def test_classes_with_a_sigmoid_each_need_a_background(tmp_path: Path, last: Step) -> None:
    path = graph_with(tmp_path / "g.onnx", 2, {"out": [SHIFT, last]})
    with pytest.raises(ModelError, match="2 classes from 0 to 1 that do not sum to 1") as refused:
        imported(path, tmp_path, TWO)
    assert "--output out=probabilities" in str(refused.value)
    background = ("Pad", {}, np.array([0, 1, 0, 0, 0, 0, 0, 0]), np.float32(0.5))
    path = graph_with(tmp_path / "g.onnx", 2, {"out": [last, background]})
    names = Classes(["background", "window", "door"])
    known = Known(classes=names, input_range=(0.0, 1.0), output="out=probabilities")
    imported(path, tmp_path, known)
    image = picture(64, 64)
    answer = runs(path, as_one_image(image), "out")[0]
    mask = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image).mask
    assert np.mean(mask != answer.argmax(0)) < 1e-3
    assert np.array_equal(np.unique(mask), [0, 1, 2])


def test_a_quantised_softmax_of_many_classes_gives_probabilities(tmp_path: Path) -> None:
    steps = [("Mul", {}, np.float32(0.1)), SOFTMAX, *quantized(1 / 255)]
    path = graph_with(tmp_path / "g.onnx", 60, {"out": steps})
    assert abs(runs(path, as_one_image(picture(64, 64)), "out").sum(1) - 1).max() > 0.01
    many = Classes([f"c{index}" for index in range(60)])
    config = imported(path, tmp_path, Known(classes=many, input_range=(0.0, 1.0)))
    assert config.output is not None
    assert config.output.kind == "probabilities"


@pytest.mark.parametrize(
    ("outputs", "asked", "taken"),
    [
        ({"f": [], "mask": [head(1)]}, None, "mask"),
        ({"f": [], "l": [head(2)]}, None, "l"),
        ({"m": [head(1), ABOVE_0, TO_BYTES], "prob": [head(1), SIGMOID]}, None, "prob"),
        ({"m": [head(1), ABOVE_0, TO_BYTES], "prob": [head(1), SIGMOID]}, "labels", "m"),
        ({"x": [head(1)], "p": [head(1), SIGMOID]}, None, "x"),
        ({"x": [head(1)], "p": [head(1), SIGMOID]}, "probabilities", "p"),
        (
            {"c": [head(2), SOFTMAX, ("ReduceMax", {"axes": [1]})], "m": [head(2), ARGMAX]},
            None,
            "m",
        ),
        ({"f": [SIGMOID], "l": [head(2), ARGMAX]}, None, "l"),
    ],
)
def test_the_output_that_is_taken_is_the_likeliest(
    tmp_path: Path, outputs: dict[str, list[Step]], asked: str | None, taken: str
) -> None:
    path = graph_with(tmp_path / "g.onnx", 16, outputs)
    config = imported(path, tmp_path, replace(TWO, output=asked))
    assert config.output is not None
    assert config.output.name == taken


def test_of_one_channel_and_labels_with_one_name_the_background_is_asked_for(
    tmp_path: Path,
) -> None:
    outputs: dict[str, list[Step]] = {"m": [ABOVE_0, TO_BYTES], "prob": [SIGMOID]}
    path = graph_with(tmp_path / "g.onnx", 1, outputs)
    with pytest.raises(ModelError, match="--classes background,crack"):
        imported(path, tmp_path, Known(classes=Classes(["crack"]), input_range=(0.0, 1.0)))


def test_a_wrong_number_of_classes_names_the_other_outputs(tmp_path: Path) -> None:
    path = graph_with(tmp_path / "g.onnx", 16, {"f": [], "l": [head(3)]})
    with pytest.raises(
        ModelError, match=r"f gives 16 classes, but 2 were given; --output NAME .*: l$"
    ):
        imported(path, tmp_path, TWO)


def test_one_channel_needs_two_names(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", number=1)
    with pytest.raises(ModelError, match="--classes background,crack"):
        imported(path, tmp_path, Known(classes=Classes(["crack"]), input_range=(0.0, 1.0)))


def test_probabilities_stay_what_they_are(tmp_path: Path) -> None:
    imported(graph_file(tmp_path / "g.onnx", stride=1), tmp_path)
    of_logits = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(picture(64, 64))
    path = graph_file(tmp_path / "p.onnx", kinds=("probabilities",), stride=1)
    imported(path, tmp_path)
    found = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(picture(64, 64))
    np.testing.assert_allclose(found.confidences, of_logits.confidences, atol=1e-4)
    assert found.uncertainty == pytest.approx(of_logits.uncertainty, abs=1e-4)


@pytest.mark.parametrize(("number", "last"), [(5, SOFTMAX), (1, SIGMOID)])
def test_probabilities_in_half_precision_are_what_they_are(
    tmp_path: Path, number: int, last: Step
) -> None:
    path = graph_with(
        tmp_path / "g.onnx",
        number,
        {"p": [("Mul", {}, np.float16(20)), last]},
        first=(TO_HALF,),
    )
    imported(path, tmp_path, FROM_0_TO_1 if number == 5 else TWO)
    image = picture(64, 64)
    given = runs(path, as_one_image(image), "p")[0].astype(np.float32)
    assert given.min() == 0  # which has no logarithm
    given = given if number == 5 else np.concatenate([1 - given, given])
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    assert np.mean(prediction.mask != given.argmax(0)) < 1e-2
    seen = [index for index, pixels in enumerate(prediction.pixels) if pixels]
    expected = [given.max(0)[given.argmax(0) == index].mean() for index in seen]
    np.testing.assert_allclose(prediction.confidences[seen], expected, atol=1e-2)
    assert 0 <= prediction.uncertainty < 1


@pytest.mark.parametrize(
    ("keys", "limits"),
    [
        ({"dtype": TensorProto.UINT8}, (0, 255)),
        ({"before": (("Div", 127.5), ("Sub", 1.0))}, (0, 255)),
        ({"before": (("Mul", 2 / 255), ("Add", -1.0))}, (0, 255)),
        ({"before": (("Sub", 127.5), ("Div", 60.0))}, (0, 255)),
        ({"before": (("Sub", 0.45), ("Div", 0.225))}, (0, 1)),
        ({"dtype": TensorProto.UINT8, "layout": "NHWC", "before": (("Div", 255.0),)}, (0, 255)),
    ],
)
def test_the_range_of_a_graph_that_normalises_is_found(
    tmp_path: Path, keys: dict[str, Any], limits: tuple[float, float]
) -> None:
    path = graph_file(tmp_path / "g.onnx", **keys, stride=1)
    config = imported(path, tmp_path, Known(classes=CLASSES))
    assert config.range == limits
    image = picture(64, 64)
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    given = image[None] if keys.get("layout") == "NHWC" else image[None].transpose(0, 3, 1, 2)
    if keys.get("dtype") != TensorProto.UINT8:
        given = given.astype(np.float32) * np.float32(limits[1] / 255)
    logits = runs(path, np.ascontiguousarray(given), "logits")
    expected = logits.argmax(3 if keys.get("layout") == "NHWC" else 1)[0]
    assert np.mean(prediction.mask != expected) < 1e-3


NHWC_TO_NCHW: Step = ("Transpose", {"perm": [0, 3, 1, 2]})


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_open_number_of_channels_is_that_of_the_first_convolution(
    tmp_path: Path, layout: str
) -> None:
    first = (NHWC_TO_NCHW,) if layout == "NHWC" else ()
    sides = tuple("nxyz")
    path = graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=first, sides=sides)
    model = onnx.load(path)  # the exporters read the sizes of the input, too
    model.graph.node.insert(0, helper.make_node("Shape", ["image"], ["shape"]))
    model.graph.output.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [4]))
    onnx.save(model, path)
    config = imported(path, tmp_path)
    assert config.input is not None
    assert (config.input.layout, config.input.size) == (layout, None)
    image = picture(64, 128)
    given = as_one_image(image)
    given = given if layout == "NCHW" else given.transpose(0, 2, 3, 1)
    expected = runs(path, given, "logits").argmax(1)[0]
    prediction = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image)
    assert np.mean(prediction.mask != expected) < 1e-3


def test_an_open_number_of_channels_that_is_not_three_is_refused(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", channels=4)
    model = onnx.load(path)
    for side in model.graph.input[0].type.tensor_type.shape.dim:
        side.dim_param = "any"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="neither NCHW nor NHWC of RGB"):
        imported(path, tmp_path)


def test_a_range_that_cannot_be_seen_is_asked_for(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx")
    with pytest.raises(ModelError, match=r"--input-range=-1,1 .*or --mean 0\.485.* --std 0\.229"):
        imported(path, tmp_path, Known(classes=CLASSES))
    known = Known(classes=CLASSES, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    assert imported(path, tmp_path, known).range == (0, 255)
    assert load_config(str(tmp_path / "m")).fill == (124, 116, 104)
    half = Known(classes=CLASSES, input_range=(-1.0, 1.0))
    assert imported(path, tmp_path, half).fill == (128, 128, 128)


@pytest.mark.parametrize(
    ("mean", "std", "limits"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.0, 255.0)),
        ((123.675, 116.28, 103.53), (58.4, 57.1, 57.4), (0.0, 1.0)),
        ((123.675, 116.28, 103.53), (58.4, 57.1, 57.4), (-1.0, 1.0)),
    ],
)
def test_a_mean_of_another_range_than_the_one_that_is_named_is_refused(
    tmp_path: Path, mean: Any, std: Any, limits: tuple[float, float]
) -> None:
    path = graph_file(tmp_path / "g.onnx")
    known = Known(classes=CLASSES, mean=mean, std=std)
    with pytest.raises(ModelError, match=r"is of pixels up to (1|255), .*: leave --input-range"):
        imported(path, tmp_path, replace(known, input_range=limits))
    own = (0.0, 1.0) if mean[0] < 1 else (0.0, 255.0)
    assert imported(path, tmp_path, known).range == own
    assert imported(path, tmp_path, replace(known, input_range=own)).range == own
    plain = Known(classes=CLASSES, mean=(0.0,) * 3, std=(1.0,) * 3, input_range=(0.0, 255.0))
    assert imported(path, tmp_path, plain).range == (0, 255)


def batch_normalisation(mean: float, deviation: float) -> Step:
    ones = np.ones(3, np.float32)
    return "BatchNormalization", {}, ones, ones * 0, ones * mean, ones * deviation**2


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.0, 1.0), (-0.1, 0.9), (0.1, 1.2), (-0.5, 0.8), (-0.02, 0.7)]
)
def test_a_batch_normalisation_of_normalised_pixels_is_no_range(
    tmp_path: Path, mean: float, deviation: float
) -> None:
    first = (batch_normalisation(mean, deviation),)
    path = graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=first)
    with pytest.raises(ModelError, match="it cannot be seen how it was trained"):
        imported(path, tmp_path, NAMED)


@pytest.mark.parametrize(
    ("mean", "deviation", "white"), [(0.45, 0.25, 1), (0.3, 0.2, 1), (115, 60, 255)]
)
def test_a_batch_normalisation_of_plain_pixels_shows_their_range(
    tmp_path: Path, mean: float, deviation: float, white: int
) -> None:
    first = (batch_normalisation(mean, deviation),)
    path = graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=first)
    assert imported(path, tmp_path, NAMED).range == (0, white)


PADDING: Step = ("Pad", {}, np.array([0, 9, 9, 0, 0, 9, 9, 0]), np.float32(0))


def test_padding_before_the_first_layer_is_no_normalisation(tmp_path: Path) -> None:
    first = (PADDING, NHWC_TO_NCHW)
    path = graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=first, sides=("n", "h", "w", 3))
    with pytest.raises(ModelError, match="it cannot be seen how it was trained"):
        imported(path, tmp_path, NAMED)
    first = (("Sub", {}, np.float32(127.5)), ("Div", {}, np.float32(127.5)), *first)
    path = graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=first, sides=("n", "h", "w", 3))
    assert imported(path, tmp_path, NAMED).range == (0, 255)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.INT8])
def test_a_graph_of_whole_numbers_has_one_range(tmp_path: Path, dtype: int) -> None:
    path = graph_file(tmp_path / "g.onnx", dtype=dtype, stride=1)
    own = (0.0, 255.0) if dtype == TensorProto.UINT8 else (-128.0, 127.0)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((127.5,) * 3, (127.5,) * 3)):
        with pytest.raises(ModelError, match="int8 and normalises by itself: leave --mean and"):
            imported(path, tmp_path, Known(classes=CLASSES, mean=mean, std=std))
    for limits in ((0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ModelError, match=f"pixels from {own[0]:g} to {own[1]:g}: leave --in"):
            imported(path, tmp_path, Known(classes=CLASSES, input_range=limits))
    for known in (Known(classes=CLASSES), Known(classes=CLASSES, input_range=own)):
        config = imported(path, tmp_path, known)
        assert (config.range, config.mean, config.std) == (own, (0.0,) * 3, (1.0,) * 3)
    image = picture(64, 64)
    mask = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(image).mask
    given = (image[None].astype(np.int16) + int(own[0])).transpose(0, 3, 1, 2)
    whole = np.ascontiguousarray(given, np.uint8 if dtype == TensorProto.UINT8 else np.int8)
    assert np.mean(mask != runs(path, whole, "logits").argmax(1)[0]) < 1e-3


@pytest.mark.parametrize("size", [(40, 64), (64, 64), (300, 80), (97, 331)])
def test_images_are_brought_to_the_one_size_that_a_graph_takes(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = graph_file(tmp_path / "g.onnx", size=(96, 128), batch=1, kinds=("labels",), stride=1)
    config = imported(path, tmp_path)
    assert config.input is not None
    assert (config.input.size, config.long_side) == ((96, 128), 128)
    model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    first, second = model.predict_batch([picture(*size), picture(*size, 1)], [None, None])
    assert first.mask.shape == size
    assert np.array_equal(second.mask, model.predict_batch([picture(*size, 1)], [None])[0].mask)
    if size[0] <= 96 and size[1] <= 128:  # it fits as it is
        canvas = np.full((1, 96, 128, 3), 128 / 255, np.float32)
        canvas[0, : size[0], : size[1]] = picture(*size) / np.float32(255)
        expected = runs(path, canvas.transpose(0, 3, 1, 2), "labels")[0, : size[0], : size[1]]
        assert np.array_equal(first.mask, expected)
    with pytest.raises(InputError, match="takes images of 128×96 alone"):
        load_model(str(tmp_path / "m"), "cpu", options=Predict(scales=[0.5, 1.0]))


def test_of_several_outputs_logits_are_taken_or_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = graph_file(tmp_path / "g.onnx", kinds=("labels", "logits"))
    config = imported(path, tmp_path)
    assert config.output is not None
    assert config.output.name == "logits"
    assert "taken is logits, not labels; --output names another" in capsys.readouterr().err
    for asked in ("labels", "labels=labels"):
        known = Known(classes=CLASSES, input_range=(0.0, 1.0), output=asked)
        named = imported(path, tmp_path, known)
        assert named.output is not None
        assert (named.output.name, named.output.kind) == ("labels", "labels")
    with pytest.raises(ModelError, match="its outputs are labels, logits"):
        imported(path, tmp_path, Known(classes=CLASSES, input_range=(0.0, 1.0), output="scores"))


@pytest.mark.parametrize(
    ("keys", "known", "message"),
    [
        ({}, Known(input_range=(0.0, 1.0)), "gives 5 classes without their names.*--classes"),
        ({"kinds": ("labels",)}, Known(input_range=(0.0, 1.0)), "gives 5 classes without"),
        ({}, Known(classes=Classes(["a", "b"]), input_range=(0.0, 1.0)), "5 classes, but 2 were"),
        ({"channels": 4}, FROM_0_TO_1, "neither NCHW nor NHWC of RGB"),
    ],
)
def test_what_cannot_be_told_is_asked_for(
    tmp_path: Path, keys: dict[str, Any], known: Known, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        imported(graph_file(tmp_path / "g.onnx", **keys), tmp_path, known)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model.h5", r"keras\.saving\.load_model"),
        ("model.keras", r"\.export\('FOLDER'\)"),
        ("model.ckpt-30000.index", r"export_model\.py"),
        ("model.pdparams", r"tools/export\.py"),
        ("model.engine", "import the ONNX"),
    ],
)
def test_what_is_no_graph_yet_is_refused_with_the_way_to_one(
    tmp_path: Path, name: str, advice: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=advice):
        imported(tmp_path / name, tmp_path)


def test_a_broken_graph_and_a_missing_one_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="ONNX that OpenVINO cannot read") as refused:
        imported(tmp_path / "g.onnx", tmp_path)
    assert len(str(refused.value)) < 500
    with pytest.raises(ModelError, match="no such file"):
        imported(tmp_path / "missing.onnx", tmp_path)


def test_a_graph_is_a_bundle_like_others(tmp_path: Path) -> None:
    imported(graph_file(tmp_path / "g.onnx"), tmp_path)
    facts = describe(str(tmp_path / "m"))
    assert set(facts["files"]) == {"config.json", "model.onnx"}
    assert [uri for uri, _ in list_bundles(str(tmp_path))] == [str(tmp_path / "m")]
    before = fingerprint(str(tmp_path / "m"))
    imported(graph_file(tmp_path / "g.onnx", kinds=("labels",)), tmp_path)
    assert fingerprint(str(tmp_path / "m")) != before
    config = load_config(str(tmp_path / "m"))
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ModelError, match="is a bundle already"):
        imported(tmp_path / "m", tmp_path)


def test_onnx_with_its_weights_in_a_second_file_is_kept_whole(tmp_path: Path) -> None:
    model = onnx.load(graph_file(tmp_path / "whole.onnx"))
    onnx.save(
        model,
        tmp_path / "g.onnx",
        save_as_external_data=True,
        location="g.onnx.data",
        size_threshold=0,
    )
    whole = tmp_path / "of_whole"
    import_model(str(tmp_path / "whole.onnx"), str(whole), FROM_0_TO_1)
    imported(tmp_path / "g.onnx", tmp_path)
    (tmp_path / "g.onnx.data").unlink()
    masks = [
        load_model(str(m), "cpu").predict(picture(64, 64)).mask for m in (whole, tmp_path / "m")
    ]
    assert np.array_equal(*masks)


@pytest.mark.long
def test_what_model_export_writes_comes_back_with_its_classes(
    tmp_path: Path, networks: dict[str, Any]
) -> None:
    from segbatch.model.bundle import save_bundle
    from tests.model.conftest import config_of

    network = networks["deeplabv3plus"]
    config = config_of(network, "deeplabv3plus")
    save_bundle(str(tmp_path / "net"), network, config)
    export_onnx(str(tmp_path / "net"), str(tmp_path / "net.onnx"))
    found = imported(tmp_path / "net.onnx", tmp_path, Known())
    assert found.classes == config.classes
    expected = load_model(str(tmp_path / "net"), "cpu", precision="fp32").predict(picture(64, 128))
    mask = load_model(str(tmp_path / "m"), "cpu", precision="fp32").predict(picture(64, 128)).mask
    assert np.mean(mask != expected.mask) < 1e-3


def test_onnx_runtime_gives_what_openvino_gives(tmp_path: Path) -> None:
    of_bytes = {"layout": "NHWC", "dtype": TensorProto.UINT8}
    for keys, known in (({}, FROM_0_TO_1), (of_bytes, NAMED), ({"batch": 1}, FROM_0_TO_1)):
        imported(graph_file(tmp_path / "g.onnx", **keys), tmp_path, known)
        model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
        other = OnnxRuntimeEngine(model.graph, torch.device("cpu"), len(CLASSES))
        beside = Model(None, model.config, "cpu", model.options, engine=other)
        assert_same_masks(model, beside, [picture(64, 64), picture(64, 64, 1)])


@pytest.mark.parametrize(
    "step", [("Identity", {}), ("Dropout", {}), ("Cast", {"to": TensorProto.FLOAT})]
)
def test_onnx_runtime_calls_input_and_output_by_the_names_of_the_file(
    tmp_path: Path, step: Step
) -> None:
    imported(graph_with(tmp_path / "g.onnx", 5, {"logits": []}, first=(step,)), tmp_path)
    model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    old = replace(
        model.graph,  # as earlier versions wrote it
        input=replace(model.graph.input, name="Identity0"),
        output=replace(model.graph.output, name="Conv1"),
    )
    for graph in (model.graph, old):
        other = OnnxRuntimeEngine(graph, torch.device("cpu"), len(CLASSES))
        beside = Model(None, model.config, "cpu", model.options, engine=other)
        assert_same_masks(model, beside, [picture(64, 64)])


def assert_same_masks(one: Model, other: Model, images: list[Any]) -> None:
    """Both predict ``images`` together; a pixel in a thousand may differ."""
    sizes = [None] * len(images)
    pairs = zip(one.predict_batch(images, sizes), other.predict_batch(images, sizes), strict=True)
    for found, expected in pairs:
        assert np.mean(found.mask != expected.mask) < 1e-3


def greedy_model(tmp_path: Path, exponent: int) -> Model:
    """A graph in ONNX Runtime that takes 2^(exponent × n) floats for a batch of n images."""
    config = imported(graph_file(tmp_path / "g.onnx"), tmp_path)
    graph = load_model(str(tmp_path / "m"), "cpu", precision="fp32").graph
    model = onnx.load_from_string(graph.model)
    numbers = {"first": 0, "exponent": exponent, "base": 2}
    for name, number in numbers.items():
        array = np.array([number], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    [last] = [node for node in model.graph.node if node.output[0] == "logits"]
    last.output[0] = "plain"
    model.graph.node.extend(
        helper.make_node(kind, inputs, [output], **attributes)
        for kind, inputs, output, attributes in (
            ("Shape", ["image"], "shape", {}),
            ("Gather", ["shape", "first"], "batch", {}),
            ("Mul", ["batch", "exponent"], "power", {}),
            ("Pow", ["base", "power"], "number", {}),
            ("ConstantOfShape", ["number"], "zeros", {}),
            ("ReduceMax", ["zeros"], "zero", {"keepdims": 0}),
            ("Add", ["plain", "zero"], "logits", {}),
        )
    )
    greedy = replace(graph, model=model.SerializeToString())
    runtime = OnnxRuntimeEngine(greedy, torch.device("cpu"), len(CLASSES))
    return Model(None, config, "cpu", Predict(batch_size=2), engine=runtime)


def test_out_of_memory_in_onnx_runtime_halves_the_batch(tmp_path: Path) -> None:
    # 2^46 floats are more than a process has addresses for.
    model = greedy_model(tmp_path, 23)
    images = [picture(64, 64, seed) for seed in range(3)]
    plain = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    assert_same_masks(model, plain, images)
    assert model._fitting == {(64, 64): 1}


def test_an_image_that_does_not_fit_onnx_runtime_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"one image of 64×64: set predict\.long_side"):
        greedy_model(tmp_path, 46).predict(picture(64, 64))


def test_graphs_on_a_gpu_need_onnx_and_its_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    config = imported(graph_file(tmp_path / "g.onnx"), tmp_path)
    with pytest.raises(InputError, match="pip install onnxruntime-gpu"):
        engine.check_graph(Predict(), config, gpu)
    monkeypatch.setattr(engine, "has_onnxruntime_on_gpu", lambda: True)
    engine.check_graph(Predict(), config, gpu)
    assert engine.model_precision("auto", config, gpu) == "fp32"
    shutil.copy(ORIGINALS / "frozen.pb", tmp_path)
    config = imported(tmp_path / "frozen.pb", tmp_path, NAMED)
    with pytest.raises(InputError, match="runs on CPUs, not on cuda"):
        engine.check_graph(Predict(), config, gpu)


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        ("fp16", "cpu", "OpenVINO computes in fp32 or bf16, not in fp16: set auto"),
        ("int8", "cpu", "in int8 once it is quantised: segbatch model quantize BUNDLE OUT"),
        ("bf16", "cpu", "this CPU does not compute bf16: set auto"),
        ("fp16", "cuda", "computes in fp32 on cuda, not in fp16: set auto"),
        ("bf16", "cuda", "computes in fp32 on cuda, not in bf16: set auto"),
        ("int8", "cuda", "computes in fp32 on cuda, not in int8: set auto"),
    ],
)
def test_a_precision_that_a_graph_does_not_compute_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, device: str, message: str
) -> None:
    monkeypatch.setattr(engine, "has_onnxruntime_on_gpu", lambda: True)
    monkeypatch.setattr(engine, "computes_bf16", lambda: False)
    config = imported(graph_file(tmp_path / "g.onnx"), tmp_path)
    with pytest.raises(InputError, match=f"^predict.precision: .*{message}") as refused:
        engine.check_graph(Predict(precision=asked), config, torch.device(device))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    if device == "cpu":
        with pytest.raises(InputError, match=message):
            load_model(str(tmp_path / "m"), "cpu", precision=asked)
    for precision in ("auto", "fp32"):
        options = Predict(precision=precision)  # type: ignore[arg-type]
        engine.check_graph(options, config, torch.device(device))


def test_a_graph_computes_in_bf16_where_the_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "computes_bf16", lambda: True)
    config = imported(graph_file(tmp_path / "g.onnx"), tmp_path)
    engine.check_graph(Predict(precision="bf16"), config, torch.device("cpu"))


def test_class_ids_that_are_none_end_the_job(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", kinds=("labels",), stride=1)
    config = imported(path, tmp_path)
    fewer = Model(
        None,
        ModelConfig.from_json({**config.to_json(), "classes": Classes(["a", "b"]).to_json()}),
        "cpu",
        engine=load_model(str(tmp_path / "m"), "cpu").engine,
    )
    fewer.engine._num_classes = 2  # type: ignore[attr-defined]
    with pytest.raises(JobFailed, match="the model has 2 classes: import it again"):
        fewer.predict(picture(64, 64))


def test_a_graph_is_quantised(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from PIL import Image

    imported(graph_file(tmp_path / "g.onnx", stride=1), tmp_path)
    (tmp_path / "images").mkdir()
    for seed in range(3):
        Image.fromarray(picture(64, 64, seed)).save(tmp_path / "images" / f"{seed}.png")
    config = quantize_bundle(str(tmp_path / "m"), str(tmp_path / "q"), str(tmp_path / "images"))
    assert config.is_quantized
    masks = [
        load_model(str(tmp_path / name), "cpu").predict(picture(64, 64)).mask for name in ("m", "q")
    ]
    assert np.mean(masks[0] != masks[1]) < 0.1
    with pytest.raises(InputError, match="computes in int8 already"):
        quantize_bundle(str(tmp_path / "q"), str(tmp_path / "q2"), str(tmp_path / "images"))


# ------------------------------------------------------------------------- TensorFlow's own graphs


@pytest.mark.parametrize(
    ("name", "key", "limits", "change"),
    [
        ("softmax.onnx", "softmax0", (-1.0, 1.0), torch.exp),
        ("float.tflite", "logits0", None, torch.clone),
        ("frozen.pb", "labels0", None, torch.clone),
        ("frozen.pb", "labels1", None, torch.clone),
    ],
)
def test_graphs_of_keras_give_what_tensorflow_gave(
    tmp_path: Path,
    name: str,
    key: str,
    limits: tuple[float, float] | None,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    imported(ORIGINALS / name, tmp_path, Known(classes=CLASSES, input_range=limits))
    arrays = np.load(ORIGINALS / "expected.npz")
    model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    pixels = torch.from_numpy(arrays[f"pixels{key[-1]}"])
    found = change(model.engine(model._normalized(pixels)))
    expected = torch.from_numpy(arrays[key])
    if expected.ndim == 3:
        assert torch.equal(found[:, 0], expected.float())
        prediction = model.predict(arrays["pixels0"][0])
        assert prediction.mask.shape == arrays["pixels0"].shape[1:3]
        return
    expected = expected.permute(0, 3, 1, 2)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_a_preset_with_as_many_classes_is_named(tmp_path: Path) -> None:
    assert len(PRESETS["voc"]) == 21
    model = onnx.load(graph_file(tmp_path / "g.onnx"))
    [weights] = model.graph.initializer
    more = np.zeros((21, 3, 3, 3), np.float32)
    weights.CopyFrom(numpy_helper.from_array(more, "weights"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 21
    onnx.save(model, tmp_path / "voc.onnx")
    with pytest.raises(ModelError, match="or --classes voc"):
        imported(tmp_path / "voc.onnx", tmp_path, Known(input_range=(0.0, 1.0)))
