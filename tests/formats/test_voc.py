from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segbatch.errors import SourceError
from segbatch.formats.format import AnnotatedImage, Annotations, ReadOptions, Unusable
from segbatch.formats.maskfiles import read_mask_file
from segbatch.formats.voc import VOC, find_voc
from segbatch.masks.classes import VOC_NAMES
from tests.conftest import S3
from tests.formats.round_trip import assert_round_trip
from tests.labels.files import (
    HEIGHT,
    WIDTH,
    Array,
    blank,
    grey,
    left_out,
    palette,
    photograph,
    placed,
    rgb,
    to_bytes,
    write,
)

LABELMAP = """\
# label:color_rgb:parts:actions
background:0,0,0::
big wall:250,50,83::
window:51,221,255::
"""
CVAT_COLORS = {0: (0, 0, 0), 1: (250, 50, 83), 2: (51, 221, 255), 255: (224, 224, 192)}


def indices(first: int = 0, second: int = 1) -> Array:
    """``first`` with a square of ``second`` in it, and a void line below."""
    ids = blank(first)
    ids[2:9, 3:12] = second
    ids[15] = 255
    return ids


def find(root: Path, files: Mapping[str, Any], **options: Any) -> Annotations:
    return find_voc(write(root, files), ReadOptions(**options))


def read(annotated: AnnotatedImage, *names: str) -> Array:
    """The label map, where the classes are ``names``."""
    return read_mask_file(
        annotated, {name: index for index, name in enumerate(names)}, 99
    ).label_map


DEVKIT = {
    "VOC2012/JPEGImages/2007_1.jpg": photograph(),
    "VOC2012/JPEGImages/2007_2.jpg": photograph(),
    "VOC2012/SegmentationClass/2007_1.png": palette(indices(0, 20)),
    "VOC2012/SegmentationClass/2007_2.png": palette(indices(0, 15)),
    "VOC2012/SegmentationObject/2007_1.png": palette(indices(0, 1)),
    "VOC2012/ImageSets/Segmentation/train.txt": "2007_1\n",
    "VOC2012/ImageSets/Segmentation/val.txt": "2007_2\n",
    "VOC2012/ImageSets/Segmentation/trainval.txt": "2007_1\n2007_2\n",
}


def test_voc_itself(tmp_path: Path) -> None:
    found = find(tmp_path, DEVKIT)
    assert placed(tmp_path, found) == [
        ("VOC2012/JPEGImages/2007_1.jpg", "VOC2012/SegmentationClass/2007_1.png", "train"),
        ("VOC2012/JPEGImages/2007_2.jpg", "VOC2012/SegmentationClass/2007_2.png", "val"),
    ]
    assert found.names == VOC_NAMES
    assert not found.skipped
    labelled = read_mask_file(found.images[0], dict.fromkeys(VOC_NAMES, 7) | {"tvmonitor": 3}, 99)
    expected = indices(7, 3)
    np.testing.assert_array_equal(labelled.label_map, expected)
    assert (labelled.width, labelled.height, labelled.shapes) == (WIDTH, HEIGHT, 1)
    assert labelled.image == photograph()


@pytest.mark.parametrize("first_line", ["", "__ignore__\n"])
def test_labelme2voc(tmp_path: Path, first_line: str) -> None:
    files = {
        "class_names.txt": f"{first_line}_background_\nwall\nwindow",
        "JPEGImages/a.jpg": photograph(),
        "SegmentationClass/a.npy": b"numbers",
        "SegmentationClassPNG/a.png": palette(indices(0, 2)),
        "SegmentationClassVisualization/a.jpg": photograph(),
    }
    found = find(tmp_path, files, class_names=("window", "_background_", "wall"))
    assert placed(tmp_path, found) == [("JPEGImages/a.jpg", "SegmentationClassPNG/a.png", None)]
    assert found.names == ["_background_", "wall", "window"]
    assert not found.skipped
    label_map = read(found.images[0], "window", "_background_", "wall")
    np.testing.assert_array_equal(label_map, indices(1, 0))


