from collections import deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segbatch.masks.classes import Classes
from segbatch.results.schema import rows_schema
from segbatch.results.stats import (
    boxes_column,
    count_components,
    count_regions,
    coverage,
    find_regions,
    pixels_per_class,
    struct_column,
)

CLASSES = Classes(["wall", "window", "traffic light"])
SCHEMA = rows_schema(CLASSES, stats=["confidence", "components", "boxes"], formulas=["glass"])


def flood_fill(label_map: np.ndarray) -> list[tuple[int, tuple[int, int, int, int, int]]]:
    """Class and box of each 8-connected region, by a slow and obvious flood fill."""
    height, width = label_map.shape
    seen = label_map == 255
    regions = []
    for start in np.ndindex(height, width):
        if seen[start]:
            continue
        seen[start] = True
        queue, members = deque([start]), []
        while queue:
            y, x = queue.popleft()
            members.append((y, x))
            for near in np.ndindex(3, 3):
                v, u = y + near[0] - 1, x + near[1] - 1
                inside = 0 <= v < height and 0 <= u < width
                if inside and not seen[v, u] and label_map[v, u] == label_map[start]:
                    seen[v, u] = True
                    queue.append((v, u))
        (top, left), (bottom, right) = np.min(members, axis=0), np.max(members, axis=0)
        box = (left, top, right - left + 1, bottom - top + 1, len(members))
        regions.append((int(label_map[start]), tuple(int(v) for v in box)))
    return sorted(regions, key=lambda region: -region[1][4])


label_maps = st.sampled_from([[0, 1], [0, 1, 2, 255], [0, 253, 254, 255]]).flatmap(
    lambda ids: arrays(
        np.uint8,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from(ids),
    )
)


@settings(deadline=None, max_examples=200)
@given(label_maps)
def test_regions_equal_those_of_a_flood_fill_largest_first(label_map: np.ndarray) -> None:
    regions = find_regions(label_map)
    expected = flood_fill(label_map)
    found = list(zip(regions.class_ids.tolist(), map(tuple, regions.boxes.tolist()), strict=True))
    assert found == expected
    counts = np.bincount([class_id for class_id, _ in expected], minlength=255)
    assert count_components(label_map, 255).tolist() == counts.tolist()
    assert count_regions(regions, 255).tolist() == counts.tolist()


def test_regions_touch_at_their_corners() -> None:
    label_map = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    assert count_components(label_map, 3).tolist() == [1, 1, 0]


def test_a_box_begins_at_the_top_left_corner_of_the_image() -> None:
    label_map = np.zeros((10, 20), np.uint8)
    label_map[2:5, 7:15] = 1
    label_map[3, 9] = 2
    regions = find_regions(label_map)
    assert regions.class_ids.tolist() == [0, 1, 2]
    assert regions.boxes.tolist() == [
        [0, 0, 20, 10, 200 - 24],
        [7, 2, 8, 3, 23],
        [9, 3, 1, 1, 1],
    ]


def test_ignored_pixels_are_in_no_region() -> None:
    label_map = np.full((4, 4), 255, np.uint8)
    assert count_components(label_map, 3).tolist() == [0, 0, 0]
    assert find_regions(label_map).boxes.shape == (0, 5)


def test_class_0_and_the_highest_class_are_regions_too() -> None:
    counts = count_components(np.array([[0, 254]], np.uint8), 255)
    assert counts[0] == counts[254] == counts.sum() / 2 == 1


def test_a_region_longer_than_16_bits_has_its_whole_box() -> None:
    regions = find_regions(np.zeros((2, 70_000), np.uint8))
    assert regions.boxes.tolist() == [[0, 0, 70_000, 2, 140_000]]


def test_a_view_has_the_regions_of_its_copy() -> None:
    whole = np.random.default_rng(0).integers(0, 3, (12, 30), dtype=np.uint8)
    for view in (whole.T, whole[::2, 1::3]):
        copy = find_regions(view.copy())
        np.testing.assert_array_equal(find_regions(view).boxes, copy.boxes)
        np.testing.assert_array_equal(find_regions(view).class_ids, copy.class_ids)


def test_pixels_are_counted_per_class() -> None:
    label_map = np.array([[0, 0, 2], [2, 2, 255]], np.uint8)
    pixels = pixels_per_class(label_map, 3)
    assert pixels.dtype == np.int64
    assert pixels.tolist() == [2, 0, 3]


def test_coverage_is_the_share_of_all_pixels_and_sums_to_1() -> None:
    pixels = np.array([[1, 2, 1], [0, 0, 5], [10**12, 10**12, 2 * 10**12]])
    shares = coverage(pixels)
    assert shares.dtype == np.float32
    assert shares.tolist() == [[0.25, 0.5, 0.25], [0, 0, 1], [0.25, 0.25, 0.5]]


def test_the_coverage_of_one_image_needs_no_row_axis() -> None:
    assert coverage(np.array([3, 1])).tolist() == [0.75, 0.25]


