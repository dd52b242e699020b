"""OpenVINO gives what torch gives; graphs are kept, sent and quantised."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segbatch.config.job import Predict, Tile
from segbatch.errors import InputError, ModelError
from segbatch.model import bundle, engine, graph, networks
from segbatch.model.bundle import Packed, save_bundle
from segbatch.model.config import GraphInput, GraphOutput, ModelConfig
from segbatch.model.engine import EngineChoice, resolve_engine
from segbatch.model.graph import kept_graph
from segbatch.model.networks import Network
from segbatch.model.onnx import export_onnx
from segbatch.model.patches import Pixels
from segbatch.model.predict import Model, load_model, unpack_model
from segbatch.model.quantize import drawn, quantize_bundle, quantized
from tests.collection import encoded
from tests.model.conftest import BACKBONES, CLASSES, config_of, normalized, picture

CPU = torch.device("cpu")
TIES = 5e-4  # as in test_predict.py
SIZES = [(96, 130), (64, 64), (101, 75)]


def share_that_differs(mask: Pixels, expected: Pixels) -> float:
    return float(np.mean(mask != expected))


@pytest.fixture(scope="module", params=BACKBONES)
def model_uri(
    request: pytest.FixtureRequest, networks: dict[str, Network], tmp_path_factory: Any
) -> str:
    network = networks[request.param]
    uri = str(tmp_path_factory.mktemp("models") / request.param)
    save_bundle(uri, network, config_of(network, request.param))
    return uri


# ---------------------------------------------------------------------------------- same answers


@pytest.mark.parametrize(
    "options",
    [Predict(), Predict(tile=Tile(size=64, overlap=16)), Predict(flip=True, scales=[1.0, 0.7])],
    ids=["whole", "tiles", "views"],
)
def test_both_engines_give_the_same_label_maps(model_uri: str, options: Predict) -> None:
    torch_model = load_model(model_uri, "cpu", engine="torch", options=options)
    openvino_model = load_model(model_uri, "cpu", engine="openvino", options=options)
    assert (torch_model.engine.name, openvino_model.engine.name) == ("torch", "openvino")
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    pairs = zip(
        torch_model.predict_batch(images, [None] * 3),
        openvino_model.predict_batch(images, [None] * 3),
        strict=True,
    )
    for expected, found in pairs:
        assert len(np.unique(found.mask)) > 1
        assert share_that_differs(found.mask, expected.mask) < TIES
        np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-3)


@pytest.mark.parametrize(
    ("arch", "backbone", "stride"),
    [
        ("deeplabv3", "resnet50", None),
        pytest.param("deeplabv3", "resnet101", None, marks=pytest.mark.long),
        ("deeplabv3plus", "resnet18", 8),
        ("deeplabv3plus", "tu-tf_efficientnet_lite0", 16),
        ("deeplabv3plus", "tu-convnext_atto", 16),
    ],
)
def test_every_kind_of_network_is_converted(arch: str, backbone: str, stride: int | None) -> None:
    torch.manual_seed(0)
    network = networks.build(arch, backbone, 5, stride).eval()
    config = ModelConfig(arch, backbone, network.output_stride, CLASSES)
    whole = Model(network, config, "cpu")
    converted = graph.convert(network)
    found = unpack_model(Packed(config, graph=converted), "cpu")
    for size in SIZES:
        inputs = normalized(picture(*size))[None]
        with torch.inference_mode():
            expected = whole.engine(inputs)
        error = (found.engine(inputs) - expected).abs().max() / expected.abs().max()
        assert error < 1e-4


def test_an_image_is_the_same_alone_and_among_others_and_with_more_threads(model_uri: str) -> None:
    images = [picture(90, 120, seed) for seed in range(6)]
    models = [load_model(model_uri, "cpu", threads=threads) for threads in (1, 3)]
    torch.set_num_threads(1)
    [alone] = models[0].predict_batch(images[2:3], [None])
    [again] = models[0].predict_batch(images[2:3], [None])
    assert np.array_equal(alone.mask, again.mask)
    for model in models:
        among = model.predict_batch(images, [None] * 6)[2]
        assert share_that_differs(among.mask, alone.mask) < TIES


# ------------------------------------------------------------------------------------ which engine


def test_auto_is_openvino_on_cpus(model_uri: str) -> None:
    model = load_model(model_uri, "cpu")
    assert EngineChoice(model.engine.name, model.precision) == ("openvino", "fp32")
    assert isinstance(model.module, Network)


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        (Predict(), "cpu", "openvino"),
        (Predict(engine="torch"), "cpu", "torch"),
        (Predict(compile=True), "cpu", "torch"),
        (Predict(precision="fp16"), "cpu", "torch"),
        (Predict(precision="int8"), "cpu", "openvino"),
        (Predict(), "cuda", "torch"),
    ],
)
def test_the_engine_is_the_one_that_runs_there(
    options: Predict, device: str, expected: str
) -> None:
    assert resolve_engine(options, torch.device(device)) == expected


def test_bf16_goes_to_the_engine_that_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "openvino"), (False, "torch")):
        monkeypatch.setattr(engine, "computes_bf16", lambda has=has: has)
        assert resolve_engine(Predict(precision="bf16"), CPU) == expected
    with pytest.raises(InputError, match="this CPU does not compute bf16: set it to fp32"):
        resolve_engine(Predict(engine="openvino", precision="bf16"), CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Predict(engine="openvino"), "openvino runs on CPUs and the device is cuda: set it to"),
        (Predict(precision="int8"), "int8 runs on CPUs, not on cuda: set it to auto"),
    ],
)
def test_what_does_not_run_on_a_gpu_is_refused(options: Predict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_engine(options, torch.device("cuda"))


def test_without_openvino_torch_runs_and_that_is_said(
    model_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "has_openvino", lambda: False)
    assert load_model(model_uri, "cpu").engine.name == "torch"
    assert "OpenVINO is not installed, so torch runs the network" in capsys.readouterr().err
    with pytest.raises(InputError, match="pip install openvino"):
        load_model(model_uri, "cpu", engine="openvino")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "tensorrt"}, "load_model: "),
        ({"engine": "torch", "precision": "int8"}, "int8 runs with OpenVINO"),
        ({"precision": "int8"}, "once it is quantised: segbatch model quantize"),
    ],
)
def test_what_load_model_cannot_do_is_one_line(
    model_uri: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(model_uri, "cpu", **arguments)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ graphs


def test_a_graph_is_converted_once_and_again_if_its_file_is_torn(
    networks: dict[str, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    conversions = []

    def counted(network: Network, convert: Callable[..., Any] = graph.convert) -> graph.Graph:
        conversions.append(network)
        return convert(network)

    monkeypatch.setattr(graph, "convert", counted)
    network = networks["deeplabv3plus"]
    first = kept_graph(network, "a")
    assert kept_graph(network, "a").sha256 == first.sha256
    assert len(conversions) == 1
    [kept] = tmp_path.glob("segbatch/graphs/*/model.bin")
    kept.write_bytes(kept.read_bytes()[:-100])
    again = kept_graph(network, "a")
    assert np.array_equal(again.weights, first.weights)
    assert len(conversions) == 2
    assert kept_graph(network, "a").sha256 == again.sha256
    assert len(conversions) == 2


def test_only_the_newest_graphs_are_kept_and_none_where_nothing_can_be_written(
    networks: dict[str, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = graph.Graph(b"<xml/>", np.zeros(9, np.uint8), GraphInput("images"), GraphOutput("logits"))
    monkeypatch.setattr(graph, "convert", lambda _: one)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(graph.KEPT + 3):
        kept_graph(networks["deeplabv3"], str(number))
    assert len(list(tmp_path.glob("segbatch/graphs/*"))) == graph.KEPT
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_graph(networks["deeplabv3"], "a") is one


def test_a_packed_graph_needs_no_network(model_uri: str) -> None:
    model = load_model(model_uri, "cpu")
    packed = pickle.loads(pickle.dumps(Packed(model.config, graph=model.graph), protocol=5))
    sent = unpack_model(packed, "cpu")
    assert sent.module is None
    image = picture(100, 80)
    assert np.array_equal(sent.predict(image).mask, model.predict(image).mask)


# -------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def int8_uri(model_uri: str, tmp_path_factory: Any) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(8):
        (folder / f"{seed}.jpg").write_bytes(encoded(Image.fromarray(picture(96, 128, seed))))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    quantize_bundle(model_uri, f"{model_uri}-int8", str(folder))
    return f"{model_uri}-int8"


def test_a_quantised_bundle_predicts_nearly_the_same(model_uri: str, int8_uri: str) -> None:
    model = load_model(int8_uri, "cpu")
    assert (model.precision, model.module) == ("int8", None)
    assert model.config.provenance["calibration_images"] == 8
    assert model.config.provenance["sha256"] == bundle.fingerprint(model_uri)
    image = picture(96, 130, 9)
    [expected] = load_model(model_uri, "cpu").predict_batch([image], [None])
    [found] = model.predict_batch([image], [None])
    assert len(np.unique(found.mask)) > 1
    # Random weights magnify every error; overflows, as on CPUs without VNNI, give above 0.5.
    assert share_that_differs(found.mask, expected.mask) < 0.25
    smaller, larger = (
        sum(path.stat().st_size for path in Path(uri).iterdir()) for uri in (int8_uri, model_uri)
    )
    assert smaller < 0.5 * larger


def test_int8_of_a_model_that_is_not_quantised_is_refused_and_not_computed_in_fp32(
    networks: dict[str, Network],
) -> None:
    network = networks["deeplabv3plus"]
    config = config_of(network, "deeplabv3plus")
    in_fp32 = graph.Graph(b"<xml/>", np.zeros(9, np.uint8), *graph.of_network(network))
    int8 = Predict(precision="int8")
    for packed in (Packed(config, graph=in_fp32), bundle.pack(network, config)):
        with pytest.raises(InputError, match="int8 once it is quantised: segbatch model quantize"):
            unpack_model(packed, "cpu", options=int8)
    with pytest.raises(InputError, match="int8 once it is quantised: segbatch model quantize"):
        Model(network, config, "cpu", int8)


@pytest.mark.parametrize("number", [1, 99, 101, 20_000, 10**8])
def test_drawing_images_to_calibrate_with_takes_no_memory_for_the_others(number: int) -> None:
    tracemalloc.start()
    positions = drawn(number)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert len(set(positions)) == len(positions) == min(100, number)
    assert 0 <= min(positions) <= max(positions) < number
    assert positions == drawn(number)


@pytest.mark.long
def test_residuals_and_norms_of_a_segformer_stay_in_float() -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    network = networks.build("segformer", "mit_b0", len(CLASSES)).eval()
    config = ModelConfig("segformer", "mit_b0", network.output_stride, CLASSES)
    found = quantized(Model(network, config, "cpu"), [picture(64, 64)])
    taken = {
        target.get_node().get_type_name()
        for op in graph.deserialized(found).get_ops()
        if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
    }
    assert {"MatMul", "Convolution"} <= taken
    assert not {"Add", "MVN"} & taken


def test_nothing_is_sent_anywhere(int8_uri: str) -> None:
    assert "nncf" in sys.modules
    assert sys.modules["openvino_telemetry"] is None


def test_a_quantised_bundle_is_described_and_listed(model_uri: str, int8_uri: str) -> None:
    facts = bundle.describe(int8_uri)
    assert facts["arch"] == "graph"
    assert facts["input"]["layout"] == "NHWC"
    assert set(facts["files"]) == {"config.json", "model.xml", "model.bin"}
    assert "computed in int8 on CPUs" in (Path(int8_uri) / "README.md").read_text()
    assert int8_uri in [uri for uri, _ in bundle.list_bundles(str(Path(int8_uri).parent))]
    assert bundle.fingerprint(int8_uri) != bundle.fingerprint(model_uri)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "torch"}, "the model is a graph, which runs with OpenVINO"),
        ({"precision": "fp32"}, "the model computes in int8, not in fp32: set auto"),
    ],
)
def test_what_a_quantised_bundle_cannot_do_is_said(
    int8_uri: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(int8_uri, "cpu", **arguments)


def test_a_graph_is_neither_trained_nor_exported(int8_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a graph, which can only predict"):
        export_onnx(int8_uri, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="is a graph, which can only predict"):
        bundle.load_bundle(int8_uri)