def test_cvat(tmp_path: Path) -> None:
    files = {
        "labelmap.txt": LABELMAP,
        "ImageSets/Segmentation/default.txt": '"a b"\nc\nd\n',
        "JPEGImages/a b.png": photograph(),
        "JPEGImages/c.jpg": photograph(),
        "SegmentationClass/a b.png": rgb(indices(1, 2), CVAT_COLORS),
        "SegmentationObject/a b.png": rgb(indices(1, 2), CVAT_COLORS),
    }
    found = find(tmp_path, files)
    assert placed(tmp_path, found) == [("JPEGImages/a b.png", "SegmentationClass/a b.png", None)]
    assert found.names == ["background", "big wall", "window"]
    assert found.colors == {
        "background": (0, 0, 0),
        "big wall": (250, 50, 83),
        "window": (51, 221, 255),
    }
    assert left_out(tmp_path, found) == {
        "ImageSets/Segmentation/default.txt: d": "has neither image nor mask",
        "JPEGImages/c.jpg": "has no mask",
    }
    label_map = read(found.images[0], "window", "background", "big wall")
    np.testing.assert_array_equal(label_map, indices(2, 0))


def test_a_palette_mask_with_a_labelmap_is_read_by_its_colours(tmp_path: Path) -> None:
    """Tools that save a palette image may renumber its palette."""
    colors = {0: (51, 221, 255), 1: (0, 0, 0), 255: (224, 224, 192)}
    files = {
        "labelmap.txt": LABELMAP,
        "JPEGImages/a.jpg": photograph(),
        "SegmentationClass/a.png": palette(indices(), lambda i: colors.get(i, (9, 9, 9))),
    }
    (annotated,) = find(tmp_path, files).images
    np.testing.assert_array_equal(
        read(annotated, "background", "big wall", "window"), indices(2, 0)
    )


def test_masks_may_be_in_folders_and_images_elsewhere(tmp_path: Path) -> None:
    files = {
        "labels/class_names.txt": "wall\nwindow\n",
        "labels/SegmentationClass/street/a.png": palette(indices()),
        "photos/street/a.webp": photograph(),
        "photos/a.jpg": photograph(),
    }
    write(tmp_path, files)
    options = ReadOptions(images=str(tmp_path / "photos"))
    found = find_voc(str(tmp_path / "labels"), options)
    assert placed(tmp_path, found) == [
        ("photos/street/a.webp", "labels/SegmentationClass/street/a.png", None)
    ]
    assert left_out(tmp_path, found) == {"photos/a.jpg": "has no mask"}


@pytest.mark.parametrize("images", [None, "JPEGImages"])
def test_files_beside_the_photographs_are_none(tmp_path: Path, images: str | None) -> None:
    files = {
        "class_names.txt": "wall\nwindow\n",
        "JPEGImages/a.json": "{}",
        "JPEGImages/a.PNG": photograph(),
        "JPEGImages/a.txt": "a.PNG",
        "SegmentationClass/a.png": palette(indices()),
    }
    options = {} if images is None else {"images": str(tmp_path / images)}
    found = find(tmp_path, files, **options)
    assert placed(tmp_path, found) == [("JPEGImages/a.PNG", "SegmentationClass/a.png", None)]
    assert not found.skipped


def test_a_mask_without_an_image_is_named(tmp_path: Path) -> None:
    found = find(tmp_path, DEVKIT | {"VOC2012/SegmentationClass/x.png": palette(indices())})
    assert left_out(tmp_path, found) == {"VOC2012/SegmentationClass/x.png": "has no image"}


def test_an_image_in_two_lists_is_named_and_stays_in_the_first(tmp_path: Path) -> None:
    found = find(tmp_path, DEVKIT | {"VOC2012/ImageSets/Segmentation/val.txt": "2007_1\n2007_2"})
    assert [annotated.split for annotated in found.images] == ["train", "val"]
    assert left_out(tmp_path, found) == {
        "VOC2012/ImageSets/Segmentation/val.txt: 2007_1": "is in the list of train already"
    }


def test_names_of_ids_may_be_given(tmp_path: Path) -> None:
    files = {
        "JPEGImages/a.jpg": photograph(),
        "SegmentationClass/a.png": grey(indices()),
    }
    found = find(tmp_path, files, class_names=("wall", "window"))
    assert found.names == ["wall", "window"]
    np.testing.assert_array_equal(read(found.images[0], "window", "wall"), indices(1, 0))


WITHOUT_LISTS = {path: data for path, data in DEVKIT.items() if "ImageSets" not in path}
OTHER_PALETTE = palette(indices(0, 15), lambda index: (index, index, index))


