import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segbatch.errors import InputError, SourceError
from segbatch.formats.format import Annotations, ReadOptions, Unusable
from segbatch.formats.maskfiles import read_mask_file
from segbatch.formats.pairs import find_pairs
from tests.collection import encoded
from tests.conftest import S3
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

NAMES = ("wall", "window")
COLORS = {0: (10, 20, 30), 1: (255, 0, 0), 2: (0, 0, 0), 3: (0, 255, 0)}
TABLE = (
    "# as painted\n10 20 30 wall\n255 0 0\twindow frame\n0,255,0 window frame\n0 0 0 __ignore__\n"
)


def indices(first: int = 0, second: int = 1) -> Array:
    ids = blank(first)
    ids[2:9, 3:12] = second
    return ids


def find(root: Path, files: Mapping[str, Any], **options: Any) -> Annotations:
    write(root, files)
    return find_pairs(str(root), ReadOptions(**{"class_names": NAMES, **options}))


def label_map(root: Path, mask: bytes, **options: Any) -> Any:
    """The label map of one mask, where ``wall`` is 5 and ``window``, also with a frame, is 6."""
    (annotated,) = find(root, {"images/a.jpg": photograph(), "masks/a.png": mask}, **options).images
    labelled = read_mask_file(annotated, {"wall": 5, "window": 6, "window frame": 6, "door": 7}, 99)
    assert (labelled.width, labelled.height, labelled.shapes) == (WIDTH, HEIGHT, 1)
    return labelled.label_map.tolist()


# -------------------------------------------------------------------------------------- layouts


def test_files_beside_the_images_are_no_photographs_and_no_masks(tmp_path: Path) -> None:
    others = ("a.json", "a.jpg.xml", "a.npy", "a", "b.txt", "a.polygons")
    files: dict[str, Any] = {f"{at}/{name}": "{}" for at in ("images", "masks") for name in others}
    files |= {"images/a.PNG": photograph(), "masks/a.png": palette(indices())}
    found = find(tmp_path, files)
    assert placed(tmp_path, found) == [("images/a.PNG", "masks/a.png", None)]
    assert not found.skipped
    # A pattern that names the extension takes that.
    write(tmp_path, {"images/b.jfif": photograph(), "masks/b.png": palette(indices())})
    found = find(tmp_path, {}, images="images/{id}.jfif", masks="masks/{id}.*")
    assert placed(tmp_path, found) == [("images/b.jfif", "masks/b.png", None)]


def test_folders_called_images_and_masks_need_no_pattern(tmp_path: Path) -> None:
    files = {
        "images/train/a.jpg": b"",
        "images/train/b.webp": b"",
        "images/c.jpg": b"",
        "images/d.jpg": b"",
        "masks/train/a.png": b"",
        "masks/train/b.png": b"",
        "masks/c.png": b"",
        "masks/e.png": b"",
        "images/._a.jpg": b"",
    }
    found = find(tmp_path, files)
    assert placed(tmp_path, found) == [
        ("images/c.jpg", "masks/c.png", None),
        ("images/train/a.jpg", "masks/train/a.png", "train"),
        ("images/train/b.webp", "masks/train/b.png", "train"),
    ]
    assert left_out(tmp_path, found) == {
        "images/d.jpg": "has no mask",
        "masks/e.png": "has no image",
    }
    assert found.names == NAMES


MMSEGMENTATION = {
    "img_dir/train/a.jpg": b"",
    "img_dir/train/zurich/b.jpg": b"",
    "img_dir/validation/a.jpg": b"",
    "img_dir/other/a.jpg": b"",
    "ann_dir/train/a.png": b"",
    "ann_dir/train/zurich/b.png": b"",
    "ann_dir/validation/a.png": b"",
    "ann_dir/other/a.png": b"",
    "ann_dir/train/a.txt": b"",
}


@pytest.mark.parametrize("extension", [".jpg", ".*"])
def test_mmsegmentation(tmp_path: Path, extension: str) -> None:
    patterns = {
        "images": f"img_dir/{{split}}/{{id}}{extension}",
        "masks": "ann_dir/{split}/{id}.png",
    }
    found = find(tmp_path, MMSEGMENTATION, **patterns)
    assert placed(tmp_path, found) == [
        ("img_dir/other/a.jpg", "ann_dir/other/a.png", None),
        ("img_dir/train/a.jpg", "ann_dir/train/a.png", "train"),
        ("img_dir/train/zurich/b.jpg", "ann_dir/train/zurich/b.png", "train"),
        ("img_dir/validation/a.jpg", "ann_dir/validation/a.png", "val"),
    ]
    assert not found.skipped


