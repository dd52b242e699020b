"""The loader makes the same images on any worker, in order, and only a few ahead."""

import threading
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
import torch

from segbatch.config.training import Train
from segbatch.training.loader import BATCHES_AHEAD, Loader, Sampler
from tests.training import toy

IDS = [7 * index + 3 for index in range(toy.NUM_IMAGES)]

Array = npt.NDArray[np.uint8]


def numbered(index: int) -> tuple[Array, Array]:
    """An image whose pixels all have the value of its index."""
    return np.full((32, 32, 3), index, np.uint8), np.full((32, 32), index, np.uint8)


PLAIN = toy.recipe(
    augment={"scale_range": [1.0, 1.0], "flip_probability": 0.0, "color_jitter": 0.0}
)


def loader(
    train: Train,
    sampler: Sampler,
    load: object = toy.squares,
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 1,
) -> Loader:
    return Loader(
        load, IDS, sampler, train,  # type: ignore[arg-type]
        fill=(127, 127, 127), rank=rank, world_size=world_size, threads=threads,
    )  # fmt: skip


def pictures(
    train: Train, sampler: Sampler, first: int = 0, **keys: int
) -> dict[tuple[int, int], bytes]:
    """The augmented image and label map, as bytes, by epoch and index."""
    made = {}
    shares = {key: keys.get(key, one) for key, one in (("rank", 0), ("world_size", 1))}
    for step, micro_batches in enumerate(loader(train, sampler, **keys).steps(first), first):
        places = sampler.micro_batches(step, **shares)
        assert [len(images) for images, _ in micro_batches] == [len(batch) for batch in places]
        for (images, label_maps), batch in zip(micro_batches, places, strict=True):
            for image, label_map, place in zip(images, label_maps, batch, strict=True):
                both = image.numpy().tobytes() + label_map.numpy().tobytes()
                made[place.epoch, place.index] = both
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not loading()


def loading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_image_of_an_epoch_is_the_same_whoever_makes_it_and_when() -> None:
    train = toy.recipe(epochs=3, batch_size=6)
    alone = pictures(train, toy.sampler_of(train))
    assert len(alone) == 30
    threaded = pictures(train, toy.sampler_of(train, 3), threads=4)
    shared = {
        place: picture
        for rank in range(2)
        for place, picture in pictures(
            train, toy.sampler_of(train, 6), rank=rank, world_size=2, threads=2
        ).items()
    }
    resumed = pictures(train, toy.sampler_of(train), first=3)
    assert alone == threaded == shared
    assert len(resumed) == 12
    assert resumed.items() <= alone.items()


def test_an_image_is_another_in_every_epoch_and_with_every_seed() -> None:
    recipes = [toy.recipe(epochs=3, batch_size=6, seed=seed) for seed in (0, 1)]
    made = [pictures(train, toy.sampler_of(train)) for train in recipes]
    different = {picture for one in made for picture in one.values()}
    assert len(different) == 2 * 30


def test_parts_and_their_images_come_in_order_however_long_each_takes() -> None:
    rng = np.random.default_rng(0)

    def slow(index: int) -> tuple[Array, Array]:
        time.sleep(rng.uniform(0, 0.01))
        return numbered(index)

    train = PLAIN.model_copy(update={"batch_size": 6})
    sampler = toy.sampler_of(train, micro_batches=3)
    for step, micro_batches in enumerate(loader(train, sampler, slow, threads=4).steps(0)):
        indices = [[place.index for place in batch] for batch in sampler.micro_batches(step, 0, 1)]
        assert [images[:, 9, 9, 0].tolist() for images, _ in micro_batches] == indices
        assert [label_maps[:, 9, 9].tolist() for _, label_maps in micro_batches] == indices
    assert step == sampler.num_steps - 1


def test_batches_are_bytes_and_label_maps_are_class_ids() -> None:
    train = toy.recipe(batch_size=6)
    [(images, label_maps), _] = next(loader(train, toy.sampler_of(train, 2)).steps(0))
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), torch.uint8)
    assert (label_maps.shape, label_maps.dtype) == ((3, 32, 32), torch.int64)


def test_an_image_that_cannot_be_loaded_is_told_of_at_its_step() -> None:
    sampler = toy.sampler_of(PLAIN)
    third = sampler.micro_batches(2, 0, 1)[0][1].index

    def load(index: int) -> tuple[Array, Array]:
        if index == third:
            raise KeyError("no such image")
        return numbered(index)

    steps = loader(PLAIN, sampler, load, threads=2).steps(0)
    next(steps)
    next(steps)
    with pytest.raises(KeyError, match="no such image"):
        next(steps)
    assert not loading()


def test_no_more_is_made_than_what_comes_next() -> None:
    begun = []

    def load(index: int) -> tuple[Array, Array]:
        begun.append(index)
        return numbered(index)

    train = PLAIN.model_copy(update={"epochs": 100})
    steps = loader(train, toy.sampler_of(train, micro_batches=2), load, threads=4).steps(0)
    for step in range(3):
        next(steps)
        time.sleep(0.1)  # time for more, if more were to be made
        # The step's two micro-batches, and those ahead of its last one.
        assert len(begun) == 2 * (2 * step + 1 + BATCHES_AHEAD)
    steps.close()  # type: ignore[attr-defined]
    assert not loading()
    assert len(begun) == 2 * (5 + BATCHES_AHEAD)


def test_the_first_step_does_not_wait_for_the_sampler_of_all() -> None:
    train = PLAIN.model_copy(update={"epochs": 1_000_000})
    steps = loader(train, toy.sampler_of(train), numbered).steps(0)
    began = time.perf_counter()
    assert len(list(islice(steps, 3))) == 3
    assert time.perf_counter() - began < 2
    steps.close()  # type: ignore[attr-defined]


def test_the_time_that_a_step_waits_is_told_once() -> None:
    def load(index: int) -> tuple[Array, Array]:
        time.sleep(0.02)
        return numbered(index)

    given = loader(PLAIN, toy.sampler_of(PLAIN), load)
    steps = given.steps(0)
    next(steps)
    assert given.pop_wait_seconds() >= 0.08  # four images
    assert given.pop_wait_seconds() == 0
    steps.close()  # type: ignore[attr-defined]
