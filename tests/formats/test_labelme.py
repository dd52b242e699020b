import base64
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from segbatch import storage
from segbatch.errors import Incomplete, SourceError
from segbatch.formats.format import (
    AnnotatedImage,
    Annotations,
    LabelledImage,
    ReadOptions,
    Unusable,
)
from segbatch.formats.labelme import LABELME, find_labelme, read_labelme
from tests.conftest import S3
from tests.formats.round_trip import assert_round_trip

WIDTH, HEIGHT = 40, 30
UNLABELLED = 99
IDS = {"wall": 0, "window": 1, "door": 2, "_background_": 3}

Array = npt.NDArray[Any]


def jpeg(width: int = WIDTH, height: int = HEIGHT, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mask_of(bits: Array, mode: str = "L") -> str:
    buffer = io.BytesIO()
    Image.fromarray(bits.astype(np.uint8)).convert(mode).save(buffer, "PNG")
    return in_base64(buffer.getvalue())


def shape(label: Any, kind: str | None, *points: Any, **keys: Any) -> dict[str, Any]:
    """A shape as labelme 5 and later write it."""
    others = {"group_id": None, "description": "", "flags": {}, "mask": None}
    return {"label": label, "points": list(points), "shape_type": kind, **others, **keys}


def rectangle(label: Any, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return shape(label, "rectangle", [left, top], [right, bottom])


def annotation(*shapes: Any, **keys: Any) -> dict[str, Any]:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **keys,
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def find(source: Any, images: Any = None) -> Annotations:
    return find_labelme(str(source), ReadOptions(images=None if images is None else str(images)))


def read(annotated: AnnotatedImage, ids: Mapping[str, int] = IDS) -> LabelledImage:
    return read_labelme(annotated, ids, UNLABELLED)


def labelled(folder: Path, *shapes: Any, image: bytes | None = None, **keys: Any) -> LabelledImage:
    """The labelled image of one labelme file, with its photograph next to it."""
    write(folder / "a.jpg", image or jpeg())
    write(folder / "a.json", annotation(*shapes, **keys))
    (annotated,) = find(folder).images
    return read(annotated)


def box(top: int, bottom: int, left: int, right: int, class_id: int = 1) -> Array:
    """An unlabelled map of the usual size with a box, its last row and column not included."""
    label_map = np.full((HEIGHT, WIDTH), UNLABELLED, np.uint8)
    label_map[top:bottom, left:right] = class_id
    return label_map


def disc(x: int, y: int, radius: float) -> Array:
    label_map = box(0, 0, 0, 0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    label_map[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = 1
    return label_map


# ----------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(("kind", "points", "wanted"), [
    ("polygon", [[5, 4], [9, 4], [9, 7], [5, 7]], box(4, 8, 5, 10)),
    ("rectangle", [[5, 4], [9, 7]], box(4, 8, 5, 10)),
    ("rectangle", [[9.0, 7.0], [5.0, 4.0]], box(4, 8, 5, 10)),
    ("oriented_rectangle", [[5, 4], [9, 4], [9, 7], [5, 7]], box(4, 8, 5, 10)),
    ("line", [[5, 10], [25, 10]], box(6, 16, 5, 26)),
    ("linestrip", [[5, 10], [15, 10], [25, 10]], box(6, 16, 5, 26)),
    ("point", [[20, 15]], disc(20, 15, 5.5)),
    ("circle", [[20, 15], [25, 15]], disc(20, 15, 5.5)),
])  # fmt: skip
def test_every_kind_of_shape_is_drawn(
    tmp_path: Path, kind: str, points: list[Any], wanted: Array
) -> None:
    result = labelled(tmp_path, shape("window", kind, *points))
    np.testing.assert_array_equal(result.label_map, wanted)
    assert result.label_map.dtype == np.uint8
    assert (result.width, result.height, result.shapes) == (WIDTH, HEIGHT, 1)
    assert result.skipped == ()
    assert result.image == jpeg()


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_a_mask_is_drawn_where_its_box_is(tmp_path: Path, mode: str) -> None:
    bits = np.eye(4, 6, dtype=bool)
    mask = mask_of(bits * 255 if mode == "1" else bits, mode)
    result = labelled(tmp_path, shape("window", "mask", [5, 4], [10, 7], mask=mask))
    wanted = box(0, 0, 0, 0)
    wanted[[4, 5, 6, 7], [5, 6, 7, 8]] = 1
    np.testing.assert_array_equal(result.label_map, wanted)


def test_later_shapes_lie_on_top(tmp_path: Path) -> None:
    result = labelled(
        tmp_path,
        rectangle("wall", 0, 0, 19, 19),
        rectangle("window", 5, 5, 9, 9),
        rectangle("wall", 8, 8, 12, 12),
        rectangle("_background_", 0, 0, 1, 1),
    )
    wanted = box(0, 20, 0, 20, IDS["wall"])
    wanted[5:10, 5:10] = IDS["window"]
    wanted[8:13, 8:13] = IDS["wall"]
    wanted[:2, :2] = IDS["_background_"]
    np.testing.assert_array_equal(result.label_map, wanted)
    assert result.shapes == 4


def test_what_is_labelled_ignore_is_void(tmp_path: Path) -> None:
    result = labelled(
        tmp_path, rectangle("wall", 0, 0, 39, 29), rectangle("__ignore__", 5, 5, 9, 9)
    )
    wanted = box(0, HEIGHT, 0, WIDTH, IDS["wall"])
    wanted[5:10, 5:10] = 255
    np.testing.assert_array_equal(result.label_map, wanted)
    assert result.shapes == 2


def test_shapes_that_are_partly_outside_are_clipped(tmp_path: Path) -> None:
    outside = rectangle("window", -50, -50, 2, 2), rectangle("window", 38, 28, 500, 500)
    result = labelled(tmp_path, *outside)
    wanted = box(0, 3, 0, 3)
    wanted[28:, 38:] = 1
    np.testing.assert_array_equal(result.label_map, wanted)


def test_an_image_without_shapes_is_all_unlabelled(tmp_path: Path) -> None:
    result = labelled(tmp_path)
    np.testing.assert_array_equal(result.label_map, box(0, 0, 0, 0))
    assert (result.shapes, result.skipped) == (0, ())


def test_files_of_labelme_3_are_read(tmp_path: Path) -> None:
    """Early versions have colours, but neither sizes nor shape types."""
    first = {"label": "window", "line_color": None, "fill_color": None,
             "points": [[5, 4], [9, 4], [9, 7], [5, 7]]}  # fmt: skip
    later = {**first, "shape_type": "rectangle", "points": [[20, 4], [24, 7]]}
    content = {"flags": {}, "shapes": [first, later], "lineColor": [0, 255, 0, 128],
               "fillColor": [255, 0, 0, 128], "imagePath": "a.jpg", "imageData": None}  # fmt: skip
    write(tmp_path / "a.jpg", jpeg())
    write(tmp_path / "a.json", content)
    (annotated,) = find(tmp_path).images
    wanted = box(4, 8, 5, 10)
    wanted[4:8, 20:25] = 1
    np.testing.assert_array_equal(read(annotated).label_map, wanted)


@pytest.mark.parametrize(("bad", "why"), [
    (shape("window", "polygon", [1, 1], [5, 5]), "needs at least 3 points and has 2"),
    (shape("window", "polygon"), "has no points"),
    (shape("window", "linestrip", [1, 1]), "needs at least 2 points and has 1"),
    (shape("window", "circle", [1, 1]), "needs 2 points and has 1"),
    (shape("window", "polygon", [50, 1], [60, 1], [60, 9]), "entirely outside of the image"),
    (shape("window", "polygon", [1, 1], [float("nan"), 1], [5, 9]), "coordinates that are not num"),
    (shape("window", "polygon", [1, 1], [None, 1], [5, 9]), "coordinates that are not numbers"),
    (shape("window", "polygon", [1, 1], [5], [5, 9]), "points are not pairs of numbers"),
    (shape("window", "polygon", [1, 1, 1], [5, 1, 1], [5, 9, 1]), "points are not pairs"),
    (shape("window", "polygon", ["a", "b"], [1, 1], [2, 2]), "points are not pairs of numbers"),
    (shape("window", "polygon", [10**400, 1], [1, 1], [2, 2]), "points are not pairs of numbers"),
    (shape("window", "cuboid", [1, 1], [5, 5]), "shape_type cuboid is unknown"),
    (shape("window", "mask", [1, 1], [2, 2]), "mask is not a picture in base64"),
    (shape("window", "mask", [1, 1], [2, 2], mask="abc"), "mask is not a picture in base64"),
    (shape("window", "mask", [1, 1], [2, 2], mask=mask_of(np.ones((2, 3)))), "3×2 .* its box 2×2"),
    (shape("window", "mask", [1, 1], [2, 2], mask=mask_of(np.ones((2, 2)), "RGB")), "colour pict"),
])  # fmt: skip
def test_a_shape_that_cannot_be_drawn_is_skipped_with_its_place_and_the_reason(
    tmp_path: Path, bad: Any, why: str
) -> None:
    first, last = rectangle("wall", 0, 0, 3, 3), rectangle("window", 5, 4, 9, 7)
    result = labelled(tmp_path, first, last, bad)
    wanted = box(4, 8, 5, 10)
    wanted[:4, :4] = IDS["wall"]
    np.testing.assert_array_equal(result.label_map, wanted)
    assert result.shapes == 2
    (skipped,) = result.skipped
    assert skipped.where == f"{tmp_path}/a.json shape 3 (window)"
    assert re.search(why, skipped.why)


@pytest.mark.parametrize("label", [None, "", "  ", "\u200b", True, 7.5])
def test_a_shape_without_a_label_is_skipped(tmp_path: Path, label: Any) -> None:
    result = labelled(tmp_path, rectangle(label, 1, 1, 5, 5), "not a shape")
    assert [skipped.where for skipped in result.skipped] == [
        f"{tmp_path}/a.json shape 1",
        f"{tmp_path}/a.json shape 2",
    ]
    assert {skipped.why for skipped in result.skipped} == {"has no label"}


@pytest.mark.parametrize("kind", ["Polygon", "rotation", "quadrilateral"])
def test_polygons_of_other_tools_are_drawn(tmp_path: Path, kind: str) -> None:
    corners = [[1, 1], [7, 2], [6, 5], [0, 4]]
    wanted = labelled(tmp_path, shape("wall", "polygon", *corners)).label_map
    np.testing.assert_array_equal(
        labelled(tmp_path, shape("wall", kind, *corners)).label_map, wanted
    )


def test_an_embedded_image_may_be_a_data_uri(tmp_path: Path) -> None:
    embedded = base64.b64encode(jpeg()).decode()
    write(
        tmp_path / "a.json",
        annotation(rectangle("wall", 1, 1, 5, 5), imageData=f"data:image/jpeg;base64,{embedded}"),
    )
    assert read(find(tmp_path).images[0]).shapes == 1


def test_a_number_as_a_label_is_the_name_of_a_class(tmp_path: Path) -> None:
    write(tmp_path / "a.json", annotation(rectangle(3, 1, 1, 5, 5)))
    assert find(tmp_path).names == ["3"]


def test_a_label_that_came_after_the_files_were_listed_is_skipped(tmp_path: Path) -> None:
    result = labelled(tmp_path, rectangle("balcony", 1, 1, 5, 5))
    (skipped,) = result.skipped
    assert skipped.where.endswith("shape 1 (balcony)")
    assert skipped.why == "its label is not one of the classes"


# ----------------------------------------------------------------------------------------- images


def test_an_image_that_exif_turns_is_labelled_upright(tmp_path: Path) -> None:
    lying = jpeg(HEIGHT, WIDTH, orientation=6)
    result = labelled(tmp_path, rectangle("window", 30, 4, 39, 7), image=lying)
    np.testing.assert_array_equal(result.label_map, box(4, 8, 30, 40))
    assert (result.width, result.height) == (WIDTH, HEIGHT)
    assert result.image == lying


def test_an_image_in_the_file_is_taken_before_the_one_that_is_pointed_at(tmp_path: Path) -> None:
    embedded = jpeg(WIDTH, HEIGHT)
    keys = {"imageData": in_base64(embedded), "imagePath": "gone/b.jpg"}
    result = labelled(tmp_path, rectangle("window", 5, 4, 9, 7), image=jpeg(8, 8), **keys)
    assert result.image == embedded
    np.testing.assert_array_equal(result.label_map, box(4, 8, 5, 10))
    (annotated,) = find(tmp_path).images
    assert annotated.uri == f"{tmp_path}/gone/b.jpg"


def test_an_image_in_the_file_is_its_own_where_no_path_is_given(tmp_path: Path) -> None:
    content = annotation(rectangle("window", 5, 4, 9, 7), imageData=in_base64(jpeg()))
    del content["imagePath"]
    (annotated,) = find(write(tmp_path / "a.json", content)).images
    assert annotated.uri == annotated.labels_uri
    assert read(annotated).image == jpeg()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_in_the_file_was_labelled_as_it_is_stored(
    tmp_path: Path, orientation: int
) -> None:
    """labelme shows imageData as it is stored; a decoder of the image turns it."""
    embedded = jpeg(orientation=orientation)
    result = labelled(tmp_path, rectangle("window", 5, 4, 9, 7), imageData=in_base64(embedded))
    where_exif_puts_it = {
        1: (slice(4, 8), slice(5, 10)),
        2: (slice(4, 8), slice(30, 35)),
        3: (slice(22, 26), slice(30, 35)),
        4: (slice(22, 26), slice(5, 10)),
        5: (slice(5, 10), slice(4, 8)),
        6: (slice(5, 10), slice(22, 26)),
        7: (slice(30, 35), slice(22, 26)),
        8: (slice(30, 35), slice(4, 8)),
    }
    size = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    wanted = np.full(size, UNLABELLED, np.uint8)
    wanted[where_exif_puts_it[orientation]] = 1
    np.testing.assert_array_equal(result.label_map, wanted)
    assert (result.height, result.width) == size


@pytest.mark.parametrize(("image", "keys", "why"), [
    (jpeg(20, 10), {}, "JSON is for 40×30 and the image is 20×10"),
    (jpeg(orientation=6), {}, "JSON is for 40×30, .* EXIF turns to 30×40"),
    (jpeg(), {"imageData": in_base64(jpeg(20, 10))}, "JSON is for 40×30 and imageData 20×10"),
    (b"no image", {}, "looks like text: no image"),
    (jpeg()[:-12], {}, "truncated"),
    (jpeg(), {"imageData": "abc"}, "imageData is not base64"),
    (jpeg(), {"imageData": ["abc"]}, "imageData is not base64"),
    (jpeg(), {"imageData": in_base64(b"no image")}, "looks like text: no image"),
    (jpeg(), {"imagePath": "b.jpg"}, r"/b\.jpg: cannot be read: no such file"),
])  # fmt: skip
def test_an_image_that_cannot_be_used_says_why(
    tmp_path: Path, image: bytes, keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(Unusable, match=why):
        labelled(tmp_path, rectangle("window", 5, 4, 9, 7), image=image, **keys)


def test_labels_that_changed_after_they_were_listed_are_unusable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", annotation())
    (annotated,) = find(tmp_path).images
    write(path, b"{")
    with pytest.raises(Unusable, match=r"a\.json: not JSON"):
        read(annotated)
    path.unlink()
    with pytest.raises(Unusable, match=r"a\.json: cannot be read: no such file"):
        read(annotated)


# ------------------------------------------------------------------------------------------- find


def test_every_file_below_the_folder_is_found_with_its_split(tmp_path: Path) -> None:
    paths = ["test/a.json", "train/b.JSON", "valid/c.json", "val/d.json", "e.json", "x/y/f.json"]
    for path in paths:
        write(tmp_path / path, annotation())
    found = find(tmp_path)
    splits = {annotated.labels_uri: annotated.split for annotated in found.images}
    wanted = ["test", "train", "val", "val", None, None]
    assert splits == {
        f"{tmp_path}/{path}": split for path, split in zip(paths, wanted, strict=True)
    }
    assert found.skipped == []


def test_one_file_may_be_named(tmp_path: Path) -> None:
    write(tmp_path / "b.json", annotation())
    (annotated,) = find(write(tmp_path / "train" / "a.json", annotation())).images
    assert (annotated.uri, annotated.split) == (f"{tmp_path}/train/a.jpg", "train")


def test_class_names_are_those_that_occur_in_their_order(tmp_path: Path) -> None:
    some = [rectangle(name, 0, 0, 1, 1) for name in ("window", "wall", "__ignore__", None, "")]
    write(tmp_path / "a.json", annotation(*some, "not a shape"))
    write(tmp_path / "b.json", annotation(rectangle("_background_", 0, 0, 1, 1), some[0]))
    assert find(tmp_path).names == ["_background_", "wall", "window"]


def test_other_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.json", annotation())
    others = {
        "coco.json": ({"images": [], "annotations": []}, "looks like COCO: --from coco"),
        "empty.json": (b"", "not JSON"),
        "list.json": ([1, 2], "has no list of `shapes`"),
        "none.json": (annotation(imagePath=None), "neither `imagePath` nor `imageData`"),
        "number.json": (annotation(imagePath=7), "neither `imagePath` nor `imageData`"),
        "text.json": ({**annotation(), "shapes": "none"}, "has no list of `shapes`"),
        "utf.json": ('{"label": "Tür"}'.encode("cp1252"), "not JSON"),
        "deep.json": (b"[" * 200_000, "not JSON"),
    }
    for name, (content, _) in others.items():
        write(tmp_path / name, content)
    found = find(tmp_path)
    assert len(found.images) == 1
    reasons = {storage.name_of(skipped.where): skipped.why for skipped in found.skipped}
    assert reasons.keys() == others.keys()
    for name, (_, why) in others.items():
        assert why in reasons[name]


def test_a_folder_with_other_json_alone_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "coco.json", {"images": [], "annotations": []})
    with pytest.raises(SourceError, match=r"no labelme file; of 1 JSON .*coco\.json.*--from coco"):
        find(tmp_path)


def test_what_cvat_calls_labelme_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", b"<annotation><filename>a.jpg</filename></annotation>")
    with pytest.raises(SourceError, match=r"CVAT's “LabelMe 3\.0” .* COCO"):
        find(tmp_path)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder or file"):
        find(tmp_path / "nothing")
    with pytest.raises(SourceError, match=r"a\.json: cannot be read: no such file"):
        find(tmp_path / "a.json")
    write(tmp_path / "a.jpg", jpeg())
    with pytest.raises(SourceError, match=r"no \.json file"):
        find(tmp_path)


@pytest.mark.parametrize(("image_path", "wanted"), [
    ("a.jpg", "/labels/train/a.jpg"),
    ("../images/a.jpg", "/labels/images/a.jpg"),
    ("..\\..\\images\\a.jpg", "/images/a.jpg"),
    ("./b/a 1.jpg", "/labels/train/b/a 1.jpg"),
    ("C:\\photos\\a.jpg", "/labels/train/a.jpg"),
])  # fmt: skip
def test_an_image_path_starts_at_the_file(tmp_path: Path, image_path: str, wanted: str) -> None:
    write(tmp_path / "labels" / "train" / "a.json", annotation(imagePath=image_path))
    (annotated,) = find(tmp_path / "labels").images
    assert annotated.uri == f"{tmp_path}{wanted}"


@pytest.mark.parametrize("image_path", ["/photos/a.jpg", "s3://photos/a.jpg"])
def test_an_image_path_may_be_a_whole_one(tmp_path: Path, image_path: str) -> None:
    write(tmp_path / "a.json", annotation(imagePath=image_path))
    (annotated,) = find(tmp_path).images
    assert annotated.uri == image_path


@pytest.mark.parametrize(("labels", "image_path", "image"), [
    ("a.json", "a.jpg", "a.jpg"),
    ("a.json", "b/a.jpg", "b/a.jpg"),
    ("a.json", "..\\images\\a.jpg", "a.jpg"),
    ("a.json", "/photos/a.jpg", "a.jpg"),
    ("a.json", "C:\\photos\\a.jpg", "a.jpg"),
    ("train/a.json", "a.jpg", "a.jpg"),
    ("train/a.json", "a.jpg", "train/a.jpg"),
    ("train/a.json", "../../images/train/a.jpg", "train/a.jpg"),
])  # fmt: skip
def test_images_are_looked_for_below_their_root(
    tmp_path: Path, labels: str, image_path: str, image: str
) -> None:
    write(tmp_path / "labels" / labels, annotation(imagePath=image_path))
    write(tmp_path / "photos" / image, jpeg())
    (annotated,) = find(tmp_path / "labels", images=tmp_path / "photos").images
    assert annotated.uri == f"{tmp_path}/photos/{image}"
    assert read(annotated).image == jpeg()


def test_many_files_are_read_in_chunks_and_none_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segbatch.formats.folder.CHUNK", 4)
    names = [f"{number:02d}.json" for number in range(23)]
    for name in names:
        write(tmp_path / name, annotation(rectangle("wall", 0, 0, 1, 1)))
    assert [storage.name_of(annotated.labels_uri) for annotated in find(tmp_path).images] == names


def test_labels_and_images_may_be_in_object_storage(s3: S3) -> None:
    source = s3.uri("facades")
    square = rectangle("window", 5, 4, 9, 7)
    backslashes = annotation(square, imagePath="..\\..\\photos\\ä b.jpg")
    s3.put(f"{source}/labels/val/a.json", json.dumps(backslashes).encode())
    s3.put(f"{source}/labels/val/b.json", json.dumps(annotation(imagePath="/c/b.jpg")).encode())
    s3.put(f"{source}/labels/notes.json", b"[]")
    s3.put(f"{source}/photos/ä b.jpg", jpeg())

    found = find(f"{source}/labels/")
    first, second = found.images
    assert first == AnnotatedImage(f"{source}/photos/ä b.jpg", f"{source}/labels/val/a.json", "val")
    assert second.uri == f"{source}/labels/val/b.jpg"
    assert [skipped.where for skipped in found.skipped] == [f"{source}/labels/notes.json"]
    np.testing.assert_array_equal(read(first).label_map, box(4, 8, 5, 10))
    with pytest.raises(Unusable, match=r"labels/val/b\.jpg: cannot be read: no such object"):
        read(second)

    (annotated,) = find(f"{source}/labels/val/a.json", images=f"{source}/photos").images
    assert annotated == AnnotatedImage(first.uri, first.labels_uri, "val")


@pytest.mark.parametrize(
    ("provenance", "uri"),
    [
        ({"uri": "s3://street/7.jpg"}, "s3://street/7.jpg"),
        ({"uri": 7}, None),
        ({"uri": "two\nlines"}, None),
        ({}, None),
        ("street", None),
    ],
)
def test_a_copy_that_was_made_for_labelling_is_the_image_that_it_says(
    tmp_path: Path, provenance: Any, uri: str | None
) -> None:
    write(tmp_path / "a.json", annotation(rectangle("wall", 0, 0, 4, 4), segbatch=provenance))
    write(tmp_path / "a.jpg", jpeg())
    (annotated,) = find(tmp_path).images
    assert annotated.uri == (uri or f"{tmp_path}/a.jpg")
    assert annotated.file == f"{tmp_path}/a.jpg"
    assert read(annotated).shapes == 1


def test_a_bucket_that_is_not_there_is_an_error(s3: S3) -> None:
    with pytest.raises(SourceError, match="no such"):
        find("s3://no-bucket-of-this-name/labels")


def test_a_storage_that_fails_leaves_no_file_out(s3: S3) -> None:
    source = s3.uri("labels")
    for name in ("a.json", "b.json"):
        s3.put(f"{source}/{name}", json.dumps(annotation()).encode())
    s3.break_down({"method": "GET", "part": "b.json", "status": 400, "code": "ExpiredToken"})
    try:
        with pytest.raises(Incomplete, match=r"b\.json: cannot be read"):
            find(source)
    finally:
        s3.break_down()


# -------------------------------------------------------------------------------- hostile content


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"points": [[1, 1]] * 50_001}, "has 50,001 points"),
        ({"points": [[1e308, 1], [2, -1e308], [3, 3]]}, "has coordinates beyond 100,000 pixels"),
        ({"points": [[float("nan"), 1], [2, 2], [3, 3]]}, "has coordinates that are not numbers"),
        ({"points": [[float("inf"), 1], [2, 2], [3, 3]]}, "has coordinates that are not numbers"),
        ({"points": [[10**400, 1], [2, 2]]}, "its points are not pairs of numbers"),
        ({"points": "abc"}, "its points are not pairs of numbers"),
        ({"points": 5}, "its points are not pairs of numbers"),
        ({"points": [[[[1]]]]}, "its points are not pairs of numbers"),
        ({"points": {"x": 1}}, "its points are not pairs of numbers"),
        ({"points": []}, "has no points"),
        ({"shape_type": ["polygon"]}, "its shape_type ['polygon'] is unknown"),
        ({"shape_type": "mask", "mask": 5}, "its mask is not a picture in base64"),
        ({"shape_type": "mask", "mask": in_base64(b"%!PS-Adobe-3.0 EPSF")}, "not a picture"),
        ({"label": ["wall"]}, "has no label"),
        ({"label": "a\0b"}, "has no label"),
        ({"label": "\ud800"}, "has no label"),
        ({"label": "x" * 10**6}, "has no label"),
    ],
)
def test_a_hostile_shape_is_skipped_and_the_others_are_drawn(
    tmp_path: Path, odd: dict[str, Any], why: str
) -> None:
    hostile = shape("window", "polygon", [1, 1], [9, 1], [5, 9]) | odd
    result = labelled(tmp_path, hostile, rectangle("window", 5, 4, 9, 7))
    assert [why in skipped.why for skipped in result.skipped] == [True]
    np.testing.assert_array_equal(result.label_map, box(4, 8, 5, 10))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "not JSON"),
        (b'{"shapes": ' + b"9" * 5000 + b"}", "not JSON"),
        (annotation(*[{}] * 100_001), "has 100,001 shapes"),
        (annotation(imagePath="a\0.jpg"), "its `imagePath` is not a path"),
        (annotation(imagePath="\ud800.jpg"), "its `imagePath` is not a path"),
        (annotation(imagePath="a" * 5000), "its `imagePath` is not a path"),
        (annotation(imagePath=5), "neither `imagePath` nor `imageData`"),
        (annotation(imagePath=["a.jpg"]), "neither `imagePath` nor `imageData`"),
    ],
)
def test_a_hostile_file_is_skipped(tmp_path: Path, content: Any, why: str) -> None:
    write(tmp_path / "bad.json", content)
    write(tmp_path / "good.json", annotation(rectangle("wall", 1, 1, 5, 5)))
    found = find(tmp_path)
    assert [annotated.labels_uri for annotated in found.images] == [str(tmp_path / "good.json")]
    assert why in found.skipped[0].why