@pytest.mark.parametrize(
    ("images", "masks", "files"),
    [
        ("{id}.jpg", "{id}.png", ["a.jpg", "a.png"]),
        ("{id}.*", "{id}_mask.png", ["a.png", "a_mask.png"]),
        ("{id}_leftImg8bit.png", "gt/{id}_gtFine_labelIds.png",
         ["bonn/1_leftImg8bit.png", "gt/bonn/1_gtFine_labelIds.png"]),
        ("photo*/{id}.jpg", "masks/{id}.png", ["photos (2026)/a.jpg", "masks/a.png"]),
    ],
)  # fmt: skip
def test_patterns(tmp_path: Path, images: str, masks: str, files: list[str]) -> None:
    found = find(tmp_path, dict.fromkeys(files, b""), images=images, masks=masks)
    assert placed(tmp_path, found) == [(*files, None)]
    assert not found.skipped


def test_a_split_may_stand_in_one_of_the_patterns(tmp_path: Path) -> None:
    files = [
        "images/train/a.jpg",
        "images/val/b.jpg",
        "images/val/a.jpg",
        "masks/a.png",
        "masks/b.png",
    ]
    patterns = {"images": "images/{split}/{id}.jpg", "masks": "masks/{id}.png"}
    found = find(tmp_path, dict.fromkeys(files, b""), **patterns)
    assert placed(tmp_path, found) == [
        ("images/train/a.jpg", "masks/a.png", "train"),
        ("images/val/b.jpg", "masks/b.png", "val"),
    ]
    why = f"has the same name as {tmp_path}/images/train/a.jpg, which is taken"
    assert left_out(tmp_path, found) == {"images/val/a.jpg": why}