def test_coverage_of_no_pixels_is_nan() -> None:
    assert np.isnan(coverage(np.zeros((1, 3), np.int64))).all()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("pixels", np.array([[1, 2, 3], [4, 5, 2**40]])),
        ("coverage", np.array([[0.25, 0.5, 0.25], [0, 0, 1]], np.float32)),
        ("confidence", np.array([[0.25, 0.5, 0.125], [1, 0.75, 0.5]])),
        ("components", np.array([[1, 2, 3], [4, 5, 6]], np.int32)),
        ("formulas", np.array([[0.5], [2.0]])),
    ],
)
def test_a_struct_column_has_the_type_of_the_schema(column: str, values: np.ndarray) -> None:
    struct = SCHEMA.field(column).type
    array = struct_column(values, np.array([True, True]), struct)
    array.validate(full=True)
    assert array.type == struct
    assert [list(row.values()) for row in array.to_pylist()] == values.tolist()


def test_fields_are_in_the_order_of_the_class_ids() -> None:
    array = struct_column(np.array([[7, 8, 9]]), np.array([True]), SCHEMA.field("pixels").type)
    assert array.to_pylist() == [{"wall": 7, "window": 8, "traffic_light": 9}]


def test_a_failed_row_is_a_null_struct_and_its_fields_are_null_too() -> None:
    array = struct_column(
        np.array([[1, 2, 3], [4, 5, 6]]), np.array([False, True]), SCHEMA.field("pixels").type
    )
    assert array.to_pylist() == [None, {"wall": 4, "window": 5, "traffic_light": 6}]
    assert array.field("wall").to_pylist() == [None, 4]


def test_nan_becomes_null_in_its_field_alone() -> None:
    array = struct_column(
        np.array([[0.5, np.nan, 1.0]]), np.array([True]), SCHEMA.field("confidence").type
    )
    assert array.to_pylist() == [{"wall": 0.5, "window": None, "traffic_light": 1.0}]


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2, 4)])
def test_values_that_do_not_fit_the_struct_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2 rows × 3"):
        struct_column(np.zeros(shape), np.array([True, True]), SCHEMA.field("coverage").type)


def test_boxes_are_grouped_by_image_and_class_and_a_failed_image_is_null() -> None:
    first = np.zeros((4, 8), np.uint8)
    first[1:3, 1:3] = 1
    first[0, 5:8] = 1
    second = np.full((2, 2), 2, np.uint8)
    array = boxes_column(
        [find_regions(first), None, find_regions(second)], SCHEMA.field("boxes").type
    )
    array.validate(full=True)
    assert array.type == SCHEMA.field("boxes").type
    assert array.to_pylist() == [
        {
            "wall": [{"x": 0, "y": 0, "width": 8, "height": 4, "pixels": 25}],
            "window": [
                {"x": 1, "y": 1, "width": 2, "height": 2, "pixels": 4},
                {"x": 5, "y": 0, "width": 3, "height": 1, "pixels": 3},
            ],
            "traffic_light": [],
        },
        None,
        {
            "wall": [],
            "window": [],
            "traffic_light": [{"x": 0, "y": 0, "width": 2, "height": 2, "pixels": 4}],
        },
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.none() | label_maps, max_size=6))
def test_the_column_has_every_region_of_every_image(maps: list[np.ndarray | None]) -> None:
    classes = Classes([f"class {i}" for i in range(255)])
    struct = rows_schema(classes, stats=["boxes"]).field("boxes").type
    array = boxes_column([None if m is None else find_regions(m) for m in maps], struct)
    array.validate(full=True)
    for label_map, row in zip(maps, array.to_pylist(), strict=True):
        if label_map is None:
            assert row is None
            continue
        found = [(i, *box.values()) for i, boxes in enumerate(row.values()) for box in boxes]
        expected = [(class_id, *box) for class_id, box in flood_fill(label_map)]
        assert found == sorted(expected, key=lambda region: region[0])  # stable: largest first


@pytest.mark.parametrize("regions", [[], [None], [None, None]])
def test_boxes_of_failed_images_alone_have_the_type_of_the_schema(regions: list[None]) -> None:
    array = boxes_column(regions, SCHEMA.field("boxes").type)
    array.validate(full=True)
    assert array.type == SCHEMA.field("boxes").type
    assert array.to_pylist() == regions


def test_columns_survive_parquet(tmp_path: Path) -> None:
    label_map = np.array([[0, 1, 1], [2, 2, 2]], np.uint8)
    regions = find_regions(label_map)
    valid = np.array([True, False])
    pixels = np.stack([pixels_per_class(label_map, 3), np.zeros(3, np.int64)])
    columns = {
        "pixels": struct_column(pixels, valid, SCHEMA.field("pixels").type),
        "coverage": struct_column(coverage(pixels), valid, SCHEMA.field("coverage").type),
        "boxes": boxes_column([regions, None], SCHEMA.field("boxes").type),
    }
    table = pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))
    pq.write_table(table, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").equals(table)
