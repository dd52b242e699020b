import pickle
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segbatch.errors import SourceError
from segbatch.formats.coco import COCO, find_coco, read_coco, shapes_digest
from segbatch.formats.folder import uri_digest
from segbatch.formats.format import AnnotatedImage, Annotations, ReadOptions, Unusable
from tests.conftest import S3
from tests.formats.round_trip import assert_round_trip
from tests.labels.files import HEIGHT, WIDTH, blank, photograph, to_bytes, write

IDS = {"wall": 0, "window": 1, "door": 2}
UNLABELLED = 9

# What COCO's own tools write for the rectangles x 10 to 24, y 4 to 8, and x 3 to 6, y 12 to 15.
COMPRESSED = {"size": [20, 30], "counts": "X24`000000d11[N000000000000000000000000000P3"}


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(category: Any, segmentation: Any, number: int = 1, **keys: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 7,
        "category_id": category,
        "segmentation": segmentation,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "iscrowd": 0,
        **keys,
    }


def image(file_name: str = "a.jpg", number: Any = 7, **keys: Any) -> dict[str, Any]:
    size = {"width": WIDTH, "height": HEIGHT}
    return {"id": number, "file_name": file_name, **size, **keys}


def categories(*names: str) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def document(*annotations: Any, **keys: Any) -> dict[str, Any]:
    """A COCO file with one image, in which 1 is wall, 2 is window and 3 is door."""
    lists = {"images": [image()], "categories": categories(*IDS)}
    return {**lists, "annotations": list(annotations), **keys}


def find(root: Path, files: Mapping[str, Any], **options: Any) -> Annotations:
    return find_coco(write(root, files), ReadOptions(**options))


def one(root: Path, content: Any, picture: bytes | None = None) -> AnnotatedImage:
    (annotated,) = find(root, {"labels.json": content, "a.jpg": picture or photograph()}).images
    return annotated


def draw(root: Path, *annotations: Any) -> Any:
    labelled = read_coco(one(root, document(*annotations)), IDS, UNLABELLED)
    return labelled.label_map.tolist()


def placed(root: Path, found: Annotations) -> list[tuple[str, str | None]]:
    return [
        (str(Path(annotated.uri).relative_to(root)), annotated.split) for annotated in found.images
    ]


# -------------------------------------------------------------------------------------- layouts

