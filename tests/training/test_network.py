"""The initial network: classification weights in its backbone, or a model of other classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from segbatch.config.training import FromBackbone, FromBundle
from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import networks
from segbatch.model.bundle import load_bundle, save_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network
from segbatch.training.network import build_network

CLASSES = Classes(["wall", "window", "door"])

State = dict[str, Tensor]


def of_torchvision(name: str) -> State:
    """A classification network's state_dict, as torchvision publishes them."""
    return torchvision.models.get_model(name, weights=None, num_classes=3).state_dict()


def of_timm(name: str) -> State:
    state: State = timm.create_model(name, num_classes=3).state_dict()
    return state


def saved(state: Mapping[str, Any], folder: Path) -> str:
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


def started(uri: str | None, backbone: str, arch: str = "deeplabv3plus") -> Network:
    keys = FromBackbone(arch=arch, backbone=backbone, backbone_weights=uri)  # type: ignore[arg-type]
    network, config = build_network(keys, CLASSES, lambda line: None)
    assert (config.arch, config.backbone, config.classes) == (arch, backbone, CLASSES)
    assert config.output_stride == network.output_stride
    return network


def trunk_of(network: Network) -> State:
    return network.get_submodule(network.trunk_key).state_dict()


# --------------------------------------------------------------------------- weights of a backbone


@pytest.mark.parametrize(
    ("arch", "backbone", "prefix", "theirs"),
    [
        ("deeplabv3plus", "mobilenet_v2", "", "mobilenet_v2"),
        ("deeplabv3plus", "resnet18", "", "resnet18"),
        ("deeplabv3", "resnet50", "", "resnet50"),
        ("deeplabv3", "mobilenet_v3_large", "features.", "mobilenet_v3_large"),
    ],
)
def test_a_backbone_takes_torchvisions_weights(
    arch: str, backbone: str, prefix: str, theirs: str, tmp_path: Path
) -> None:
    state = of_torchvision(theirs)
    trunk = trunk_of(started(saved(state, tmp_path), backbone, arch))
    assert len(trunk) > 100
    for key, value in trunk.items():
        assert torch.equal(value, state[prefix + key]), key


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_backbone_takes_timms_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = timm.create_model(name, num_classes=3).eval()
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in classifier.state_dict().items()
    }
    classifier.load_state_dict(state)
    trunk = trunk_of(started(saved(state, tmp_path), f"tu-{name}"))

    # timm's own network for features, without the dilation that a segmentation network has.
    features = timm.create_model(name, features_only=True, pretrained=False).eval()
    features.load_state_dict({key.removeprefix("model."): v for key, v in trunk.items()})
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(features(images)[-1], expected[-1])


def test_a_file_may_be_of_older_torch_and_without_counters(tmp_path: Path) -> None:
    state = of_timm("test_resnet")
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert counters
    old = {f"module.{key}": value for key, value in state.items() if key not in counters}
    trunk = trunk_of(started(saved({"state_dict": old}, tmp_path), "tu-test_resnet"))
    assert torch.equal(trunk["model.conv1.0.weight"], state["conv1.0.weight"])


def test_pixels_are_normalised_as_for_the_weights_of_the_backbone(tmp_path: Path) -> None:
    def config_of(backbone: str, weights: str | None) -> ModelConfig:
        keys = FromBackbone(arch="unet", backbone=backbone, backbone_weights=weights)  # type: ignore[arg-type]
        return build_network(keys, CLASSES, lambda line: None)[1]

    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    of_test_resnet = saved(of_timm("test_resnet"), tmp_path)
    found = config_of("tu-test_resnet", of_test_resnet)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    random = config_of("tu-test_resnet", None)
    assert (random.mean, random.std) == imagenet
    found = config_of("resnet18", saved(of_torchvision("resnet18"), tmp_path))
    assert (found.mean, found.std) == imagenet


