"""A training learns, resumes where it was, and gives the same result on two workers as on one."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segbatch.training import distributed
from segbatch.training.confusion import ConfusionMatrix
from segbatch.training.step import Diverged, Training
from tests.training import together, toy


def test_the_loss_falls_and_unseen_pictures_are_understood() -> None:
    given = toy.training(toy.recipe(epochs=24))
    losses = toy.run(given, given.sampler.num_steps)
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:5])

    network = given.network.eval()
    confusion = ConfusionMatrix(3)
    for seed in range(100, 104):
        image, label_map = toy.squares(seed)
        normal = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.inference_mode():
            ids = network.heads(normal)[0].argmax(1)[0]
        confusion.update(label_map, ids.numpy().astype(np.uint8))
    assert confusion.miou() > 0.9


def saved(given: Training) -> dict[str, Any]:
    """The state as a checkpoint holds it: in a file that is not unpickled."""
    file = io.BytesIO()
    torch.save(given.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_goes_on_as_if_it_had_never_stopped(optimizer: str, micro_batches: int) -> None:
    train = toy.recipe(optimizer={"name": optimizer, "lr": 0.01}, schedule={"warmup": 8})
    whole = toy.training(train, micro_batches=micro_batches)
    losses = toy.run(whole, 4, micro_batches=micro_batches)
    state = saved(whole)
    losses += toy.run(whole, 6, micro_batches=micro_batches)

    resumed = toy.training(train, toy.Toy(seed=1), micro_batches=micro_batches)
    torch.rand(5)  # what was drawn before does not matter
    resumed.load_state_dict(state)
    assert (resumed.step, resumed.images_seen) == (4, 16)
    assert toy.run(resumed, 6, micro_batches=micro_batches) == losses[4:]
    assert resumed.lr == whole.lr
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_the_seed_decides_and_nothing_else() -> None:
    first, same, other = (toy.training(toy.recipe(seed=seed)) for seed in (1, 1, 2))
    for given in (first, same, other):
        toy.run(given, 3)
        torch.rand(1)
    assert torch.equal(toy.weights(first), toy.weights(same))
    assert not torch.equal(toy.weights(first), toy.weights(other))


def test_the_rate_follows_the_images_that_were_seen() -> None:
    given = toy.training(toy.recipe(batch_size=4, optimizer={"lr": 0.5}))
    toy.run(given, 1)
    assert given.lr == 0.5
    toy.run(given, 5)
    assert given.lr == pytest.approx(0.5 * (1 - 20 / 60) ** 0.9)  # as the sixth step began
    assert (given.step, given.images_seen) == (6, 24)


def test_parts_make_the_step_of_the_mean_of_their_losses() -> None:
    train = toy.recipe(
        batch_size=8, freeze="batchnorm",
        optimizer={"lr": 0.1, "weight_decay": 0.0, "head_lr_factor": 1.0},
    )  # fmt: skip
    given, plain = (toy.training(train, toy.Toy(dropout=0.0), micro_batches=4) for _ in range(2))
    micro_batches = next(toy.loader(train, micro_batches=4).steps(0))
    assert [len(images) for images, _ in micro_batches] == [2] * 4

    network_with_loss = plain._loss
    loss = torch.stack([network_with_loss(*batch) for batch in micro_batches]).mean()
    loss.backward()
    expected = [p - 0.1 * p.grad for p in plain.network.parameters()]

    assert given.run_step(micro_batches) == pytest.approx(loss.item(), rel=1e-6)
    for parameter, value in zip(given.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    given = toy.training(toy.recipe())
    toy.run(given, 2)
    nn.init.constant_(given.network.head[1].weight, math.nan)
    with pytest.raises(Diverged, match="the loss is nan at step 3"):
        toy.run(given, 1)
    assert given.step == 2


def test_lower_precision_learns_the_same_on_the_cpu() -> None:
    losses = [
        toy.run(toy.training(toy.recipe(), precision=precision), 10)
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def test_alone_a_worker_has_nothing_to_sum_or_average() -> None:
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(distributed.all_sum(values), values)
    assert distributed.all_sum_counts(np.array([3, 4]), torch.device("cpu")).tolist() == [3, 4]
    given = toy.training(toy.recipe())
    toy.run(given, 1)
    before = saved(given)["network"]
    given.average_statistics()
    after = given.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# ------------------------------------------------------------------------------------ two workers


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together.on_two_workers(tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("kind", together.KINDS)
def test_two_workers_do_what_one_would_have_done(workers: list[dict[str, Any]], kind: str) -> None:
    (losses, weights), (other_losses, other_weights) = (worker[kind] for worker in workers)
    assert losses == other_losses
    assert torch.equal(weights, other_weights)
    alone, weights_alone = together.steps(**together.KINDS[kind])
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    torch.testing.assert_close(weights, weights_alone, rtol=1e-4, atol=1e-6)


def test_workers_take_the_mean_of_their_statistics(workers: list[dict[str, Any]]) -> None:
    one, other = (worker["averaged"] for worker in workers)
    assert torch.equal(one["weights"], other["weights"])
    for mine, theirs, after, their_after in zip(
        one["before"], other["before"], one["after"], other["after"], strict=True
    ):
        assert not torch.equal(mine, theirs)  # each has seen other images
        torch.testing.assert_close(after, (mine + theirs) / 2)
        assert torch.equal(after, their_after)


def test_a_loss_that_is_no_number_ends_all_workers_alike(workers: list[dict[str, Any]]) -> None:
    assert [worker["diverged"] for worker in workers] == ["the loss is nan at step 1"] * 2


def test_counts_of_all_workers_are_summed(workers: list[dict[str, Any]]) -> None:
    assert [worker["counted"] for worker in workers] == [[3, 20]] * 2