@pytest.mark.parametrize("image_data", [5, ["x"], "!", in_base64(bytes(10**6))])
def test_hostile_image_data_makes_the_image_unusable(tmp_path: Path, image_data: Any) -> None:
    write(tmp_path / "a.json", annotation(imageData=image_data))
    with pytest.raises(Unusable):
        read(find(tmp_path).images[0])


@pytest.mark.parametrize(
    "away",
    ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "https://host/passwd",
     "s3://bucket/passwd", "C:\\etc\\passwd", "sub/../../../passwd"],
)  # fmt: skip
def test_with_a_root_no_image_is_read_outside_of_it(tmp_path: Path, away: str) -> None:
    write(tmp_path / "labels" / "a.json", annotation(imagePath=away))
    (annotated,) = find(tmp_path / "labels", tmp_path / "images").images
    assert annotated.uri == str(tmp_path / "images" / "passwd")


VALUES: list[Any] = [
    None, True, -1, 1e308, float("nan"), float("inf"), 10**300, "", "\ud800", "\0", "a" * 5000, [],
    {}, [[]], [[1, 2, 3]], [["a", "b"]], [[1e308, 1e308], [3, 3]], [[float("nan"), 1], [2, 3]],
    "mask", [[99_999, 99_999], [-99_999, 0], [0, 99_999]], "polygon", "../../etc/passwd",
    "/dev/null", "s3://", "file:///etc", "..", "/", "a.jpg/", "wall", [[[1]]], "!!!!",
]  # fmt: skip