@pytest.mark.parametrize(
    "files",
    [
        WITHOUT_LISTS,  # VOC's palette is that of labelme2voc, too
        DEVKIT | {"VOC2012/SegmentationClass/2007_1.png": OTHER_PALETTE},
        DEVKIT | {"VOC2012/SegmentationClass/2007_1.png": grey(indices())},
        DEVKIT | {"VOC2012/SegmentationClass/2007_1.png": b"no image"},
    ],
)
def test_masks_whose_ids_nobody_names_are_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"VOC2012: .* by id with --classes, or --colors FILE"):
        find(tmp_path, files)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"SegmentationClass/a.npy": b""}, r"no \*\.png in a folder SegmentationClass/"),
        (
            {"SegmentationClass/a.png": palette(indices()), "class_names.txt": "wall\nwindow"},
            r"no mask has an image of its name in JPEGImages/: name the folder of the images",
        ),
        (
            {"SegmentationClass/a.png": b"", "labelmap.txt": "# only\n"},
            r"labelmap\.txt: no colours",
        ),
        (
            {"SegmentationClass/a.png": b"", "labelmap.txt": "a:1,2,3::\nb\n"},
            r"labelmap\.txt: line 2: b: must be `R G B name`, or CVAT's",
        ),
        (
            {"SegmentationClass/a.png": b"", "labelmap.txt": "a:1,2,3::\nb:1,2,3::\n"},
            r"labelmap\.txt: line 2: b:1,2,3::: 'a' has this colour already",
        ),
        (
            {"SegmentationClass/a.png": b"", "labelmap.txt": "a:1,2,300::\n"},
            "a colour is three numbers from 0 to 255",
        ),
        (
            {"SegmentationClass/a.png": b"", "class_names.txt": "__ignore__\n"},
            r"class_names\.txt: no names",
        ),
        (
            {"SegmentationClass/a.png": b"", "class_names.txt": "wall\n__ignore__\nwindow"},
            r"class_names\.txt: __ignore__ has no id and must be the first name",
        ),
        (
            {"SegmentationClass/a.png": b"", "class_names.txt": b"caf\xe9"},
            r"class_names\.txt: line 1 is not UTF-8 text",
        ),
    ],
)
def test_what_is_no_voc_is_refused(tmp_path: Path, files: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        find(tmp_path, files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (palette(indices(0, 21)), "63 pixels of its mask have the ids 21: the classes end at 20"),
        (palette(blank(width=31)), "its mask is for 31×20 and the image is 30×20"),
        (rgb(indices(), CVAT_COLORS), r"holds colours \(mode RGB\) .* --colors FILE"),
        (palette(indices())[:-40], "its mask .*2007_2.png: .* cannot be decoded"),
    ],
)
def test_a_mask_that_does_not_fit_is_unusable(tmp_path: Path, mask: bytes, why: str) -> None:
    found = find(tmp_path, DEVKIT | {"VOC2012/SegmentationClass/2007_2.png": mask})
    with pytest.raises(Unusable, match=why):
        read(found.images[1], *VOC_NAMES)


def test_labels_without_colours_in_a_labelmap_have_those_of_voc(tmp_path: Path) -> None:
    files = {
        "labelmap.txt": "background:::\nwall:::\n",
        "JPEGImages/a.jpg": photograph(),
        "SegmentationClass/a.png": palette(indices()),
    }
    (annotated,) = find(tmp_path, files).images
    np.testing.assert_array_equal(read(annotated, "background", "wall"), indices())


def test_from_s3(s3: S3) -> None:
    source = s3.uri("devkit")
    for path, content in DEVKIT.items():
        s3.put(f"{source}/{path}", to_bytes(content))
    found = find_voc(source, ReadOptions())
    assert [(annotated.uri, annotated.split) for annotated in found.images] == [
        (f"{source}/VOC2012/JPEGImages/2007_1.jpg", "train"),
        (f"{source}/VOC2012/JPEGImages/2007_2.jpg", "val"),
    ]
    np.testing.assert_array_equal(read(found.images[1], *VOC_NAMES), indices(0, 15))


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    assert_round_trip(VOC, tmp_path)


@pytest.mark.parametrize(
    "lines",
    [
        "a.jpg\nb.jpg",
        "a\r\nb\r\n",
        "a 1\nb -1",
        "./a\tx\n./b\tx",
        '"a"\n"b"',
        "/JPEGImages/a.jpg /SegmentationClass/a.png\n/JPEGImages/b.jpg /SegmentationClass/b.png",
    ],
)
def test_a_list_names_images_in_any_way(tmp_path: Path, lines: str) -> None:
    files = {
        "class_names.txt": "background\nwindow\n",
        "ImageSets/Segmentation/train.txt": lines,
    }
    for name in "ab":
        files |= {f"JPEGImages/{name}.JPG": b"", f"SegmentationClass/{name}.png": b""}
    write(tmp_path, files)
    found = find_voc(str(tmp_path), ReadOptions())
    assert [image.split for image in found.images] == ["train", "train"]
    assert found.skipped == []
