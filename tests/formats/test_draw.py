import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from segbatch.formats import draw

Array = npt.NDArray[Any]


def drawn(shape: Callable[..., None], points: Any, width: int, height: int) -> Array:
    label_map = np.zeros((height, width), np.uint8)
    shape(label_map, np.array(points, np.float64), 1)
    return label_map


def picture(text: str) -> Array:
    """The label map of a picture: ``#`` is 1, ``.`` is 0, each line is a row."""
    return np.array([[character == "#" for character in line] for line in text.split()], np.uint8)


def box(width: int, height: int, rows: slice, columns: slice) -> Array:
    label_map = np.zeros((height, width), np.uint8)
    label_map[rows, columns] = 1
    return label_map


def test_a_polygon_is_filled_up_to_and_with_its_outline() -> None:
    wanted = """
        ........
        .#####..
        .####...
        .###....
        .##.....
        .#......
        ........
    """
    triangle = [[1, 1], [5, 1], [1, 5]]
    np.testing.assert_array_equal(drawn(draw.polygon, triangle, 8, 7), picture(wanted))


def test_corners_of_a_polygon_lose_their_fractions() -> None:
    fractions = [[1.9, 1.9], [5.9, 1.2], [5.2, 5.9], [1.1, 5.1]]
    square = box(8, 7, slice(1, 6), slice(1, 6))
    np.testing.assert_array_equal(drawn(draw.polygon, fractions, 8, 7), square)


def test_a_polygon_that_is_one_point_is_one_pixel() -> None:
    assert drawn(draw.polygon, [[2, 3]] * 3, 8, 7).sum() == 1


def test_a_rectangle_holds_both_its_corners_whichever_they_are() -> None:
    wanted = box(10, 8, slice(2, 6), slice(3, 8))
    for corners in ([[3, 2], [7, 5]], [[7, 5], [3, 2]], [[7, 2], [3, 5]]):
        np.testing.assert_array_equal(drawn(draw.rectangle, corners, 10, 8), wanted)


def test_a_rectangle_may_be_given_by_its_four_corners() -> None:
    corners = [[3, 2], [7, 2], [7, 5], [3, 5]]
    wanted = box(10, 8, slice(2, 6), slice(3, 8))
    np.testing.assert_array_equal(drawn(draw.rectangle, corners, 10, 8), wanted)


def test_a_circle_is_a_centre_and_a_point_on_its_rim() -> None:
    wanted = """
        ...........
        ...........
        ....###....
        ...#####...
        ..#######..
        ..#######..
        ..#######..
        ...#####...
        ....###....
        ...........
        ...........
    """
    for rim in ([5, 8], [2, 5]):
        np.testing.assert_array_equal(drawn(draw.circle, [[5, 5], rim], 11, 11), picture(wanted))


def test_a_point_is_a_disc_of_five_pixels_radius() -> None:
    y, x = np.mgrid[:13, :13]
    wanted = (x - 6) ** 2 + (y - 6) ** 2 <= 5.5**2
    np.testing.assert_array_equal(drawn(draw.point, [[6, 6]], 13, 13), wanted)


def test_a_line_is_ten_pixels_wide() -> None:
    level, upright = [[5, 10], [15, 10]], [[10, 3], [10, 15]]
    np.testing.assert_array_equal(
        drawn(draw.line, level, 20, 20), box(20, 20, slice(6, 16), slice(5, 16))
    )
    np.testing.assert_array_equal(
        drawn(draw.line, upright, 20, 20), box(20, 20, slice(3, 16), slice(6, 16))
    )


def test_a_line_goes_along_all_its_points() -> None:
    wanted = box(24, 20, slice(1, 11), slice(3, 16)) | box(24, 20, slice(5, 16), slice(11, 21))
    path = [[3, 5], [15, 5], [15, 15]]
    np.testing.assert_array_equal(drawn(draw.line, path, 24, 20), wanted)


def test_a_mask_lies_in_its_box() -> None:
    bits = picture("##. .##").astype(bool)
    label_map = np.zeros((4, 6), np.uint8)
    draw.mask(label_map, bits, np.array([[2.0, 1.0], [4.0, 2.0]]), 7)
    wanted = np.zeros((4, 6), np.uint8)
    wanted[1, 2:4] = wanted[2, 3:5] = 7
    np.testing.assert_array_equal(label_map, wanted)


def test_a_mask_that_is_partly_outside_is_clipped() -> None:
    bits = np.ones((3, 3), bool)
    bits[0] = False  # the corner that stays in the picture shows which part was cut off
    label_map = np.zeros((4, 6), np.uint8)
    draw.mask(label_map, bits, np.array([[-1.5, -0.5], [0.5, 1.5]]), 1)
    np.testing.assert_array_equal(label_map, box(6, 4, slice(0, 2), slice(0, 1)))
    label_map[:] = 0
    draw.mask(label_map, bits, np.array([[4.0, 2.0], [6.0, 4.0]]), 1)
    np.testing.assert_array_equal(label_map, box(6, 4, slice(3, 4), slice(4, 6)))