@st.composite
def damaged_annotations(draw: st.DrawFn) -> bytes:
    """A labelme file with some values and bytes replaced."""
    mask = mask_of(np.ones((5, 4)))
    content = annotation(
        rectangle("wall", 1, 2, 20, 20),
        shape("window", "polygon", [1, 1], [10, 1], [5, 9]),
        shape("door", "circle", [5, 5], [9, 9]),
        shape("window", "mask", [2, 3], [5, 7], mask=mask),
        **draw(st.sampled_from([{}, {"imageData": in_base64(jpeg())}])),
    )
    for _ in range(draw(st.integers(1, 4))):
        target: Any = content
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(target[key], dict | list) or draw(st.booleans()):
                target[key] = deepcopy(draw(st.sampled_from(VALUES)))
                break
            target = target[key]
    data = bytearray(json.dumps(content).encode())
    for position in draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        data[position] = draw(st.integers(0, 255))
    return bytes(data)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(damaged_annotations())
@example(json.dumps(annotation(shape("wall", "polygon") | {"points": 5})).encode())
@example(json.dumps(annotation(rectangle("\ud800", 1, 1, 5, 5))).encode())
@example(b"[" * 5000)
def test_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-labels"
    write(folder / "a.jpg", jpeg())
    write(folder / "a.json", content)
    with suppress(SourceError, Unusable):
        found = find(folder)
        ids = {name: number for number, name in enumerate(found.names)}
        result = read(found.images[0], ids)
        assert result.label_map.shape == (result.height, result.width)
        assert "\n" not in "".join(skipped.why for skipped in result.skipped)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    assert_round_trip(LABELME, tmp_path)
