"""The zoo: networks that are their libraries' own, and errors that say what to do."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision

from segbatch.errors import ModelError
from segbatch.masks.classes import PRESETS
from segbatch.model import networks, zoo
from segbatch.model.bundle import fingerprint, load_bundle, load_config


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_deeplabv3_is_torchvisions(image):
    theirs = torchvision.models.get_model(
        "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    ).eval()
    ours = networks.build("deeplabv3", "mobilenet_v3_large", 4).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(image), theirs(image)["out"])
    assert ours.coarse(image).shape == (1, 4, 8, 12)


@torch.inference_mode()
@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplabv3plus_is_that_of_smp(image, output_stride):
    theirs = smp.DeepLabV3Plus(
        "mobilenet_v2", encoder_weights=None, encoder_output_stride=output_stride, classes=4
    ).eval()
    ours = networks.build("deeplabv3plus", "mobilenet_v2", 4, output_stride).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(image), theirs(image))
    assert ours.coarse(image).shape == (1, 4, 32, 48)


@pytest.mark.parametrize(
    ("arch", "backbone"),
    [("deeplabv3", "mobilenet_v3_large"), ("deeplabv3plus", "tu-resnet18")],
)
def test_trunk_and_head_are_found_by_their_keys(arch, backbone):
    network = networks.build(arch, backbone, 4)
    assert network.get_submodule(network.head_key).out_channels == 4
    assert sum(1 for _ in network.get_submodule(network.trunk_key).parameters()) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deeplabv4", "resnet50", 2), "did you mean deeplabv3"),
        (("deeplabv3", "resnet-50", 2), "did you mean resnet50"),
        (("deeplabv3", "vgg", 2), "known: resnet50, resnet101, mobilenet_v3_large"),
        (("deeplabv3plus", "mobilenet_v9", 2), "did you mean mobilenet_v2"),
        (("deeplabv3plus", "tu-vit_tiny_patch16_224", 2), "cannot be built on"),
        (("deeplabv3plus", "densenet121", 2), "do not support dilated mode"),
        (("deeplabv3plus", "tu-nonsense", 2), "Unknown model"),
        (("deeplabv3", "resnet50", 2, 16), "has output_stride 8, not 16"),
        (("deeplabv3plus", "mobilenet_v2", 2, 32), "8 or 16, not 32"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments, message):
    with pytest.raises(ModelError, match=message) as error:
        networks.build(*arguments)
    assert "\n" not in str(error.value)


def test_zoo_models_are_described_without_a_network():
    config = load_config("zoo:deeplabv3_resnet50")
    assert (config.arch, config.backbone, config.output_stride) == ("deeplabv3", "resnet50", 8)
    assert config.classes == PRESETS["voc"]
    prints = {fingerprint(f"zoo:{name}") for name in zoo.ZOO}
    assert len(prints) == len(zoo.ZOO) == 3
    assert all(len(one) == 64 for one in prints)


def test_an_unknown_zoo_model_is_refused_with_a_suggestion():
    with pytest.raises(ModelError, match="did you mean deeplabv3_resnet50"):
        load_config("zoo:deeplabv3_resnet5")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache."""

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_published_weights_without_a_network_say_what_where_and_what_to_do():
    with pytest.raises(ModelError) as error:
        load_bundle("zoo:deeplabv3_mobilenet_v3_large")
    message = str(error.value)
    assert "\n" not in message
    for part in ("zoo:deeplabv3_mobilenet_v3_large", "Name or service", "https://", "checkpoints"):
        assert part in message


@pytest.mark.usefixtures("offline")
def test_backbone_weights_without_a_network_say_what_to_set():
    with pytest.raises(
        ModelError, match=r"ImageNet weights of mobilenet_v3_large.*backbone_weights"
    ):
        networks.build("deeplabv3", "mobilenet_v3_large", 3, pretrained=True)


def test_published_weights_are_loaded_without_their_auxiliary_head(monkeypatch):
    published = torchvision.models.get_model(
        "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, aux_loss=True
    ).eval()
    monkeypatch.setattr(
        torchvision.models.WeightsEnum,
        "get_state_dict",
        lambda *_args, **_kwargs: published.state_dict(),
    )
    network, config = load_bundle("zoo:deeplabv3_mobilenet_v3_large")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), published(image)["out"])
    assert len(config.classes) == 21
