"""Rendered facades: reproducible, varied, and with label maps that fit the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from segbatch.demo.facades.canvas import BACKGROUND, BRICK, DOOR, SKY, WALL, WINDOW
from segbatch.demo.facades.facades import CLASSES, SIZES, Scene, render_facade

SEEDS = range(20)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_facade(seed, long_side=160) for seed in SEEDS]


def test_a_seed_gives_the_same_scene_every_time(scenes: list[Scene]) -> None:
    again = render_facade(SEEDS[3], long_side=160)
    np.testing.assert_array_equal(again.image, scenes[3].image)
    np.testing.assert_array_equal(again.label_map, scenes[3].label_map)


def test_no_two_seeds_give_the_same_scene(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_image_and_label_map_are_uint8_of_one_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.dtype == scene.label_map.dtype == np.uint8
        assert scene.image.shape == (*scene.label_map.shape, 3)
        assert max(scene.label_map.shape) == 160


def test_sizes_vary_and_are_landscape_and_portrait_where_none_is_asked_for() -> None:
    shapes = {render_facade(seed).label_map.shape for seed in SEEDS[:6]}
    assert {shape[::-1] for shape in shapes} <= set(SIZES)
    assert any(h > w for h, w in shapes)
    assert any(h < w for h, w in shapes)


def test_long_side_changes_the_pixels_and_not_the_scene(scenes: list[Scene]) -> None:
    for seed in SEEDS[:4]:
        large = render_facade(seed, long_side=320).label_map[::2, ::2]
        small = scenes[seed].label_map
        height, width = (min(a, b) for a, b in zip(large.shape, small.shape, strict=True))
        assert np.mean(large[:height, :width] == small[:height, :width]) > 0.85


def test_label_maps_hold_the_six_classes_and_nothing_else(scenes: list[Scene]) -> None:
    ids = np.unique(np.concatenate([scene.label_map.ravel() for scene in scenes]))
    assert ids.tolist() == list(range(len(CLASSES)))
    assert CLASSES.names == ["background", "brick", "wall", "window", "door", "sky"]


def test_every_class_has_a_share_that_can_be_learned(scenes: list[Scene]) -> None:
    labels = np.concatenate([scene.label_map.ravel() for scene in scenes])
    share = np.bincount(labels, minlength=len(CLASSES)) / labels.size
    least = {BACKGROUND: 0.08, BRICK: 0.06, WALL: 0.12, WINDOW: 0.08, DOOR: 0.012, SKY: 0.05}
    assert all(least[class_id] < share[class_id] < 0.5 for class_id in least), share


@pytest.mark.parametrize("class_id", [BACKGROUND, BRICK, WALL, WINDOW, DOOR])
def test_no_class_is_flat_paint(scenes: list[Scene], class_id: int) -> None:
    """Light, dirt, texture and noise: no colour fills a region."""
    spreads = [
        scene.image[scene.label_map == class_id].std(axis=0).mean()
        for scene in scenes
        if np.count_nonzero(scene.label_map == class_id) > 200
    ]
    assert np.median(spreads) > 8
    assert min(spreads) > 2


def test_the_edges_of_the_truth_lie_on_the_edges_of_the_picture(scenes: list[Scene]) -> None:
    """The brightness step across borders of windows is largest where the label map has them."""

    def step(offset: int) -> float:
        steps = []
        for scene in scenes:
            grey = scene.image.astype(np.float32).mean(axis=2)
            window = scene.label_map == WINDOW
            rows, columns = np.nonzero(window[:, :-1] != window[:, 1:])
            inside = (columns >= 3) & (columns < grey.shape[1] - 4)
            rows, columns = rows[inside], columns[inside] + offset
            steps.append(np.abs(grey[rows, columns + 1] - grey[rows, columns]).mean())
        return float(np.mean(steps))

    assert max(range(-3, 4), key=step) == 0
