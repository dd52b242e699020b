"""The sampler takes every image once an epoch, on any number of workers."""

from itertools import chain

import pytest

from segbatch.training.loader import SampleIndex, Sampler


def sampler(
    num_images: int = 10,
    batch_size: int = 4,
    micro_batches: int = 1,
    epochs: int = 3,
    seed: int = 0,
) -> Sampler:
    return Sampler(num_images, batch_size, micro_batches, epochs, seed)


def step_of(given: Sampler, step: int, world_size: int = 1) -> list[list[list[SampleIndex]]]:
    """The micro-batches of a step, worker by worker."""
    return [given.micro_batches(step, rank, world_size) for rank in range(world_size)]


def row(given: Sampler) -> list[SampleIndex]:
    """All images of a training, one after the other."""
    steps = (given.micro_batches(step, 0, 1) for step in range(given.num_steps))
    return list(chain.from_iterable(chain.from_iterable(steps)))


@pytest.mark.parametrize(
    ("num_images", "batch_size", "micro_batches"),
    [(10, 4, 1), (12, 4, 2), (417, 16, 4), (3, 8, 2), (1, 1, 1), (2, 6, 6)],
)
def test_every_image_comes_once_in_every_epoch(
    num_images: int, batch_size: int, micro_batches: int
) -> None:
    given = sampler(num_images, batch_size, micro_batches)
    places = row(given)
    assert len(places) == given.total_images == given.num_steps * batch_size
    for epoch in range(given.epochs):
        of_epoch = [place.index for place in places if place.epoch == epoch]
        assert sorted(of_epoch) == list(range(num_images))
    # The last step is filled up with what would have come next.
    more = places[given.epochs * num_images :]
    assert len(more) < batch_size
    following = row(sampler(num_images, batch_size, micro_batches, epochs=20))
    assert more == following[given.epochs * num_images :][: len(more)]


def test_a_step_goes_on_over_the_bsampler_of_two_epochs() -> None:
    given = sampler(num_images=10, batch_size=4)
    [[batch]] = step_of(given, 2)
    assert [place.epoch for place in batch] == [0, 0, 1, 1]
    assert given.num_steps == 8  # 30 images, and two more
    assert [given.last_step(epoch) for epoch in range(3)] == [3, 5, 8]


def test_an_epoch_ends_with_the_step_that_holds_its_last_image() -> None:
    for batch_size in (1, 3, 4, 5, 7, 10, 16):
        given = sampler(num_images=10, batch_size=batch_size, epochs=5)
        places = row(given)
        for epoch in range(5):
            end = given.last_step(epoch) * batch_size
            before = {place.epoch for place in places[end - batch_size :]}
            after = {place.epoch for place in places[end:]}
            assert epoch in before
            assert epoch not in after


def test_the_order_follows_from_the_seed_and_is_another_in_every_epoch() -> None:
    places = row(sampler(num_images=50, seed=3))
    assert places == row(sampler(num_images=50, seed=3))
    orders = [[place.index for place in places if place.epoch == epoch] for epoch in range(3)] + [
        [place.index for place in row(sampler(num_images=50, seed=4))[:50]]
    ]
    assert len({tuple(indices) for indices in orders}) == 4
    assert list(range(50)) not in orders


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [3, 6])
def test_workers_share_out_the_same_parts_whatever_their_number(
    micro_batches: int, world_size: int
) -> None:
    given = sampler(num_images=31, batch_size=12, micro_batches=micro_batches)
    for step in range(given.num_steps):
        [alone] = step_of(given, step)
        assert [len(batch) for batch in alone] == [12 // micro_batches] * micro_batches
        shares = step_of(given, step, world_size)
        together = list(chain.from_iterable(shares))
        assert sorted(map(repr, together)) == sorted(map(repr, alone))
        numbers = [len(share) for share in shares]
        assert max(numbers) - min(numbers) <= 1
        # As even as possible, and the same number for a worker in every step.
        assert numbers == sorted(numbers, reverse=True)


def test_two_workers_of_three_parts_do_two_and_one() -> None:
    shares = step_of(sampler(num_images=31, batch_size=12, micro_batches=3), 1, world_size=2)
    assert [len(share) for share in shares] == [2, 1]
