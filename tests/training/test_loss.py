"""The losses equal their definitions, and are finite for every crop."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from segbatch.config.training import Loss
from segbatch.masks.classes import Classes
from segbatch.model import networks, zoo
from segbatch.model.config import ModelConfig
from segbatch.model.networks import torchvision
from segbatch.model.predict import Model
from segbatch.training.loss import LOSSES, NetworkWithLoss
from segbatch.training.recipe import set_train_mode
from tests.training.toy import MEAN, STD

NUM_CLASSES = 4


class Given(nn.Module):
    """A network that returns given logits and records its input."""

    align_corners = False
    size_multiple = 1

    def __init__(self, logits: Tensor, auxiliary: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.auxiliary = auxiliary
        self.seen: list[Tensor] = []

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen.append(images)
        return self.logits, self.auxiliary


def logits_of(size: tuple[int, int] = (8, 10), seed: int = 0) -> Tensor:
    return torch.randn(2, NUM_CLASSES, *size, generator=torch.Generator().manual_seed(seed)) * 2


def truth_of(size: tuple[int, int] = (8, 10), seed: int = 0) -> Tensor:
    """Label maps in which a third of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(NUM_CLASSES, (2, *size), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.33] = 255
    return truth


def measured(
    name: str, logits: Tensor, truth: Tensor, weights: list[float] | None = None, **keys: Any
) -> tuple[float, Tensor]:
    """The loss, and its gradient to the logits."""
    network = Given(logits)
    objective = NetworkWithLoss(network, Loss(name=name, **keys), MEAN, STD, weights)  # type: ignore[arg-type]
    pixels = torch.zeros(*truth.shape, 3, dtype=torch.uint8)
    loss = objective(pixels, truth)
    loss.backward()
    assert network.logits.grad is not None
    return loss.item(), network.logits.grad


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_falls_when_the_logits_are_right(name: str) -> None:
    truth = truth_of()
    one_hot = nn.functional.one_hot(truth.where(truth != 255, 0), NUM_CLASSES)
    right = one_hot.movedim(3, 1) * 40.0 - 20.0
    random, gradient = measured(name, logits_of(), truth)
    assert random > 0.1
    assert gradient.isfinite().all()
    assert 0 <= measured(name, right, truth)[0] < 0.01
    # And a step against the gradient makes it smaller.
    assert measured(name, logits_of() - gradient, truth)[0] < random


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_that_are_ignored_have_no_say(name: str) -> None:
    logits, truth = logits_of(), truth_of()
    loss, gradient = measured(name, logits, truth)
    ignored = (truth == 255)[:, None].expand_as(logits)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()
    # Not even with extreme logits.
    assert measured(name, logits.where(~ignored, 1e4), truth)[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_crop_without_any_known_pixel_is_worth_nothing(name: str) -> None:
    loss, gradient = measured(name, logits_of(), torch.full((2, 8, 10), 255))
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_known_pixel_is_enough(name: str) -> None:
    truth = torch.full((2, 8, 10), 255)
    truth[1, 3, 4] = 2
    loss, gradient = measured(name, logits_of(), truth)
    assert np.isfinite(loss)
    assert gradient.isfinite().all()
    assert gradient[1, :, 3, 4].any()


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0]])
def test_cross_entropy_is_that_of_torch(weights: list[float] | None) -> None:
    logits, truth = logits_of(), truth_of()
    expected = logits.clone().requires_grad_()
    weight = None if weights is None else torch.tensor(weights)
    theirs = cross_entropy(expected, truth, weight, ignore_index=255)
    theirs.backward()
    loss, gradient = measured("cross_entropy", logits, truth, weights)
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected.grad)


