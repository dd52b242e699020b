"""The training loop and its augmentation, on pictures small enough to learn in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from segbatch.training.augment import augmented
from segbatch.training.loop import Fitted, fit, settle_batchnorm
from segbatch.training.metrics import ConfusionMatrix

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
COLORS = np.array([[40, 40, 40], [200, 60, 60], [60, 90, 200]], np.uint8)

Array = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For networks this small threads cost more than they give, most on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def squares(seed: int) -> tuple[Array, Array]:
    """A picture of two coloured squares on grey, with noise, and its label map."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros((40, 48), np.uint8)
    for class_id in (1, 2):
        top, left = rng.integers(0, 28, 2)
        label_map[top : top + 12, left : left + 12] = class_id
    noisy = COLORS[label_map] + rng.normal(0, 12, (40, 48, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), label_map


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(12, 3, 1),
    )


def trained(module: nn.Module, steps: int = 60, seed: int = 0) -> Fitted:
    images, label_maps = zip(*(squares(index) for index in range(6)), strict=True)
    return fit(
        module, images, label_maps,
        steps=steps, batch_size=4, crop=32, lr=0.05, mean=MEAN, std=STD, seed=seed,
    )  # fmt: skip


def test_the_loss_falls_and_unseen_pictures_are_understood() -> None:
    module = network()
    losses = trained(module).losses
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    assert not module.training

    matrix = ConfusionMatrix(3)
    for index in range(100, 104):
        image, label_map = squares(index)
        normal = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.inference_mode():
            matrix.update(label_map, module(normal)[0].argmax(0).numpy().astype(np.uint8))
    assert matrix.miou() > 0.9


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    modules = [network() for _ in range(3)]
    for module, seed in zip(modules, (1, 1, 2), strict=True):
        torch.rand(1)  # what was drawn before does not matter
        trained(module, steps=5, seed=seed)
    first, same, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in modules)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_progress_is_told_step_by_step() -> None:
    images, label_maps = zip(*(squares(index) for index in range(3)), strict=True)
    told: list[tuple[int, float]] = []
    fitted = fit(
        network(), images, label_maps, steps=3, batch_size=2, crop=16, lr=0.01, mean=MEAN, std=STD,
        on_step=lambda step, loss: told.append((step, loss)),
    )  # fmt: skip
    assert told == list(enumerate(fitted.losses, start=1))


def test_batch_norm_is_settled_on_the_mean_of_all_batches() -> None:
    norm = nn.BatchNorm2d(1)
    norm(torch.full((2, 1, 4, 4), 100.0))  # a stale past
    settle_batchnorm(norm, iter([torch.full((2, 1, 4, 4), value) for value in (1.0, 3.0)]))
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(2)
    assert norm.momentum == 0.1
    assert not norm.training


@pytest.mark.parametrize(
    ("images", "label_maps", "batch_size", "message"),
    [
        ([], [], 2, "0 images"),
        ([np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 5), np.uint8)], 2, "image 0"),
        ([np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 4), np.uint8)], 1, "at least 2"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    images: list[Array], label_maps: list[Array], batch_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(
            network(), images, label_maps,
            steps=1, batch_size=batch_size, crop=4, lr=0.1, mean=MEAN, std=STD,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_augmenting_moves_picture_and_label_map_together(seed: int) -> None:
    label_map = squares(seed)[1]
    image = COLORS[label_map]
    picture, labels = augmented(
        np.random.default_rng(seed), image, label_map,
        crop=32, scale_range=(0.5, 2), color_jitter=0, fill=(0, 0, 0),
    )  # fmt: skip
    assert picture.shape == (32, 32, 3)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}  # never an id between two others
    known = labels != 255
    distance = np.abs(picture.astype(int) - COLORS[np.where(known, labels, 0)]).max(axis=2)
    # Only where picture and label map are scaled over an edge may they differ.
    assert np.mean(distance[known] > 60) < 0.1
    assert not picture[~known].any()
