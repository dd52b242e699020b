"""The recipe: what the keys under ``train:`` do."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from segbatch.config.training import Schedule
from segbatch.model import networks
from segbatch.training.recipe import (
    batch_norms,
    make_optimizer,
    median_frequency,
    seed_everything,
    set_learning_rates,
    set_train_mode,
    synchronise_norms,
)
from tests.training import toy


@pytest.fixture(scope="module")
def network() -> networks.Network:
    return networks.build("deeplabv3plus", "tu-test_resnet", 4, 8)


def optimizer_of(network: networks.Network, **keys: Any) -> torch.optim.Optimizer:
    return make_optimizer(network, network.get_submodule("encoder"), toy.recipe(optimizer=keys))


def settings(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer does to each weight, by its name."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(p)] for name, p in network.named_parameters()}


def test_the_head_learns_ten_times_as_fast_as_the_backbone(network: networks.Network) -> None:
    optimizer = optimizer_of(network, lr=0.02)
    assert isinstance(optimizer, SGD)
    set_learning_rates(optimizer, Schedule(), 0, 100)
    for name, group in settings(network, optimizer).items():
        assert group["lr"] == pytest.approx(0.02 if name.startswith("encoder.") else 0.2), name
        assert group["momentum"] == 0.9
    optimizer = optimizer_of(network, lr=0.02, head_lr_factor=3.0, momentum=0.5)
    set_learning_rates(optimizer, Schedule(), 0, 100)
    groups = settings(network, optimizer)
    assert groups["segmentation_head.0.weight"]["lr"] == pytest.approx(0.06)
    assert groups["segmentation_head.0.weight"]["momentum"] == 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_and_biases_and_norms_do_not(network: networks.Network, name: str) -> None:
    optimizer = optimizer_of(network, name=name, weight_decay=0.03)
    of_norms = {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in ("weight", "bias")
    }
    groups = settings(network, optimizer)
    assert of_norms < groups.keys()
    for key, group in groups.items():
        spared = key in of_norms or key.endswith(".bias")
        assert group["weight_decay"] == (0.0 if spared else 0.03), key


def test_adamw_takes_the_momentum_as_its_first_beta(network: networks.Network) -> None:
    optimizer = optimizer_of(network, name="adamw", lr=0.001, momentum=0.8)
    assert isinstance(optimizer, AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.999)}


def rates(seen: list[int], total: int, **keys: Any) -> list[float]:
    """The share of the learning rate after each of ``seen`` images."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "peak_lr": 0.5}], lr=0.1)
    shares = []
    for images in seen:
        share = set_learning_rates(optimizer, Schedule(**keys), images, total)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * share)
        shares.append(share)
    return shares


def test_the_rate_falls_as_its_schedule_says() -> None:
    seen = [0, 250, 500, 990]
    poly = [1.0, 0.75**0.9, 0.5**0.9, 0.01**0.9]
    assert rates(seen, 1000) == pytest.approx(poly)
    assert rates(seen, 1000, power=2.0) == pytest.approx([1.0, 0.5625, 0.25, 0.0001])
    cosine = [1.0, (1 + 0.5**0.5) / 2, 0.5, 0.000247]
    assert rates(seen, 1000, name="cosine") == pytest.approx(cosine, rel=2e-3)
    assert rates(seen, 1000, name="constant") == [1.0] * 4


def test_the_rate_rises_first_in_a_straight_line_and_never_from_nothing() -> None:
    seen = [0, 25, 50, 75, 99, 100, 500]
    shares = rates(seen, 1000, name="constant", warmup=99)
    assert shares == pytest.approx([0.01, 0.26, 0.51, 0.76, 1.0, 1.0, 1.0])
    both = rates(seen, 1000, warmup=99)
    without = rates(seen, 1000)
    assert both == pytest.approx([a * b for a, b in zip(shares, without, strict=True)])


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items()
            if not torch.equal(value, before[name])}  # fmt: skip


@pytest.mark.parametrize("freeze", [None, "backbone", "batchnorm"])
def test_what_is_frozen_stays_and_everything_else_learns(freeze: str | None) -> None:
    training = toy.training(toy.recipe(freeze=freeze))
    before = state_of(training.network)
    # Also when the network was used to predict in between.
    toy.run(training, 1)
    training.network.eval()
    toy.run(training, 2)
    weights = {name for name, _ in training.network.named_parameters()}
    statistics = before.keys() - weights
    assert len(statistics) == 3
    trunk = {name for name in before if name.startswith("trunk.")}
    expected: dict[str | None, set[str]] = {
        None: weights | statistics,
        "backbone": weights - trunk,
        "batchnorm": weights,
    }
    assert changed(training.network, before) == expected[freeze]


def test_dropout_stays_on_whatever_is_frozen(network: networks.Network) -> None:
    trunk = network.get_submodule("encoder")
    set_train_mode(network, trunk, "batchnorm")
    assert not any(norm.training for norm in batch_norms(network))
    assert any(module.training for module in network.modules() if isinstance(module, nn.Dropout))
    set_train_mode(network, trunk, None)
    assert all(norm.training for norm in batch_norms(network))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "tu-mobilenetv3_small_050"])
def test_norms_that_are_synchronised_compute_what_they_did(backbone: str) -> None:
    network = networks.build("deeplabv3plus", backbone, 4).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(image)
        synchronised = synchronise_norms(network)
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(synchronised))
        torch.testing.assert_close(synchronised(image), expected)


def test_rare_classes_weigh_more_by_the_median_frequency() -> None:
    # Two images of 100 pixels. Wall: 80 and 70, window: 15 and 30, door: 5, in the first alone,
    # balcony: nowhere.
    pixels = np.array([150, 45, 5, 0])
    of_images = np.array([200, 200, 100, 0])
    # Frequencies 0.75, 0.225 and 0.05, whose median is 0.225.
    assert median_frequency(pixels, of_images) == pytest.approx([0.3, 1.0, 4.5, 0.0])


def test_random_numbers_follow_from_the_seed_and_what_is_added_to_it() -> None:
    def drawn(*seeds: int) -> tuple[float, ...]:
        seed_everything(*seeds)
        return tuple(torch.rand(4).tolist())

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(1), drawn(2), drawn(1, 1), drawn(1, 2), drawn(1, 0, 1)}) == 5