@pytest.mark.parametrize("name", ["cross_entropy", "ohem"])
def test_a_crop_of_classes_without_weight_is_worth_nothing(name: str) -> None:
    truth = torch.full((2, 8, 10), 3)
    loss, gradient = measured(name, logits_of(), truth, [1.0, 1.0, 1.0, 0.0])
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]])
def test_ohem_is_the_mean_over_the_hardest_quarter(weights: list[float] | None) -> None:
    logits, truth = logits_of(), truth_of()
    known = (truth != 255).numpy()
    rows = logits.movedim(1, 3).numpy().astype(np.float64)[known]
    ids = truth.numpy()[known]
    values = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(ids)), ids]
    if weights is not None:
        values *= np.array(weights)[ids]
    hardest = np.sort(values)[::-1][: int(0.25 * len(values))]
    assert measured("ohem", logits, truth, weights)[0] == pytest.approx(hardest.mean(), rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_coarse_logits_are_brought_to_the_label_map_as_the_network_does(
    align_corners: bool,
) -> None:
    coarse, truth = logits_of((3, 4)), truth_of((24, 32))
    network = Given(coarse)
    network.align_corners = align_corners
    objective = NetworkWithLoss(network, Loss(), MEAN, STD)
    fine = interpolate(coarse, (24, 32), mode="bilinear", align_corners=align_corners)
    expected = cross_entropy(fine, truth, ignore_index=255)
    loss = objective(torch.zeros(2, 24, 32, 3, dtype=torch.uint8), truth)
    torch.testing.assert_close(loss, expected)


def test_bytes_are_normalised_as_they_are_for_predicting() -> None:
    network = Given(logits_of())
    pixels = torch.randint(256, (2, 8, 10, 3), dtype=torch.uint8)
    NetworkWithLoss(network, Loss(), zoo.IMAGENET_MEAN, zoo.IMAGENET_STD)(pixels, truth_of())
    [seen] = network.seen
    expected = (pixels.numpy() / 255 - zoo.IMAGENET_MEAN) / zoo.IMAGENET_STD
    np.testing.assert_allclose(seen.movedim(1, 3).numpy(), expected, atol=1e-5)
    assert seen.is_contiguous(memory_format=torch.channels_last)


class Brightness(nn.Module):
    """Class 1 where an image is bright; its logits have half the size of the image."""

    align_corners = False
    size_multiple = 1

    def heads(self, images: Tensor) -> tuple[Tensor, None]:
        gray = interpolate(images, scale_factor=0.5, mode="area").mean(1, keepdim=True)
        return torch.cat([-gray, gray], 1), None


def test_the_loss_at_several_scales_is_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 32, 40, 3), dtype=torch.uint8, generator=generator)
    truth = torch.randint(2, (2, 32, 40), generator=generator)

    def loss(*scales: float) -> float:
        objective = NetworkWithLoss(Brightness(), Loss(scales=list(scales)), MEAN, STD)
        return float(objective(pixels, truth))

    single = [loss(scale) for scale in (0.5, 1.0, 1.5)]
    assert len(set(single)) == 3
    assert loss(0.5, 1.0, 1.5) == pytest.approx(np.mean(single), rel=1e-6)