EMPTY = document()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (  # Roboflow
            {
                "train/_annotations.coco.json": EMPTY,
                "train/a.jpg": b"",
                "valid/_annotations.coco.json": EMPTY,
                "valid/a.jpg": b"",
                "README.roboflow.txt": "facades",
            },
            [("train/a.jpg", "train"), ("valid/a.jpg", "val")],
        ),
        (  # COCO itself, whose other files say nothing of shapes
            {
                "annotations/captions_val2017.json": {"images": [image()], "annotations": []},
                "annotations/instances_train2017.json": EMPTY,
                "annotations/instances_val2017.json": EMPTY,
                "train2017/a.jpg": b"",
                "val2017/a.jpg": b"",
            },
            [("train2017/a.jpg", "train"), ("val2017/a.jpg", "val")],
        ),
        (  # CVAT, a task
            {"annotations/instances_default.json": EMPTY, "images/a.jpg": b""},
            [("images/a.jpg", None)],
        ),
        (  # CVAT, several tasks whose frames are called alike
            {
                "1/annotations/instances_default.json": EMPTY,
                "1/images/a.jpg": b"",
                "2/annotations/instances_default.json": EMPTY,
                "2/images/a.jpg": b"",
            },
            [("1/images/a.jpg", None), ("2/images/a.jpg", None)],
        ),
        (  # CVAT, a project with subsets
            {
                "annotations/instances_Test.json": EMPTY,
                "annotations/instances_Validation.json": EMPTY,
                "images/Test/a.jpg": b"",
                "images/Validation/a.jpg": b"",
            },
            [("images/Test/a.jpg", "test"), ("images/Validation/a.jpg", "val")],
        ),
        (  # labelme2coco
            {
                "annotations.json": document(images=[image("JPEGImages/a.jpg")]),
                "JPEGImages/a.jpg": b"",
                "Visualization/a.jpg": b"",
            },
            [("JPEGImages/a.jpg", None)],
        ),
        (  # one folder
            {
                "train.coco.json": document(images=[image("images/a.jpg")]),
                "val.coco.json": document(images=[image("images/b.jpg")]),
                "images/a.jpg": b"",
                "images/b.jpg": b"",
            },
            [("images/a.jpg", "train"), ("images/b.jpg", "val")],
        ),
        (  # paths out of the folder: from there, on Windows, and of another machine
            {
                "labels/one.json": document(images=[image("../photos/a.jpg")]),
                "labels/two.json": document(images=[image("..\\photos\\b.jpg")]),
                "labels/six.json": document(images=[image("D:\\work\\c.jpg")]),
                "photos/a.jpg": b"",
                "photos/b.jpg": b"",
                "photos/c.jpg": b"",
            },
            [("photos/a.jpg", None), ("photos/c.jpg", None), ("photos/b.jpg", None)],
        ),
    ],
)
def test_finds_images_and_their_splits(
    tmp_path: Path, files: dict[str, Any], expected: list[tuple[str, str | None]]
) -> None:
    assert placed(tmp_path, find(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("path", "picture", "split"),
    [
        ("train/_annotations.coco.json", "train/a.jpg", "train"),
        ("annotations/instances_val2017.json", "val2017/a.jpg", "val"),
        ("test/train.json", "test/a.jpg", "train"),
        ("labels.json", "images/a.jpg", None),
    ],
)
def test_a_source_may_be_one_file(
    tmp_path: Path, path: str, picture: str, split: str | None
) -> None:
    write(tmp_path, {path: EMPTY, picture: b"", "other.json": "no JSON", "other.jpg": b""})
    found = find_coco(str(tmp_path / path), ReadOptions())
    assert placed(tmp_path, found) == [(picture, split)]
    assert not found.skipped


def test_images_may_be_elsewhere(tmp_path: Path) -> None:
    files = {"labels/all.json": EMPTY, "labels/a.jpg": b"", "photos/deep/a.jpg": b""}
    write(tmp_path, files)
    found = find_coco(str(tmp_path / "labels"), ReadOptions(images=str(tmp_path / "photos")))
    assert placed(tmp_path, found) == [("photos/deep/a.jpg", None)]


def test_an_image_may_be_a_uri(tmp_path: Path) -> None:
    found = find(tmp_path, {"all.json": document(images=[image("s3://photos/a.jpg")])})
    assert [annotated.uri for annotated in found.images] == ["s3://photos/a.jpg"]


def test_one_name_for_two_files_is_not_guessed(tmp_path: Path) -> None:
    both = document(images=[image(), image("b.jpg", 8)])
    found = find(tmp_path, {"all.json": both, "x/a.jpg": b"", "y/a.jpg": b"", "x/b.jpg": b""})
    assert placed(tmp_path, found) == [("x/b.jpg", None)]
    first = found.skipped[0]
    assert first.where == f"{tmp_path}/all.json: images[0]"
    assert "a.jpg may be" in first.why
    assert "--images" in first.why


def test_an_image_of_another_folder_does_not_stand_in_for_a_missing_one(tmp_path: Path) -> None:
    lists = document(images=[image("house 2/a.jpg")])
    found = find(tmp_path, {"all.json": lists, "house 1/a.jpg": photograph()})
    with pytest.raises(Unusable, match=r"house 2/a\.jpg: cannot be read"):
        read_coco(found.images[0], IDS, UNLABELLED)


def test_an_image_of_another_split_does_not_stand_in_for_a_missing_one(tmp_path: Path) -> None:
    found = find(tmp_path, {"annotations/val.json": EMPTY, "train/a.jpg": b""})
    assert placed(tmp_path, found) == [("annotations/a.jpg", "val")]


def test_images_without_labels_are_named(tmp_path: Path) -> None:
    files = {"all.json": EMPTY, "a.jpg": b"", "b.JPG": b"", "._b.jpg": b"", "notes.txt": ""}
    (skipped,) = find(tmp_path, files).skipped
    assert (skipped.where, skipped.why) == (f"{tmp_path}/b.JPG", "is in no COCO file")


def test_an_item_holds_its_own_shapes_only(tmp_path: Path) -> None:
    other = annotation(1, [[5.5] * 10_000], image_id=8)
    lists = document(annotation(1, [box(0, 0, 2, 2)]), other, images=[image(), image("b.jpg", 8)])
    small, large = find(tmp_path, {"all.json": lists}).images
    assert len(pickle.dumps(small)) < 1000 < len(pickle.dumps(large))


# ---------------------------------------------------------------------------------------- names


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    twice = categories("wall", "window", "wall")
    shapes = [annotation(1, [box(0, 0, 3, 2)]), annotation(3, [box(5, 0, 9, 2)])]
    annotated = one(tmp_path, document(*shapes, categories=twice))
    assert find_coco(str(tmp_path), ReadOptions()).names == ["wall", "window"]
    expected = blank(UNLABELLED)
    expected[0:2, 0:3] = 0
    expected[0:2, 5:9] = 0
    np.testing.assert_array_equal(read_coco(annotated, IDS, UNLABELLED).label_map, expected)


def test_names_are_in_the_order_of_their_ids_over_all_files(tmp_path: Path) -> None:
    named = [{"id": 12, "name": "window"}, {"id": 3, "name": " wall "}]
    more = [{"id": 1, "name": "door"}, {"id": 2, "name": "window"}]
    files = {"a.json": document(categories=named), "b.json": document(categories=more)}
    assert find(tmp_path, files).names == ["wall", "window", "door"]


@pytest.mark.parametrize(
    ("used", "expected"), [([2, 2], ["window", "door"]), ([1, 2], ["facades", "window", "door"])]
)
def test_a_root_of_roboflow_is_a_class_only_if_it_is_used(
    tmp_path: Path, used: list[int], expected: list[str]
) -> None:
    tree = [
        {"id": 1, "name": "facades", "supercategory": "none"},
        {"id": 2, "name": "window", "supercategory": "facades"},
        {"id": 3, "name": "door", "supercategory": "facades"},
    ]
    shapes = [annotation(number, [box(0, 0, 2, 2)]) for number in used]
    files = {
        "train/_annotations.coco.json": document(shapes[0], categories=tree),
        "valid/_annotations.coco.json": document(shapes[1], categories=tree),
    }
    assert find(tmp_path, files).names == expected


def test_a_category_that_is_its_own_supercategory_is_a_class(tmp_path: Path) -> None:
    own = [{"id": 1, "name": "person", "supercategory": "person"}]
    assert find(tmp_path, {"all.json": document(categories=own)}).names == ["person"]


def test_ignored_shapes_become_the_ignore_index(tmp_path: Path) -> None:
    lists = document(annotation(1, [box(0, 0, 4, 4)]), categories=categories("__ignore__", "wall"))
    annotated = one(tmp_path, lists)
    assert find_coco(str(tmp_path), ReadOptions()).names == ["wall"]
    expected = blank(UNLABELLED)
    expected[:4, :4] = 255
    np.testing.assert_array_equal(read_coco(annotated, {"wall": 0}, UNLABELLED).label_map, expected)


# --------------------------------------------------------------------------------------- shapes


def test_polygons_cover_the_pixels_whose_centres_are_inside(tmp_path: Path) -> None:
    expected = blank(UNLABELLED)
    expected[4:9, 10:25] = 1
    expected[15:20, 28:30] = 2
    shapes = [
        annotation(2, [box(10, 4, 25, 9)]),
        annotation(3, [box(27.6, 15.4, 40, 60)]),  # beyond the edge
    ]
    assert draw(tmp_path, *shapes) == expected.tolist()


def test_an_annotation_may_have_several_polygons(tmp_path: Path) -> None:
    expected = blank(UNLABELLED)
    expected[4:9, 10:25] = 1
    expected[12:16, 3:7] = 1
    two = annotation(2, [box(10, 4, 25, 9), box(3, 12, 7, 16)])
    assert draw(tmp_path, two) == expected.tolist()


@pytest.mark.parametrize("iscrowd", [0, 1])
def test_rle_of_both_kinds(tmp_path: Path, iscrowd: int) -> None:
    expected = blank(UNLABELLED)
    expected[4:9, 10:25] = 1
    expected[12:16, 3:7] = 1
    inside = (expected == 1).T.ravel()  # column by column
    changes = np.flatnonzero(np.diff(inside)) + 1
    counts = np.diff([0, *changes, inside.size]).tolist()
    plain = {"size": [HEIGHT, WIDTH], "counts": counts}
    for rle in (plain, COMPRESSED):
        assert draw(tmp_path, annotation(2, rle, iscrowd=iscrowd)) == expected.tolist()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_smaller_shapes_lie_on_larger_ones_in_any_order(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    expected = blank(UNLABELLED)
    expected[2:18, 2:28] = 0
    expected[4:14, 4:14] = 1
    expected[6:9, 6:9] = 2
    shapes = [
        annotation(1, [box(2, 2, 28, 18)]),
        annotation(2, [box(4, 4, 14, 14)]),
        annotation(3, [box(6, 6, 9, 9)]),
    ]
    assert draw(tmp_path, *(shapes[index] for index in order)) == expected.tolist()


def test_of_two_equally_large_shapes_the_later_lies_on_top(tmp_path: Path) -> None:
    expected = blank(UNLABELLED)
    expected[2:6, 2:6] = 2
    expected[2:6, 4:8] = 1
    shapes = [annotation(3, [box(2, 2, 6, 6)]), annotation(2, [box(4, 2, 8, 6)])]
    assert draw(tmp_path, *shapes) == expected.tolist()


def test_an_image_without_annotations_is_unlabelled(tmp_path: Path) -> None:
    labelled = read_coco(one(tmp_path, EMPTY), IDS, UNLABELLED)
    assert (labelled.width, labelled.height, labelled.shapes) == (WIDTH, HEIGHT, 0)
    assert labelled.image == photograph()
    np.testing.assert_array_equal(labelled.label_map, blank(UNLABELLED))


RLE_SIZE = {"size": [30, 20], "counts": [600]}


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        (None, "has no segmentation"),
        ([], "has no segmentation"),
        ([[1, 1, 5, 5]], "has a polygon of 2 points"),
        ([[1, 1, 5, 5, 9]], "is not a list x, y, x, y"),
        ([["1", "a"]], "is not a list of numbers"),
        ([[1, 1, float("nan"), 5, 9, 9]], "coordinates are not numbers"),
        ([[1, 1, 1e12, 5, 9, 9]], "has a corner more than 300 pixels away"),
        ([box(40, 40, 60, 60)], "covers no pixel"),
        ([[1, 1, 9, 1, 9, 1.2]], "covers no pixel"),
        (RLE_SIZE, r"has RLE of the size \[30, 20\]: \[20, 30\] is the image's"),
        ({"size": [20, 30], "counts": [10, 5]}, "has RLE of 15 pixels for 600"),
        ({"size": [20, 30], "counts": [605, -5]}, "counts are not runs"),
        ({"size": [20, 30], "counts": "äöü"}, "not compressed runs"),
        ({"size": [20, 30], "counts": "o" * 100}, "not compressed runs"),
        ({"size": [20, 30], "counts": "X2o"}, "end in the middle"),
        ({"size": [20, 30], "counts": None}, "counts are not runs"),
        ({"size": [20, 30], "counts": [600]}, "covers no pixel"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_named_with_the_reason(
    tmp_path: Path, segmentation: Any, why: str
) -> None:
    lists = document(annotation(1, segmentation, 31), annotation(2, [box(0, 0, 4, 4)], 32))
    labelled = read_coco(one(tmp_path, lists), IDS, UNLABELLED)
    (skipped,) = labelled.skipped
    assert skipped.where == f"{tmp_path}/labels.json: annotation 31"
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(skipped.why)
    assert labelled.shapes == 1
    assert set(np.unique(labelled.label_map)) == {1, UNLABELLED}


def test_a_bad_polygon_does_not_take_the_others_along(tmp_path: Path) -> None:
    lists = document(annotation(2, [[1, 1, 2, 2], box(0, 0, 4, 4)], 31))
    labelled = read_coco(one(tmp_path, lists), IDS, UNLABELLED)
    assert labelled.shapes == 1
    assert (labelled.label_map == 1).sum() == 16
    assert [skipped.why for skipped in labelled.skipped] == [
        "has a polygon of 2 points: at least 3 make one (polygon 1 of 2)"
    ]


@pytest.mark.parametrize(
    "segmentation",
    [
        [0, 0, 4, 0, 4, 4, 0, 4],
        [[0, 0], [4, 0], [4, 4], [0, 4]],
        [[[0, 0], [4, 0], [4, 4], [0, 4]]],
    ],
)
def test_a_polygon_may_be_a_flat_list_or_a_list_of_points(
    tmp_path: Path, segmentation: Any
) -> None:
    wanted = draw(tmp_path / "usual", annotation(2, [[0, 0, 4, 0, 4, 4, 0, 4]]))
    assert draw(tmp_path / "other", annotation(2, segmentation)) == wanted


def test_a_long_polygon_of_nothing_is_named_in_a_short_line(tmp_path: Path) -> None:
    polygons = [["x"]] * 5000
    annotated = one(tmp_path, document(annotation(1, polygons)))
    [skipped] = read_coco(annotated, IDS, UNLABELLED).skipped
    assert skipped.why.endswith("(polygon 1 of 5000); and 4,999 more")
    assert len(skipped.why) < 200


@pytest.mark.parametrize(
    ("of_image", "in_annotation"), [(7, "7"), ("7", 7), ("007", 7), ("007", "7"), (7, 7.0)]
)
def test_ids_meet_as_numbers_and_as_texts(
    tmp_path: Path, of_image: Any, in_annotation: Any
) -> None:
    found = annotation("2", [box(0, 0, 4, 4)], image_id=in_annotation)
    content = document(found, images=[image(number=of_image)])
    annotated = one(tmp_path, content)
    assert read_coco(annotated, IDS, UNLABELLED).shapes == 1


def test_ids_that_may_be_either_of_two_are_not_guessed(tmp_path: Path) -> None:
    shapes = [annotation(1, [box(0, 0, 4, 4)], image_id=wanted) for wanted in ("7", "007", 7)]
    images = [image("a.jpg", "7"), image("b.jpg", "007")]
    found = find(
        tmp_path, {"all.json": document(*shapes, images=images), "a.jpg": b"", "b.jpg": b""}
    )
    assert [len(annotated.detail.shapes) for annotated in found.images] == [1, 1]
    assert [skipped.why for skipped in found.skipped] == ["has the image_id 7, which no image has"]


@pytest.mark.parametrize(
    "path",
    [
        "images\\1/a.jpg",
        "images/12/a.jpg",
        "..\\..\\label-studio\\media\\upload\\4\\a.jpg",
        "/data/local-files/?d=photos/a.jpg",
        "/data/upload/3/a.jpg",
    ],
)
@pytest.mark.parametrize("root", [None, "images"])
def test_images_are_found_by_the_paths_of_label_studio(
    tmp_path: Path, path: str, root: str | None
) -> None:
    files = {"result.json": document(images=[image(path)]), "images/a.jpg": b""}
    options = {} if root is None else {"images": str(tmp_path / root)}
    found = find(tmp_path, files, **options)
    assert placed(tmp_path, found) == [("images/a.jpg", None)]


def test_a_panoptic_file_is_refused_as_such(tmp_path: Path) -> None:
    panoptic = document({"image_id": 7, "file_name": "a.png", "segments_info": []})
    with pytest.raises(SourceError, match="is COCO panoptic, whose shapes are in PNG files"):
        find(tmp_path, {"all.json": panoptic, "a.jpg": b""})


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"image_id": 99}, "has the image_id 99, which no image has"),
        ({"category_id": 99}, "has the category_id 99, which no category has"),
        ({"category_id": [1]}, "has the category_id null, which no category has"),
    ],
)
def test_an_annotation_of_nothing_known_is_named(
    tmp_path: Path, keys: dict[str, Any], why: str
) -> None:
    lists = document({**annotation(1, [box(0, 0, 4, 4)], 31), **keys})
    found = find(tmp_path, {"all.json": lists, "a.jpg": b""})
    assert [(s.where, s.why) for s in found.skipped] == [
        (f"{tmp_path}/all.json: annotation 31", why)
    ]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"id": 8}, "has no id or no file_name"),
        ({"file_name": "b.jpg"}, "has no id or no file_name"),
        ("b.jpg", "has no id or no file_name"),
        (image("b.jpg", 7), "has the id 7 of another image"),
    ],
)
def test_a_broken_entry_of_an_image_is_named(tmp_path: Path, entry: Any, why: str) -> None:
    found = find(tmp_path, {"all.json": document(images=[image(), entry]), "a.jpg": b""})
    assert [(s.where, s.why) for s in found.skipped] == [(f"{tmp_path}/all.json: images[1]", why)]