@pytest.mark.parametrize(
    ("backbone", "state", "trouble"),
    [
        ("resnet34", lambda: of_torchvision("resnet18"), "they lack layer1.2.conv1.weight"),
        ("resnet18", lambda: of_torchvision("resnet34"), "they have layer1.2.conv1.weight, which"),
        ("resnet18", lambda: of_torchvision("resnet50"), "have another shape at layer1.0.conv1"),
        ("resnet18", lambda: of_torchvision("mobilenet_v2"), "they lack conv1.weight"),
        ("tu-test_resnet", lambda: {"fc.weight": torch.zeros(3, 3)}, "they lack model.conv1.0"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(
    backbone: str, state: Any, trouble: str, tmp_path: Path
) -> None:
    uri = saved(state(), tmp_path)
    with pytest.raises(ModelError) as error:
        started(uri, backbone)
    message = str(error.value)
    assert message.startswith(f"{uri}: not weights of this backbone: ")
    assert trouble in message
    assert "set model.backbone" in message
    assert "\n" not in message


def test_what_is_no_file_of_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth: no such file"):
        started(str(tmp_path / "none.pth"), "tu-test_resnet")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ModelError, match=r"text\.pth: "):
        started(str(tmp_path / "text.pth"), "tu-test_resnet")


def test_without_weights_all_is_new_and_follows_from_torchs_seed() -> None:
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(started(None, "tu-test_resnet").state_dict())
    first, same, other = networks
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    key = "encoder.model.conv1.0.weight"
    assert not torch.equal(first[key], other[key])


# ------------------------------------------------------------------------------------- from a model


def bundle_of(folder: Path, names: list[str], arch: str, backbone: str) -> str:
    """A model of random weights whose head tells which row belongs to which class."""
    torch.manual_seed(5)
    network = networks.build(arch, backbone, len(names))
    head = network.get_submodule(network.head_key)
    with torch.no_grad():
        for number in range(len(names)):
            head.weight[number] = 100 + number
            head.bias[number] = 200 + number
    config = ModelConfig(
        arch, backbone, network.output_stride, Classes(names),
        long_side=320, metrics={"miou": 0.5}, provenance={"trained_on": "x"},
    )  # fmt: skip
    save_bundle(str(folder / "model"), network, config)
    return str(folder / "model")


def rows(network: Network) -> list[tuple[set[float], float]]:
    """Values of each row of the head, and its bias."""
    head = network.get_submodule(network.head_key)
    assert isinstance(head, torch.nn.Conv2d)
    assert head.bias is not None
    biases = head.bias.tolist()
    return [
        (set(row.flatten().tolist()), bias) for row, bias in zip(head.weight, biases, strict=True)
    ]


def test_a_model_of_the_same_classes_goes_on_as_it_is(tmp_path: Path) -> None:
    uri = bundle_of(tmp_path, ["wall", "window", "door"], "deeplabv3plus", "tu-test_resnet")
    said: list[str] = []
    network, config = build_network(FromBundle(**{"from": uri}), CLASSES, said.append)
    assert said == []
    old, _ = load_bundle(uri)
    assert network.state_dict().keys() == old.state_dict().keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in old.state_dict().items())
    assert config.provenance == {"started_from": uri}
    assert config.metrics == {}  # those are of the old model


def test_classes_of_the_same_name_keep_their_rows_wherever_they_stand(tmp_path: Path) -> None:
    uri = bundle_of(tmp_path, ["sky", "door", "wall"], "deeplabv3plus", "tu-test_resnet")
    said: list[str] = []
    network, config = build_network(FromBundle(**{"from": uri}), CLASSES, said.append)
    wall, window, door = rows(network)
    assert wall == ({102.0}, 202.0)
    assert door == ({101.0}, 201.0)
    assert len(window[0]) > 1  # new random values
    assert max(map(abs, window[0])) < 10
    assert config.classes == CLASSES
    assert said == [f"{uri}: head rebuilt; classes kept: wall, door; new: window"]
    # Everything before the head is the old model's.
    old, _ = load_bundle(uri)
    for key, value in old.state_dict().items():
        if not key.startswith("segmentation_head."):
            assert torch.equal(value, network.state_dict()[key]), key


def test_classes_in_another_order_are_moved(tmp_path: Path) -> None:
    uri = bundle_of(tmp_path, ["door", "wall", "window"], "deeplabv3plus", "tu-test_resnet")
    said: list[str] = []
    network, _ = build_network(FromBundle(**{"from": uri}), CLASSES, said.append)
    assert [bias for _, bias in rows(network)] == [201.0, 202.0, 200.0]
    assert said == [f"{uri}: head rebuilt; classes kept: wall, window, door; new: none"]


def test_colours_do_not_make_other_classes(tmp_path: Path) -> None:
    uri = bundle_of(tmp_path, ["wall", "window", "door"], "deeplabv3plus", "tu-test_resnet")
    colours = Classes(["wall", "window", "door"], [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    said: list[str] = []
    network, config = build_network(FromBundle(**{"from": uri}), colours, said.append)
    assert said == []
    assert [bias for _, bias in rows(network)] == [200.0, 201.0, 202.0]
    assert config.classes == colours


def test_an_auxiliary_head_is_new_and_does_not_get_into_the_model(tmp_path: Path) -> None:
    uri = bundle_of(tmp_path, ["wall", "window"], "deeplabv3", "mobilenet_v3_large")
    network, config = build_network(FromBundle(**{"from": uri}), CLASSES, lambda line: None)
    auxiliary = [key for key in network.state_dict() if key.startswith("aux_classifier.")]
    assert network.state_dict()["aux_classifier.4.weight"].shape[0] == 3
    assert auxiliary
    network.train()
    main, other = network.heads(torch.rand(2, 3, 64, 64))
    assert other is not None
    assert main.shape[1] == other.shape[1] == 3

    # As the job makes a bundle of a checkpoint.
    trained = config.build()
    trained.load_state_dict(network.without_auxiliary(network.state_dict()))
    save_bundle(str(tmp_path / "next"), trained, config)
    loaded, _ = load_bundle(str(tmp_path / "next"))
    assert not any(key.startswith("aux_classifier.") for key in loaded.state_dict())
    torch.testing.assert_close(loaded.coarse(torch.ones(1, 3, 64, 64)),
                               network.eval().coarse(torch.ones(1, 3, 64, 64)))  # fmt: skip


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none/config\.json: no such file"):
        build_network(FromBundle(**{"from": str(tmp_path / "none")}), CLASSES, lambda line: None)
