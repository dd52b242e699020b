"""Bundles: round trip, import of weights, and every way in which a bundle can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import torchvision

from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import bundle
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.config import ModelConfig
from segbatch.model.predict import unpack_model
from tests.model.conftest import CLASSES, config_of


@pytest.fixture
def saved(networks, tmp_path) -> Path:
    """A good bundle of DeepLabV3+ MobileNetV2."""
    network = networks["deeplabv3plus"]
    bundle.save_bundle(str(tmp_path / "good"), network, config_of(network, "deeplabv3plus"))
    return tmp_path / "good"


def refused(uri: Path | str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as error:
        bundle.load_bundle(str(uri))
    assert "\n" not in str(error.value)
    assert str(uri) in str(error.value)


def test_a_bundle_comes_back_as_it_was(networks, tmp_path):
    network = networks["deeplabv3plus"]
    config = ModelConfig(
        arch="deeplabv3plus",
        backbone="mobilenet_v2",
        output_stride=16,
        classes=Classes(["wall", "große Tür", "c", "d", "e"], [(1, 2, 3), *[None] * 4]),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.25),
        long_side=1024,
        metrics={"miou": 0.5, "iou": {"wall": 0.25, "c": None}},
        provenance={"dataset": "s3://bucket/labels"},
    )
    uri = str(tmp_path / "models" / "facades")
    bundle.save_bundle(uri, network, config)
    module, loaded = bundle.load_bundle(uri)
    assert loaded == config
    assert not module.training
    for key, value in network.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    card = Path(uri, "README.md").read_text()
    assert "große Tür" in card
    assert "miou: 0.5" in card


def test_a_packed_model_crosses_to_another_process_as_it_was(saved):
    module, config = bundle.load_bundle(str(saved))
    packed = pickle.loads(pickle.dumps(bundle.pack(module, config), protocol=5))
    unpacked = unpack_model(packed, device="cpu")
    assert unpacked.config == config
    assert not unpacked.module.training
    for key, value in module.state_dict().items():
        assert torch.equal(unpacked.module.state_dict()[key], value), key
    with torch.no_grad():  # a network of its own: what it learns changes no other
        next(unpacked.module.parameters()).add_(1)
    assert not torch.equal(next(packed.unpack().parameters()), next(unpacked.module.parameters()))


def test_a_bundle_of_an_earlier_version_loads_unchanged(saved):
    config = json.loads((saved / "config.json").read_text())
    before = bundle.load_config(str(saved))
    for key in ("format", "library", "options"):
        del config[key]
    (saved / "config.json").write_text(json.dumps(config))
    assert bundle.load_config(str(saved)) == before


def test_config_json_is_written_last(networks, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("segbatch.storage.write_bytes", lambda uri, _data: written.append(uri))
    network = networks["deeplabv3plus"]
    bundle.save_bundle(str(tmp_path / "m"), network, config_of(network, "deeplabv3plus"))
    assert written[-1].endswith("/config.json")
    assert len(written) == 3


def test_a_folder_without_config_json_does_not_load(saved):
    (saved / "config.json").unlink()
    refused(saved, "no such file.*model import")


def test_a_bundle_without_weights_does_not_load(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors: no such file")


@pytest.mark.parametrize("keep", [0, 4, 1000, 100_000])
def test_truncated_weights_are_refused(saved, keep):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(saved, "damaged")


def test_a_pickle_named_safetensors_is_refused(saved, tmp_path):
    (saved / "model.safetensors").write_bytes(pickle.dumps(Explosive(tmp_path / "ran")))
    refused(saved, "not a safetensors file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "config.json: not a model's configuration"),
        (lambda text: "[1, 2]", "not a JSON object"),
        (lambda text: text.replace('"backbone"', '"backbon"'), "backbone: missing"),
        (lambda text: text.replace('"metrics"', '"scores"'), "scores: unknown"),
        (lambda text: text.replace("mobilenet_v2", "mobilenet_v3"), "did you mean"),
        (lambda text: text.replace('"output_stride": 16', '"output_stride": "x"'), "output_stride"),
        (lambda text: text.replace('"long_side": null', '"long_side": -3'), "long_side: -3"),
        (lambda text: text.replace("0.485", '"red"'), "mean: .*not three numbers"),
        (lambda text: text.replace("0.229", "0"), "std: .*above 0"),
        (lambda text: text.replace('"name": "wall"', '"name": ""'), "class name ''"),
        (lambda text: text.replace('"name": "wall"', r'"name": "a\u0000"'), "control characters"),
        (lambda text: text.replace('"name": "wall"', r'"name": "\ud800"'), "control characters"),
        (lambda text: text.replace('"wall"', f'"{"x" * 10**6}"'), "1 to 200 characters"),
        (lambda text: text.replace('"long_side": null', f'"long_side": {10**12}'), "long_side: 10"),
        (lambda text: text.replace("0.485", "NaN"), "mean: .*not three numbers"),
        (lambda text: text.replace("0.485", "9" * 400), "mean: .*9999"),
        (lambda text: text.replace("0.485", "123.7"), "mean: .*from 0 to 1"),
        (lambda text: text.replace("0.229", "NaN"), "std: .*not three numbers"),
        (lambda text: text.replace(": 16", f": {'9' * 5000}"), "Exceeds the limit"),
        (lambda text: text.replace("mobilenet_v2", "tu-hf-hub:evil/model"), "backbone: .*no name"),
        (lambda text: text.replace("mobilenet_v2", "../../x"), "backbone: .*no name"),
        (
            lambda text: text.replace('"format": 2', '"format": 3'),
            "newer segbatch: install a newer",
        ),
        (lambda text: text.replace('"library": null', '"library": "my"'), "library: 'my' is none"),
        (lambda text: text.replace('"options": {}', '"options": {"depth": 3}'), "unknown options"),
        (lambda text: text.replace('"options": {}', '"options": {"a": {"b": {}}}'), "options.a"),
        (lambda text: text.replace('"options": {}', '"options": {"a": "../x"}'), "no name"),
        (lambda text: "[" * 100_000, "recursion"),
        (lambda text: " " * 10_000_001 + text, "too large for a model's configuration"),
        (
            lambda text: json.dumps(
                {**json.loads(text), "classes": [{"id": n, "name": f"c{n}"} for n in range(10**4)]}
            ),
            "10000 classes",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_key(saved, change, message):
    config = saved / "config.json"
    config.write_text(change(config.read_text()))
    with pytest.raises(ModelError, match=message) as error:
        bundle.load_bundle(str(saved))
    assert "\n" not in str(error.value)


def header_of(weights: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": [2**62, 2**62]}, {"shape": [-1]}, {"data_offsets": [0, 10**15]},
        {"data_offsets": [-4, 4]}, {"dtype": "EVIL"}, {"dtype": "BOOL"},
    ],
)  # fmt: skip
def test_weights_whose_header_lies_are_refused(saved, lie):
    weights = saved / "model.safetensors"
    header, data = header_of(weights.read_bytes())
    header["segmentation_head.0.bias"].update(lie)
    weights.write_bytes(with_header(header, data))
    refused(saved, "damaged")


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1])
def test_weights_with_a_header_of_another_length_are_refused(saved, length):
    weights = saved / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    refused(saved, "damaged")


def test_weights_that_are_no_numbers_are_refused(saved):
    weights = saved / "model.safetensors"
    header, data = header_of(weights.read_bytes())
    weights.write_bytes(with_header(header, b"\xff" * len(data)))
    refused(saved, "not finite numbers")


def test_a_configuration_of_fewer_classes_than_the_weights_have_is_refused(saved):
    values = json.loads((saved / "config.json").read_text())
    values["classes"].pop()
    (saved / "config.json").write_text(json.dumps(values))
    refused(saved, "these weights know 5 classes, but 4 were given")


def test_the_sha256_follows_weights_and_configuration_but_not_the_card(saved):
    before = bundle.bundle_sha256(str(saved))
    assert bundle.fingerprint(str(saved)) == before
    (saved / "README.md").write_text("better words")
    assert bundle.bundle_sha256(str(saved)) == before
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"long_side": null', '"long_side": 512'))
    assert bundle.bundle_sha256(str(saved)) != before


# ---------------------------------------------------------------------------------- importing


def torchvision_state(num_classes: int = 5) -> dict[str, torch.Tensor]:
    return torchvision.models.get_model(
        "deeplabv3_mobilenet_v3_large",
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        aux_loss=True,
    ).state_dict()


def import_torchvision(weights: Path, target: Path, classes: Classes = CLASSES) -> ModelConfig:
    known = Known("deeplabv3", "mobilenet_v3_large", classes, long_side=512)
    return import_model(str(weights), str(target), known)


WRAPPINGS = {
    "bare": lambda state: state,
    "under state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "under model": lambda state: {"model": state, "args": None},
    "of DDP": lambda state: {f"module.{key}": value for key, value in state.items()},
    "of DDP, compiled": lambda state: {
        "model": {f"module._orig_mod.{key}": value for key, value in state.items()}
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_state_dict_of_torchvision_becomes_a_bundle(tmp_path, wrapping):
    state = torchvision_state()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "weights.pth")
    config = import_torchvision(tmp_path / "weights.pth", tmp_path / "m")
    module, loaded = bundle.load_bundle(str(tmp_path / "m"))
    assert loaded == config
    assert (loaded.long_side, loaded.output_stride) == (512, 16)
    assert torch.equal(module.state_dict()["classifier.4.bias"], state["classifier.4.bias"])
    assert not any(key.startswith("aux") for key in module.state_dict())


def test_a_state_dict_of_smp_in_safetensors_becomes_a_bundle(tmp_path):
    network = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=5)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    known = Known("deeplabv3plus", "mobilenet_v2", CLASSES, output_stride=8)
    import_model(str(tmp_path / "w.safetensors"), str(tmp_path / "m"), known)
    module, config = bundle.load_bundle(str(tmp_path / "m"))
    assert config.output_stride == module.output_stride == 8
    assert torch.equal(
        module.state_dict()["encoder.features.0.0.weight"], network.encoder.features[0][0].weight
    )


class Explosive:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": Explosive(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="could run code") as error:
        import_torchvision(tmp_path / "weights.pth", tmp_path / "m")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged|not a file of torch.save"),
        (b"not weights at all", "not a file of torch.save"),
        (b"PK\x03\x04 half a zip", "damaged|not a file of torch.save"),
        ([1, 2], "holds a list"),
        ({}, "not a state_dict"),
        ({"epoch": 3}, "no state_dict in it; it has epoch"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelError, match=message) as error:
        import_torchvision(path, tmp_path / "m")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path, protocol):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Explosive(tmp_path / "ran"), protocol))
    with pytest.raises(ModelError, match="could run code"):
        import_torchvision(tmp_path / "w.pth", tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda t: t.to_sparse(), "not finite numbers"),
        (lambda t: t.to("meta"), "not finite numbers"),
        (lambda t: t * float("inf"), "not finite numbers"),
        (lambda t: t.to(torch.complex64), "is torch.complex64"),
        (lambda t: t.to(torch.int8), "is torch.int8"),
        (lambda t: torch.zeros(1).expand(10**12), r"\(1000000000000,\), must be"),
    ],
)
def test_odd_tensors_are_refused(tmp_path, odd, message):
    state = torchvision_state()
    torch.save({**state, "classifier.1.weight": odd(state["classifier.1.weight"])}, tmp_path / "w")
    with pytest.raises(ModelError, match=message):
        import_torchvision(tmp_path / "w", tmp_path / "m")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"weights\.pth: no such file"):
        import_torchvision(tmp_path / "weights.pth", tmp_path / "m")


def renamed(state):
    return {f"x.{key}" if key.startswith("cl") else key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"lack classifier\.0.* and \d+ more and have x\.classifier\.0.*does not"),
        (lambda state: state | {"extra": torch.zeros(1)}, "have extra, which"),
        (
            lambda state: state | {"classifier.1.weight": torch.zeros(2, 2)},
            r"classifier\.1\.weight is \(2, 2\), must be \(256, 256, 3, 3\)",
        ),
        (lambda _: torchvision_state(21), "these weights know 21 classes, but 5 were given"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_differences(tmp_path, change, message):
    torch.save(change(torchvision_state()), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=message) as error:
        import_torchvision(tmp_path / "weights.pth", tmp_path / "m")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------- inspection


def test_bundles_below_a_folder_are_listed_and_torn_ones_left_out(saved, networks):
    network = networks["deeplabv3"]
    deeper = saved.parent / "old" / "2025"
    bundle.save_bundle(str(deeper), network, config_of(network, "deeplabv3"))
    torn = saved.parent / "torn"
    bundle.save_bundle(str(torn), network, config_of(network, "deeplabv3"))
    (torn / "config.json").unlink()
    listed = dict(bundle.list_bundles(str(saved.parent)))
    assert {uri: config.arch for uri, config in listed.items()} == {
        str(saved): "deeplabv3plus",
        str(deeper): "deeplabv3",
    }


def test_a_bundle_is_described_with_parameters_and_sizes(saved, networks):
    facts = bundle.describe(str(saved))
    parameters = sum(p.numel() for p in networks["deeplabv3plus"].parameters())
    assert facts["parameters"] == parameters
    assert facts["files"]["model.safetensors"] == (saved / "model.safetensors").stat().st_size
    assert facts["sha256"] == bundle.bundle_sha256(str(saved))
    assert facts["classes"][1]["name"] == "wall"
    json.dumps(facts)
