"""Augmentation changes picture and label map alike, and invents no class id."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from segbatch.config.training import Augment
from segbatch.training.loader import augment_sample

Array = npt.NDArray[np.uint8]

FILL = (124, 116, 104)
COLORS = np.array([[20, 20, 20], [220, 40, 40], [40, 200, 60], [60, 60, 230]], np.uint8)


def scene(seed: int, height: int = 70, width: int = 90) -> tuple[Array, Array]:
    """Rectangles in the colours of their classes, and some that are ignored and black."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros((height, width), np.uint8)
    for class_id in (1, 2, 3, 1, 255):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        label_map[top : top + 20, left : left + 20] = class_id
    return COLORS[np.where(label_map == 255, 0, label_map)], label_map


def augment(
    seed: int, image: Array, label_map: Array, crop: int = 64, **keys: Any
) -> tuple[Array, Array]:
    """Augment with everything off except what ``keys`` set."""
    still = {"scale_range": (1.0, 1.0), "flip_probability": 0.0, "color_jitter": 0.0}
    rng = np.random.default_rng(seed)
    return augment_sample(
        rng, image, label_map, crop=crop, augment=Augment(**still | keys), fill=FILL
    )


def test_without_any_change_the_image_comes_out_as_it_was() -> None:
    image, label_map = scene(0, 64, 64)
    picture, labels = augment(0, image, label_map)
    np.testing.assert_array_equal(picture, image)
    np.testing.assert_array_equal(labels, label_map)
    assert (picture.dtype, labels.dtype) == (np.uint8, np.uint8)


@pytest.mark.parametrize("seed", range(12))
def test_picture_and_label_map_go_the_same_way(seed: int) -> None:
    image, label_map = scene(seed)
    picture, labels = augment(seed, image, label_map, scale_range=(0.5, 2.0), flip_probability=0.5)
    assert picture.shape == (64, 64, 3)
    assert labels.shape == (64, 64)
    distances = np.linalg.norm(picture[:, :, None].astype(int) - COLORS, axis=3)
    known = labels != 255
    # Where they differ at all, it is on the edge between two classes.
    assert np.mean(distances.argmin(2)[known] == labels[known]) > 0.95


def test_an_edge_is_at_the_same_place_in_picture_and_label_map() -> None:
    label_map = np.zeros((80, 80), np.uint8)
    label_map[:, 37:] = 1
    image = np.repeat(label_map[:, :, None] * np.uint8(255), 3, axis=2)
    shifts = []
    for seed in range(200):
        picture, labels = augment(
            seed, image, label_map, crop=32, scale_range=(0.5, 2.0), flip_probability=0.5
        )
        known = (labels != 255).all(0)
        ones = picture[:, known, 0].mean(0).sum() / 255, labels[:, known].mean(0).sum()
        shifts.append(ones[0] - ones[1])
    assert np.abs(shifts).max() < 1
    assert abs(np.mean(shifts)) < 0.05  # not half a pixel off, to neither side


@pytest.mark.parametrize("seed", range(12))
def test_no_class_id_is_made_up(seed: int) -> None:
    label_map = np.random.default_rng(seed).choice(np.array([3, 90, 200], np.uint8), (50, 60))
    image = np.zeros((50, 60, 3), np.uint8)
    _, labels = augment(seed, image, label_map, scale_range=(0.3, 3.0), flip_probability=0.5)
    assert set(np.unique(labels)) <= {3, 90, 200, 255}


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_what_lies_outside_of_the_image_is_filled_and_ignored(flip_probability: float) -> None:
    image, label_map = np.full((20, 30, 3), 200, np.uint8), np.ones((20, 30), np.uint8)
    picture, labels = augment(
        0, image, label_map, crop=48, flip_probability=flip_probability, color_jitter=1.0
    )
    inside = np.zeros((48, 48), bool)
    inside[:20, :30] = True
    if flip_probability:
        inside = inside[:, ::-1]
    assert (labels[inside] == 1).all()
    assert (labels[~inside] == 255).all()
    assert (picture[~inside] == FILL).all()


def test_images_become_as_large_as_the_range_allows() -> None:
    image, label_map = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8)
    factors = []
    for seed in range(300):
        _, labels = augment(seed, image, label_map, crop=128, scale_range=(0.5, 2.0))
        height, width = (labels != 255).any(1).sum(), (labels != 255).any(0).sum()
        assert abs(height / 40 - width / 50) < 0.03
        factors.append(width / 50)
    assert 0.49 <= min(factors) < 0.55
    assert 1.85 < max(factors) <= 2.01
    # Half as large is as likely as twice as large.
    assert 0.4 < np.mean(np.array(factors) < 1) < 0.6


def test_every_part_of_a_large_image_is_seen() -> None:
    label_map = np.arange(40 * 50).reshape(40, 50) % 251
    image = np.zeros((40, 50, 3), np.uint8)
    corners = set()
    for seed in range(150):
        _, labels = augment(seed, image, label_map.astype(np.uint8), crop=38)
        [top], [left] = np.nonzero(
            [[np.array_equal(labels, label_map[y : y + 38, x : x + 38]) for x in range(13)]
             for y in range(3)]
        )  # fmt: skip
        corners.add((top, left))
    assert {top for top, _ in corners} == {0, 1, 2}
    assert {left for _, left in corners} == set(range(13))


@pytest.mark.parametrize(("flip_probability", "mirrored"), [(0.0, 0), (0.5, 0.5), (1.0, 1)])
def test_images_are_mirrored_as_often_as_asked(flip_probability: float, mirrored: float) -> None:
    image, label_map = scene(1, 64, 64)
    count = 0
    for seed in range(100):
        picture, labels = augment(seed, image, label_map, flip_probability=flip_probability)
        flipped = np.array_equal(labels, label_map[:, ::-1])
        step = -1 if flipped else 1
        np.testing.assert_array_equal(labels, label_map[:, ::step])
        np.testing.assert_array_equal(picture, image[:, ::step])
        count += flipped
    assert count / 100 == pytest.approx(mirrored, abs=0.15)


def test_colours_change_and_classes_do_not() -> None:
    image, label_map = scene(2, 64, 64)
    pictures = []
    for seed in range(20):
        picture, labels = augment(seed, image, label_map, color_jitter=0.2)
        np.testing.assert_array_equal(labels, label_map)
        assert not np.array_equal(picture, image)
        # Brightness, contrast and saturation, each by at most a fifth.
        assert np.abs(picture.astype(int) - image).max() < 255 * (1.2**3 - 1)
        pictures.append(picture)
    means = np.array([picture.mean() for picture in pictures])
    assert means.min() < image.mean() < means.max()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (63, 65)])
def test_images_of_any_size_are_taken(size: tuple[int, int]) -> None:
    image, label_map = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for seed in range(20):
        picture, labels = augment(seed, image, label_map, scale_range=(0.01, 2.0))
        assert picture.shape == (64, 64, 3)
        assert (labels == 0).any()


def test_the_same_random_numbers_give_the_same_image() -> None:
    image, label_map = scene(3)
    everything = {"scale_range": (0.5, 2.0), "flip_probability": 0.5, "color_jitter": 0.2}
    first, same, other = (augment(seed, image, label_map, **everything) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], same[0])
    np.testing.assert_array_equal(first[1], same[1])
    assert not np.array_equal(first[0], other[0])