def test_masks_may_be_on_another_storage(tmp_path: Path, s3: S3) -> None:
    masks = s3.uri("masks")
    s3.put(f"{masks}/a.png", grey(indices()))
    write(tmp_path, {"photos {1}/a.jpg": photograph()})
    options = ReadOptions(images="{id}.jpg", masks=f"{masks}/{{id}}.png", class_names=NAMES)
    found = find_pairs(str(tmp_path / "photos {1}"), options)
    assert [annotated.labels_uri for annotated in found.images] == [f"{masks}/a.png"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"images": "img/{id}.jpg"}, "--images and --masks go together"),
        ({"images": "img/", "masks": "ann/{id}.png"}, "img/: must have {id} once"),
        (
            {"images": "{city}/{id}.jpg", "masks": "{id}.png"},
            "{city}/{id}.jpg: must have {id} once",
        ),
        ({"colors": "table.txt", "reduce_zero_label": True}, "--reduce-zero-label is for masks of"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        find(tmp_path, {}, **options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, r"0 images match images/{id}\.\*, 1 masks match masks/{id}\.\*, .* with --images"),
        ({"class_names": None}, "with --classes, or those of colours with --colors FILE"),
        ({"colors": "/nowhere/table.txt"}, r"/nowhere/table\.txt: no such file"),
    ],
)
def test_where_there_is_no_pair_that_is_said(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        find(tmp_path, {"masks/a.png": b""}, **options)


# ---------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("encode", [grey, palette])
def test_indices_are_class_ids_and_255_is_void(tmp_path: Path, encode: Any) -> None:
    ids = indices()
    ids[15] = 255
    expected = indices(5, 6)
    expected[15] = 255
    assert label_map(tmp_path, encode(ids)) == expected.tolist()


@pytest.mark.parametrize("mode", ["1", "I;16"])
def test_indices_of_one_bit_and_of_sixteen(tmp_path: Path, mode: str) -> None:
    values = indices().astype(bool if mode == "1" else np.uint16)
    mask = encoded(Image.fromarray(values), "PNG")
    assert label_map(tmp_path, mask) == indices(5, 6).tolist()


def test_reduce_zero_label(tmp_path: Path) -> None:
    ids = indices(1, 2)
    ids[0], ids[1] = 0, 255
    expected = indices(5, 6)
    expected[:2] = 255
    assert label_map(tmp_path, grey(ids), reduce_zero_label=True) == expected.tolist()


def test_colours(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    table.write_text(TABLE)
    ids = indices()
    ids[15], ids[16] = 2, 3
    expected = indices(5, 6)
    expected[15], expected[16] = 255, 6
    transparent = Image.open(io.BytesIO(rgb(ids, COLORS)))
    transparent.putalpha(7)
    numbered = palette(ids, lambda index: COLORS.get(index, (1, 1, 1)))
    for mask in (
        rgb(ids, COLORS),
        encoded(transparent, "PNG"),
        numbered,
        encoded(Image.open(io.BytesIO(numbered)), "PNG", transparency=bytes([0, 255, 9, 9])),
    ):
        assert label_map(tmp_path, mask, colors=str(table)) == expected.tolist()
    found = find_pairs(str(tmp_path), ReadOptions(colors=str(table)))
    assert found.names == ["wall", "window frame"]
    assert found.colors == {"wall": (10, 20, 30), "window frame": (255, 0, 0)}


def test_black_and_white_masks_are_colours(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    table.write_text("0 0 0 wall\n255 255 255 window")
    expected = indices(5, 6).tolist()
    assert label_map(tmp_path, grey(indices(0, 255)), colors=str(table)) == expected


@pytest.mark.parametrize(
    ("mask", "options", "why"),
    [
        (grey(indices(0, 7)), {}, r"63 pixels of its mask have the ids 7: .* end at 1 \(window\)"),
        (grey(indices(0, 3)), {"reduce_zero_label": True}, r"the ids 3: the classes end at 2"),
        (encoded(Image.fromarray(indices().astype(np.uint16) * 300), "PNG"), {}, "the ids 300"),
        (rgb(indices(), COLORS), {}, r"holds colours \(mode RGB\) .* --colors FILE"),
        (encoded(Image.fromarray(indices()), "JPEG"), {}, "is JPEG, which changes pixels"),
        (encoded(Image.fromarray(indices()), "JPEG"), {"colors": True}, "is JPEG, which changes"),
        (
            rgb(indices(0, 4), {**COLORS, 4: (9, 8, 7)}),
            {"colors": True},
            r"63 pixels .* colours that are not in the table, most often 9 8 7 \(63 pixels; 1 such",
        ),
        (grey(blank(width=20, height=30)), {}, "its mask is for 20×30 and the image is 30×20"),
        (b"", {}, r"its mask .*/masks/a\.png: "),
    ],
)
def test_a_mask_that_cannot_be_used_says_why(
    tmp_path: Path, mask: bytes, options: dict[str, Any], why: str
) -> None:
    table = tmp_path / "table.txt"
    table.write_text(TABLE)
    if options.get("colors"):
        options = {"colors": str(table)}
    with pytest.raises(Unusable, match=why):
        label_map(tmp_path, mask, **options)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "F"])
def test_ids_may_be_in_equal_channels_and_in_floats(tmp_path: Path, mode: str) -> None:
    mask = Image.fromarray(indices())
    stored = Image.fromarray(indices().astype(np.float32)) if mode == "F" else mask.convert(mode)
    encoding = "TIFF" if mode == "F" else "PNG"
    assert label_map(tmp_path / mode, encoded(stored, encoding)) == label_map(
        tmp_path / "grey", grey(indices())
    )


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT))] * 2), "is transparent in places"),
        (Image.new("F", (WIDTH, HEIGHT), 0.5), "holds fractions and not ids"),
        (Image.new("F", (WIDTH, HEIGHT), float("nan")), "holds fractions and not ids"),
        (Image.new("F", (WIDTH, HEIGHT), -1), "have the ids -1"),
        (Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 1)), "holds colours .* --colors"),
    ],
)
def test_a_mask_of_other_numbers_than_ids_says_what_to_do(
    tmp_path: Path, mask: Image.Image, why: str
) -> None:
    with pytest.raises(Unusable, match=why):
        label_map(tmp_path, encoded(mask, "TIFF" if mask.mode == "F" else "PNG"))


def test_a_mask_of_the_lying_photograph_is_unusable(tmp_path: Path) -> None:
    picture = photograph(WIDTH, HEIGHT, orientation=8)
    files = {"images/a.jpg": picture, "masks/a.png": grey(indices())}
    (annotated,) = find(tmp_path, files).images
    with pytest.raises(Unusable, match=r"its mask is for 30×20, .* EXIF turns to 20×30"):
        read_mask_file(annotated, {"wall": 0, "window": 1}, 99)


def test_from_s3(s3: S3) -> None:
    source = s3.uri("pairs")
    files = {
        "img_dir/train/a.jpg": photograph(),
        "ann_dir/train/a.png": rgb(indices(), COLORS),
        "colors.txt": TABLE,
    }
    for path, content in files.items():
        s3.put(f"{source}/{path}", to_bytes(content))
    patterns = {"images": "img_dir/{split}/{id}.jpg", "masks": "ann_dir/{split}/{id}.png"}
    found = find_pairs(source, ReadOptions(**patterns, colors=f"{source}/colors.txt"))
    (annotated,) = found.images
    assert (annotated.uri, annotated.split) == (f"{source}/img_dir/train/a.jpg", "train")
    labelled = read_mask_file(annotated, {"wall": 5, "window frame": 6}, 99)
    np.testing.assert_array_equal(labelled.label_map, indices(5, 6))
