"""Networks: each is that of its library, and trains, exports and says what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from benchmarks.originals.fill import fill, picture
from benchmarks.originals.mmseg_deeplab import NUM_CLASSES, SIZE
from segbatch.errors import ModelError
from segbatch.model import networks
from segbatch.model.networks import smp
from segbatch.model.networks.network import AveragePool
from segbatch.model.networks.sizes import known_sizes, measure

pytestmark = pytest.mark.unit

ORIGINALS = Path(__file__).with_name("originals")

# What the names in `benchmarks/originals/mmseg_deeplab.py` are for us.
MMSEGMENTATION = {
    "plus-r50": ("deeplabv3plus", "resnet50_v1c", 8, {}),
    "plus-r50-aligned": ("deeplabv3plus", "resnet50_v1c", 8, {"align_corners": True}),
    "plus-r50b-aligned": ("deeplabv3plus", "resnet50", 8, {"align_corners": True}),
    "plus-r101-d16": ("deeplabv3plus", "resnet101_v1c", 16, {"multi_grid": [1, 2, 4]}),
    "v3-r50": ("deeplabv3", "resnet50_v1c", 8, {}),
    "plus-m2": ("deeplabv3plus", "mobilenet_v2", 8, {}),
    "v3-m2": ("deeplabv3", "mobilenet_v2", 8, {}),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", MMSEGMENTATION)
def test_deeplabs_of_mmsegmentation_give_what_the_original_gave(name: str) -> None:
    arch, backbone, stride, options = MMSEGMENTATION[name]
    network = networks.build(
        arch,
        backbone,
        NUM_CLASSES,
        stride,
        library="mmsegmentation",
        options=options,
        auxiliary=True,
    ).eval()
    fill(network)
    expected = safetensors.torch.load_file(ORIGINALS / f"{name}.safetensors")
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    coarse, auxiliary = network.heads(picture(*SIZE))
    for found, key in ((coarse, "coarse"), (auxiliary, "auxiliary")):
        assert found is not None
        difference = (found - expected[key]).abs().max() / expected[key].abs().max()
        assert difference < 1e-4
        assert (found.argmax(1) == expected[key].argmax(1)).float().mean() > 0.999


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["resnet18", "mit_b0"])
@pytest.mark.parametrize("arch", [arch for arch in smp.CLASSES if arch not in smp.DILATED])
def test_networks_of_smp_are_its_own(arch: str, backbone: str) -> None:
    theirs = smp.CLASSES[arch](backbone, encoder_weights=None, classes=4).eval()
    fill(theirs)
    ours = networks.build(arch, backbone, 4).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(picture(64, 96)), theirs(picture(64, 96)))


def test_vainfs_networks_have_the_keys_of_its_checkpoints() -> None:
    plus = networks.build("deeplabv3plus", "mobilenet_v2", 21, 16, library="vainf").state_dict()
    for key in (
        "backbone.low_level_features.0.0.weight",
        "backbone.low_level_features.3.conv.0.0.weight",
        "backbone.high_level_features.4.conv.0.0.weight",
        "backbone.high_level_features.17.conv.3.bias",
        "classifier.project.0.weight",
        "classifier.aspp.convs.4.1.weight",
        "classifier.classifier.3.bias",
    ):
        assert key in plus
    v3 = networks.build("deeplabv3", "resnet50", 21, 8, library="vainf").state_dict()
    assert {"backbone.conv1.weight", "classifier.classifier.0.project.0.weight"} <= v3.keys()
    assert v3["classifier.classifier.4.weight"].shape == (21, 256, 1, 1)


@torch.inference_mode()
def test_vainfs_mobilenet_pads_before_it_expands() -> None:
    network = networks.build("deeplabv3plus", "mobilenet_v2", 2, 16, library="vainf").eval()
    fill(network)
    block = network.get_submodule("backbone.low_level_features.2")
    features = torch.randn(1, 16, 9, 9)
    zeros_outside = nn.functional.pad(features, (1, 1, 1, 1))
    expanded = block.get_submodule("conv.0")(zeros_outside)
    assert expanded[0, :, 0, 0].abs().max() > 0  # the border is not zero: norms have biases
    assert block(features).shape == (1, 24, 5, 5)


@pytest.mark.parametrize(
    ("library", "arch", "backbone", "stride"),
    [
        ("mmsegmentation", "deeplabv3plus", "mobilenet_v2", 16),
        ("vainf", "deeplabv3plus", "mobilenet_v2", 16),
        ("vainf", "deeplabv3", "resnet50", 8),
        ("smp", "segformer", "mit_b0", None),
    ],
)
def test_the_coarse_stride_is_that_of_the_architecture(
    library: str, arch: str, backbone: str, stride: int | None
) -> None:
    network = networks.build(arch, backbone, 3, stride, library=library).eval()
    with torch.inference_mode():
        coarse = network.coarse(picture(64, 128))
    assert coarse.shape[-1] == 128 // (8 if arch == "deeplabv3" else 4)
    assert network.get_submodule(network.head_key).weight.shape[0] == 3
    assert sum(1 for _ in network.get_submodule(network.trunk_key).parameters()) > 10


@pytest.mark.parametrize("output_size", [1, 2, 3, 6, (2, 6)])
@pytest.mark.parametrize("size", [(6, 9), (7, 64), (13, 17)])
def test_pooling_by_matrices_is_torchs(
    output_size: int | tuple[int, int], size: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *size)
    expected = nn.AdaptiveAvgPool2d(output_size)(images)
    torch.testing.assert_close(AveragePool(output_size)(images), expected)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("library", "arch", "backbone"),
    [
        ("smp", "pspnet", "resnet18"),
        ("smp", "upernet", "resnet18"),
        ("transformers", "deeplabv3plus", "mobilenet_v2"),
    ],
)
def test_what_is_exported_computes_the_same(library: str, arch: str, backbone: str) -> None:
    options = {"output_stride": 8} if library == "transformers" else {}
    network = networks.build(arch, backbone, 4, library=library, options=options).eval()
    fill(network)
    image = picture(64, 128)
    torch.testing.assert_close(
        network.exportable().coarse(image), network.coarse(image), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("arch", "backbone"), [("segformer", "mit_b0"), ("unet", "resnet18")])
def test_sizes_are_those_of_the_networks(arch: str, backbone: str) -> None:
    assert measure(arch, backbone) in known_sizes()


def test_every_listed_backbone_has_a_size() -> None:
    listed = [(arch, name) for arch, names in networks.backbones().items() for name in names]
    assert sorted((size.arch, size.backbone) for size in known_sizes()) == sorted(listed)


@pytest.mark.parametrize(
    ("arguments", "keys", "message"),
    [
        (("segformer", "mit_b9", 2), {}, "did you mean mit_b"),
        (("segformer", "mit_b0", 2, 8), {}, "has output_stride 32, not 8"),
        (("unet", "resnet18", 2), {"options": {"depth": 3}}, "depth: unknown options of unet"),
        (("unet", "resnet18", 2), {"library": "mmsegmentation"}, "has a unet of"),
        (
            ("deeplabv3", "resnet18", 2),
            {"library": "mmsegmentation"},
            "resnet50_v1c.*not on resnet18",
        ),
        (("deeplabv3", "resnet50", 2, 32), {"library": "vainf"}, "8 or 16, not 32"),
        (
            ("deeplabv3plus", "mobilenet_v2", 2),
            {"library": "transformers", "options": {"trust_remote_code": 1}},
            "trust_remote_code: unknown options",
        ),
    ],
)
def test_what_no_library_has_is_refused(arguments: tuple, keys: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        networks.build(*arguments, **keys)
    assert "\n" not in str(refused.value)