# --------------------------------------------------------------------------------- unusable things


def test_a_photograph_turned_by_exif_is_labelled_as_it_is_seen(tmp_path: Path) -> None:
    """Stored 20×30, seen 30×20."""
    lists = document(annotation(2, [box(0, 0, 5, 2)]))
    annotated = one(tmp_path, lists, photograph(20, 30, orientation=6))
    labelled = read_coco(annotated, IDS, UNLABELLED)
    expected = blank(UNLABELLED)
    expected[0:2, 0:5] = 1
    assert (labelled.width, labelled.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(labelled.label_map, expected)


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (photograph(60, 40), "the JSON is for 30×20 and the image is 60×40"),
        (photograph(30, 20, orientation=6), "the JSON is for 30×20, .* EXIF turns to 20×30"),
        (b"<html>", "looks like HTML"),
    ],
)
def test_an_image_that_the_shapes_do_not_fit_is_unusable(
    tmp_path: Path, picture: bytes, why: str
) -> None:
    with pytest.raises(Unusable, match=why):
        read_coco(one(tmp_path, EMPTY, picture), IDS, UNLABELLED)


def test_a_json_without_sizes_takes_the_images(tmp_path: Path) -> None:
    lists = document(images=[{"id": 7, "file_name": "a.jpg"}])
    assert read_coco(one(tmp_path, lists), IDS, UNLABELLED).width == WIDTH


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.jpg": b""}, r"0 files \*\.json and no COCO images"),
        ({"a.json": {"shapes": []}}, r"a\.json: is a labelme file: import it with --from labelme"),
        (
            {"a.json": [1, 2]},
            "not a COCO file of shapes: such a file has the lists images, annotations",
        ),
        ({"a.json": EMPTY, "b.json": "{"}, r"b\.json: damaged, or not JSON"),
    ],
)
def test_what_is_no_coco_is_refused(tmp_path: Path, files: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        find(tmp_path, files)
    assert "\n" not in str(caught.value)


def test_json_that_is_no_coco_is_named_beside_others(tmp_path: Path) -> None:
    found = find(tmp_path, {"all.json": EMPTY, "a.jpg": b"", "package.json": {"version": 1}})
    assert [(s.where, s.why.partition(":")[0]) for s in found.skipped] == [
        (f"{tmp_path}/package.json", "is not a COCO file of shapes")
    ]


def test_from_s3(s3: S3) -> None:
    source = s3.uri("facades")
    labels = document(annotation(2, [box(0, 0, 5, 2)]))
    for path, content in {
        "train/_annotations.coco.json": labels,
        "train/a.jpg": photograph(),
        "valid/_annotations.coco.json": labels,
    }.items():
        s3.put(f"{source}/{path}", to_bytes(content))
    found = find_coco(source, ReadOptions())
    assert [(annotated.uri, annotated.split) for annotated in found.images] == [
        (f"{source}/train/a.jpg", "train"),
        (f"{source}/valid/a.jpg", "val"),
    ]
    labelled = read_coco(found.images[0], IDS, UNLABELLED)
    expected = blank(UNLABELLED)
    expected[0:2, 0:5] = 1
    np.testing.assert_array_equal(labelled.label_map, expected)
    with pytest.raises(Unusable, match="cannot be read: no such object"):
        read_coco(found.images[1], IDS, UNLABELLED)
    with pytest.raises(SourceError, match=r"nothing\.json: no such"):
        find_coco(f"{source}/nothing.json", ReadOptions())


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    assert_round_trip(COCO, tmp_path)


# ------------------------------------------------------------------------------------- provenance

SQUARE = [box(2, 2, 8, 8)]
DRAWN = shapes_digest([("wall", SQUARE)])
EXPORTED = {"info": {"description": "masks of the segbatch run s3://runs/a"}}
AT = "s3://street/7.jpg"


@pytest.mark.parametrize(
    ("keys", "others", "uri", "unchanged"),
    [
        ({"uri": AT}, EXPORTED, AT, False),
        ({"segbatch": {"uri": AT, "shapes": DRAWN}}, {}, AT, True),
        ({"segbatch": {"uri": AT, "shapes": shapes_digest([])}}, {}, AT, False),
        ({"segbatch": {"uri": AT}}, {}, AT, False),  # of an earlier version
        ({"segbatch": {"uri": AT, "shapes": 7}}, {}, AT, False),
        ({"uri": AT}, {}, None, False),  # another tool's
        ({"uri": AT}, {"info": "masks of the segbatch run"}, None, False),
        ({"uri": "two\nlines"}, EXPORTED, None, False),
        ({"segbatch": AT}, {}, None, False),
        ({}, EXPORTED, None, False),
    ],
)
def test_a_copy_that_was_made_for_labelling_is_the_image_that_it_says(
    tmp_path: Path,
    *,
    keys: dict[str, Any],
    others: dict[str, Any],
    uri: str | None,
    unchanged: bool,
) -> None:
    content = document(annotation(1, SQUARE), images=[image(**keys)], **others)
    annotated = one(tmp_path, content)
    assert annotated.uri == (uri or f"{tmp_path}/a.jpg")
    assert annotated.file == f"{tmp_path}/a.jpg"
    assert annotated.unchanged is unchanged
    assert read_coco(annotated, IDS, UNLABELLED).shapes == 1


PLACE = "s3://street/Zürich 東京/tür.jpg"
COPY = f"tür-{uri_digest(PLACE)}.jpg"
LIST = f"image_id,uri,file,shapes\n3,{PLACE},{COPY},{DRAWN}\n"


def suggested(copies_list: bytes) -> Mapping[str, Any]:
    """A folder of ``labels suggest`` from which CVAT has dropped the key ``segbatch``."""
    content = document(annotation(1, SQUARE), images=[image(COPY)])
    return {"labels.json": content, COPY: photograph(), "suggested.csv": copies_list}


@pytest.mark.parametrize(
    "copies_list",
    [
        LIST.encode(),
        LIST.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),  # Excel in German
        LIST.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
        LIST.replace(COPY, unicodedata.normalize("NFD", COPY)).encode(),
        LIST.replace(PLACE, "s3://moved/tuer.jpg").encode(),
    ],
)
def test_a_list_of_suggestions_that_a_spreadsheet_saved_is_read(
    tmp_path: Path, copies_list: bytes
) -> None:
    [annotated] = find(tmp_path, suggested(copies_list)).images
    assert annotated.uri in (PLACE, "s3://moved/tuer.jpg")
    assert annotated.unchanged


@pytest.mark.parametrize(
    ("copies_list", "why"),
    [
        (LIST.encode("cp1252", "replace"), "line 2 is not UTF-8 text"),
        (LIST.encode("ascii", "replace"), "letters were lost in t[?]r-"),
        (LIST.encode().decode("latin-1").encode(), "letters were lost in tÃ¼r-"),
        (LIST.replace(PLACE, "s3://street/Z?rich ??/t?r.jpg").encode(), "letters were lost"),
        (b"name,price\nbread,3\n", "is not a list of suggestions"),
        (b"", "is not a list of suggestions"),
    ],
)
def test_a_list_of_suggestions_that_lost_what_it_said_is_refused(
    tmp_path: Path, copies_list: bytes, why: str
) -> None:
    with pytest.raises(SourceError, match=f"suggested.csv: {why}"):
        find(tmp_path, suggested(copies_list))


def test_an_export_comes_back_under_the_uris_of_its_images(tmp_path: Path) -> None:
    assert_round_trip(COCO, tmp_path)
    found = find_coco(str(tmp_path), ReadOptions()).images
    assert [each.uri for each in found] == ["s3://photos/a.jpg", "s3://photos/street/b.jpg"]