def test_an_image_made_smaller_is_still_seen_whole() -> None:
    network = Given(logits_of((2, 3)))
    pixels = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    pixels[:, 1::4] = pixels[:, 2::4] = 255  # two lines white, two black: on the whole grey
    objective = NetworkWithLoss(network, Loss(scales=[0.25]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    objective(pixels, truth_of((64, 96)))
    [seen] = network.seen
    assert seen.shape == (2, 3, 16, 24)
    assert (seen[:, :, 1:-1] - 0.5).abs().max() < 0.1


def test_the_auxiliary_head_counts_by_its_weight() -> None:
    logits, auxiliary, truth = logits_of(), logits_of(seed=1), truth_of()
    pixels = torch.zeros(2, 8, 10, 3, dtype=torch.uint8)
    main, other = (cross_entropy(each, truth, ignore_index=255) for each in (logits, auxiliary))
    for weight in (0.4, 1.0, 0.0):
        objective = NetworkWithLoss(Given(logits, auxiliary), Loss(auxiliary=weight), MEAN, STD)
        torch.testing.assert_close(objective(pixels, truth), main + weight * other)


def test_the_auxiliary_head_of_deeplabv3_learns_too() -> None:
    torch.manual_seed(0)
    network = networks.build("deeplabv3", "mobilenet_v3_large", NUM_CLASSES, auxiliary=True).train()
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    truth = truth_of((64, 64))

    def gradients(weight: float) -> list[Tensor]:
        torch.manual_seed(1)
        network.zero_grad()
        NetworkWithLoss(network, Loss(auxiliary=weight), MEAN, STD)(pixels, truth).backward()
        head = network.get_submodule("aux_classifier")
        return [p.grad.clone() for p in head.parameters() if p.grad is not None]

    whole, half, none = (gradients(weight) for weight in (1.0, 0.5, 0.0))
    assert len(whole) == len(half) == len(none) == 5
    assert all(gradient.any() for gradient in whole)
    torch.testing.assert_close(half, [gradient / 2 for gradient in whole])
    assert not any(gradient.any() for gradient in none)  # zeros, and not none at all


def learns_and_predicts(arch: str, backbone: str, output_stride: int | None, crop: int) -> None:
    """A step of two images, one of a single image with its norms frozen, and an upright image."""
    network = networks.build(arch, backbone, 3, output_stride, auxiliary=True)
    objective = NetworkWithLoss(network, Loss(), MEAN, STD)
    for batch, freeze in ((2, None), (1, "batchnorm")):
        set_train_mode(network, network.get_submodule(network.trunk_key), freeze)
        network.zero_grad()
        pixels = torch.randint(0, 256, (batch, crop, crop, 3), dtype=torch.uint8)
        loss = objective(pixels, torch.randint(0, 3, (batch, crop, crop)))
        loss.backward()
        assert torch.isfinite(loss)
        last = network.get_submodule(network.head_key)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in last.parameters())
    config = ModelConfig(arch, backbone, network.output_stride, Classes(["a", "b", "c"]))
    upright = np.zeros((crop, crop * 2 // 3, 3), np.uint8)
    assert Model(network, config, "cpu").predict(upright).mask.shape == upright.shape[:2]


@pytest.mark.parametrize("crop", [33, 64, 65, 100, 321, pytest.param(513, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("arch", "backbone", "output_stride"),
    [
        ("deeplabv3", "mobilenet_v3_large", 16),
        ("deeplabv3plus", "mobilenet_v2", 16),
        ("deeplabv3plus", "mobilenet_v2", 8),
        ("deeplabv3plus", "tu-mobilenetv3_small_050", 16),
    ],
)
def test_every_network_trains_and_predicts_at_any_crop(
    arch: str, backbone: str, output_stride: int, crop: int
) -> None:
    learns_and_predicts(arch, backbone, output_stride, crop)


@pytest.mark.long
@pytest.mark.parametrize("output_stride", [None, 8])
@pytest.mark.parametrize(
    ("arch", "backbone"),
    [(arch, backbone) for arch, names in networks.backbones().items() for backbone in names],
)
def test_every_listed_backbone_trains_and_predicts(
    arch: str, backbone: str, output_stride: int | None
) -> None:
    if arch == "deeplabv3" and output_stride not in (None, torchvision.STRIDES[backbone]):
        pytest.skip("torchvision's weights allow one stride")
    learns_and_predicts(arch, backbone, output_stride, crop=33)


@pytest.mark.parametrize("arch", ["deeplabv3", "deeplabv3plus"])
def test_the_smallest_crop_trains_at_the_smallest_scale(arch: str) -> None:
    backbone = {"deeplabv3": "mobilenet_v3_large", "deeplabv3plus": "mobilenet_v2"}[arch]
    network = networks.build(arch, backbone, 3, auxiliary=True)
    objective = NetworkWithLoss(network, Loss(scales=[0.25, 1.0]), MEAN, STD).train()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.isfinite(objective(pixels, torch.randint(0, 3, (2, 32, 32))))


def test_padding_a_crop_is_padding_with_the_mean_colour() -> None:
    network = networks.build("deeplabv3plus", "mobilenet_v2", 3, output_stride=16).eval()
    objective = NetworkWithLoss(network, Loss(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    pixels = torch.randint(0, 256, (1, 40, 40, 3), dtype=torch.uint8)
    truth = torch.randint(0, 3, (1, 40, 40))
    padded = torch.nn.functional.pad(pixels, (0, 0, 0, 8, 0, 8))
    void = torch.nn.functional.pad(truth, (0, 8, 0, 8), value=255)
    with torch.no_grad():
        assert torch.allclose(objective(pixels, truth), objective(padded, void), atol=1e-6)