def test_what_is_drawn_later_lies_on_top_and_leaves_the_rest() -> None:
    label_map = np.full((6, 8), 9, np.uint8)
    draw.rectangle(label_map, np.array([[0.0, 0.0], [4.0, 4.0]]), 1)
    draw.rectangle(label_map, np.array([[3.0, 3.0], [6.0, 5.0]]), 0)
    wanted = np.full((6, 8), 9, np.uint8)
    wanted[:5, :5] = 1
    wanted[3:6, 3:7] = 0
    np.testing.assert_array_equal(label_map, wanted)


def on_a_whole_canvas(kind: str, points: list[tuple[float, float]], size: tuple[int, int]) -> Array:
    """Draw the shape with Pillow alone, on a canvas as large as the image."""
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    match kind:
        case "polygon":
            pen.polygon(points, fill=1, outline=1)
        case "line":
            pen.line(points, fill=1, width=10)
        case "circle":
            (x, y), rim = points
            radius = np.hypot(x - rim[0], y - rim[1])
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
        case "point":
            ((x, y),) = points
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=1, outline=1)
    return np.asarray(canvas)


@pytest.mark.parametrize(("kind", "fewest", "most"), [
    ("polygon", 3, 9), ("line", 2, 6), ("circle", 2, 2), ("point", 1, 1),
])  # fmt: skip
def test_shapes_anywhere_are_those_of_a_canvas_as_large_as_the_image(
    kind: str, fewest: int, most: int
) -> None:
    rng = random.Random(kind)
    num_drawn = 0
    for _ in range(150):
        width, height = rng.randint(1, 400), rng.randint(1, 300)
        points = [
            (rng.uniform(-0.4, 1.4) * width, rng.uniform(-0.4, 1.4) * height)
            for _ in range(rng.randint(fewest, most))
        ]
        wanted = on_a_whole_canvas(kind, points, (width, height))
        if wanted.any():
            num_drawn += 1
            got = drawn(getattr(draw, kind), points, width, height)
            np.testing.assert_array_equal(got, wanted)
        else:
            with pytest.raises(ValueError, match="outside of the image"):
                drawn(getattr(draw, kind), points, width, height)
    assert num_drawn > 50


@pytest.mark.parametrize(("shape", "points", "why"), [
    (draw.polygon, np.empty((0, 2)), "no points"),
    (draw.polygon, [[1, 1], [2, 2]], "at least 3 points and has 2"),
    (draw.rectangle, [[1, 1]], "at least 2 points and has 1"),
    (draw.line, [[1, 1]], "at least 2 points and has 1"),
    (draw.circle, [[1, 1]], "needs 2 points and has 1"),
    (draw.circle, [[1, 1], [2, 2], [3, 3]], "needs 2 points and has 3"),
    (draw.point, [[1, 1], [2, 2]], "needs 1 points and has 2"),
    (draw.polygon, [[1, 1], [2, np.nan], [3, 3]], "not numbers"),
    (draw.polygon, [[1, 1], [2, np.inf], [3, 3]], "not numbers"),
    (draw.circle, [[1, 1], [2e9, 1]], "beyond 100,000 pixels"),
    (draw.polygon, [[10, 1], [12, 1], [12, 5]], "outside"),
    (draw.polygon, [[1, -5], [5, -5], [5, -1]], "outside"),
    (draw.polygon, [[12, -8], [14, -8], [14, 6]], "outside"),
    (draw.polygon, [[-9, 4], [-9, 30], [30, 30], [-9, 5]], "outside"),  # around a corner
    (draw.point, [[-6, 4]], "outside"),
])  # fmt: skip
def test_a_shape_that_cannot_be_drawn_says_why_and_draws_nothing(
    shape: Callable[..., None], points: Any, why: str
) -> None:
    label_map = np.full((8, 10), 3, np.uint8)
    with pytest.raises(ValueError, match=why):
        shape(label_map, np.array(points, np.float64), 1)
    assert (label_map == 3).all()


@pytest.mark.parametrize(("bits", "corners", "why"), [
    (np.ones((2, 3), bool), [[0, 0], [3, 1]], "mask is 3×2 pixels and its box 4×2"),
    (np.zeros((2, 3), bool), [[0, 0], [2, 1]], "mask is empty"),
    (np.ones((2, 3), bool), [[-3, 0], [-1, 1]], "outside"),
    (np.ones((2, 3), bool), [[0, 8], [2, 9]], "outside"),
    (np.ones((2, 3), bool), [[0, 0]], "needs 2 points and has 1"),
])  # fmt: skip
def test_a_mask_that_cannot_be_placed_says_why(bits: Array, corners: Any, why: str) -> None:
    label_map = np.full((8, 10), 3, np.uint8)
    with pytest.raises(ValueError, match=why):
        draw.mask(label_map, bits, np.array(corners, np.float64), 1)
    assert (label_map == 3).all()
