import cv2
import numpy as np
import numpy.typing as npt
import pytest

from segbatch.formats import draw
from segbatch.formats.polygons import polygons

LabelMap = npt.NDArray[np.uint8]
NOTHING = 99


def painted(label_map: LabelMap, tolerance: float) -> LabelMap:
    """The polygons painted as labelme does."""
    canvas = np.full(label_map.shape, NOTHING, np.uint8)
    for polygon in polygons(label_map, tolerance):
        draw.polygon(canvas, polygon.points.astype(np.float64), polygon.class_id)
    return canvas


def near_an_edge(label_map: LabelMap, distance: int) -> npt.NDArray[np.bool_]:
    around = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return np.asarray(cv2.dilate(label_map, around) != cv2.erode(label_map, around))


@pytest.mark.parametrize("seed", range(40))
def test_polygons_that_are_not_simplified_are_the_label_map(seed: int) -> None:
    random = np.random.default_rng(seed)
    label_map = random.choice(np.array([0, 1, 2, 255], np.uint8), random.integers(1, 14, 2))
    np.testing.assert_array_equal(painted(label_map, 0), label_map)


def test_simplified_ones_differ_near_the_edges_of_classes_only() -> None:
    random = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(random.normal(size=(4, 240, 320)).transpose(1, 2, 0), (0, 0), 6)
    label_map = smooth.argmax(2).astype(np.uint8)
    again = painted(label_map, 1.0)
    assert not ((again != label_map) & ~near_an_edge(label_map, 2)).any()
    assert (again != label_map).mean() < 0.04
    num_points = [sum(len(p.points) for p in polygons(label_map, t)) for t in (0, 1.0)]
    assert num_points[1] < num_points[0] / 2


def test_what_is_in_a_hole_lies_on_top_of_what_surrounds_it() -> None:
    label_map = np.zeros((40, 40), np.uint8)
    label_map[5:35, 5:35] = 1
    label_map[10:30, 10:30] = 0  # a hole, and in it an island that has one itself
    label_map[15:25, 15:25] = 1
    label_map[18:22, 18:22] = 255
    assert [p.class_id for p in polygons(label_map)] == [0, 1, 0, 1, 255]
    np.testing.assert_array_equal(painted(label_map, 1.0), label_map)


def test_a_region_around_a_bay_does_not_hide_what_was_painted_before() -> None:
    label_map = np.zeros((60, 60), np.uint8)
    label_map[10:50, 10:50] = 1  # a ring, all but closed …
    label_map[12:48, 12:48] = 0
    label_map[0:12, 29:31] = 2  # … by something thin that is painted later
    again = painted(label_map, 1.0)
    assert not ((again != label_map) & ~near_an_edge(label_map, 2)).any()


def test_outlines_reach_the_edge_of_the_image_and_never_leave_it() -> None:
    label_map = np.zeros((30, 50), np.uint8)
    label_map[:, 20:] = 3
    corners = np.concatenate([p.points for p in polygons(label_map)])
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [49, 29]
    np.testing.assert_array_equal(painted(label_map, 1.0), label_map)


def test_a_speck_is_a_polygon_too() -> None:
    label_map = np.zeros((9, 9), np.uint8)
    label_map[4, 4] = 1
    label_map[1, 1:3] = 2
    assert all(len(p.points) >= 3 for p in polygons(label_map))
    np.testing.assert_array_equal(painted(label_map, 1.0), label_map)
