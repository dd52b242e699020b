"""Label Studio's exports as label maps, and label maps as its tasks, compared with its own SDK."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.converter.utils import convert_annotation_to_yolo_obb
from PIL import Image, ImageDraw

from segbatch.errors import SourceError
from segbatch.formats.format import Annotations, LabelledImage, ReadOptions, Unusable
from segbatch.formats.labelconfig import write_label_config
from segbatch.formats.labelstudio import (
    LABELSTUDIO,
    find_labelstudio,
    read_labelstudio,
    to_prediction,
    to_result,
)
from segbatch.masks.classes import IGNORE_INDEX, Classes
from tests.collection import encoded
from tests.formats.round_trip import CLASSES, assert_round_trip, facade, segmented
from tests.labels.files import HEIGHT, WIDTH, Array, blank, left_out, photograph, write

UNLABELLED = 99
IDS = {"wall": 0, "window": 1, "street door": 2}
SDK_CLASSES = Classes(["wall", "window", "street door", "sky"])


def region(kind: str, label: Any, number: int = 1, **value: Any) -> dict[str, Any]:
    """A result as Label Studio exports it."""
    return {
        "id": f"r{number}",
        "type": f"{kind}labels",
        "from_name": "label",
        "to_name": "image",
        "origin": "manual",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {**value, f"{kind}labels": label if isinstance(label, list) else [label]},
    }


def box(label: Any, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    """A rectangle given in pixels."""
    return region(
        "rectangle",
        label,
        x=left / WIDTH * 100,
        y=top / HEIGHT * 100,
        width=(right - left) / WIDTH * 100,
        height=(bottom - top) / HEIGHT * 100,
        rotation=0,
    )


def painted(label: str, inside: Array) -> dict[str, Any]:
    """What the SDK makes of a mask."""
    rle = brush.mask2rle(inside.astype(np.uint8) * 255)
    return region("brush", label, format="rle", rle=rle)


def task(*results: Any, image: str = "a.jpg", **keys: Any) -> dict[str, Any]:
    annotation = {"id": 7, "result": list(results), "was_cancelled": False, "completed_by": 1}
    return {
        "id": 12,
        "data": {"image": image},
        "annotations": [annotation],
        "predictions": [],
    } | keys


def find(folder: Path, **options: Any) -> Annotations:
    return find_labelstudio(str(folder), ReadOptions(**options))


def labelled(folder: Path, *results: Any, photo: bytes | None = None) -> LabelledImage:
    """The image of one task with these results."""
    write(folder, {"a.jpg": photo or photograph(), "export.json": [task(*results)]})
    found = find(folder)
    (image,) = found.images
    # As in an import, every name that was found has an id.
    ids = IDS | {name: 9 for name in found.names if name not in IDS}
    return read_labelstudio(image, ids, UNLABELLED)


def png(inside: Array) -> str:
    """What Label Studio's bitmasks are: black where the mask is, transparent elsewhere."""
    pixels = np.zeros((*inside.shape, 4), np.uint8)
    pixels[inside, 3] = 255
    data = encoded(Image.fromarray(pixels), "PNG")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


# ----------------------------------------------------------------------------------------- regions


def test_every_kind_of_area_is_drawn_where_it_is(tmp_path: Path) -> None:
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[4:8, 5:10] = True
    wanted = blank(UNLABELLED)
    wanted[inside] = 1
    corners = [[5, 4], [10, 4], [10, 8], [5, 8]]
    points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in corners]
    turned = {"x": 10 / WIDTH * 100, "y": 4 / HEIGHT * 100, "width": 4 / WIDTH * 100,
              "height": 5 / HEIGHT * 100, "rotation": 90}  # fmt: skip
    for drawn in (
        box("window", 5, 4, 10, 8),
        region("rectangle", "window", **turned),
        region("polygon", "window", points=points, closed=True),
        region("bitmask", "window", imageDataURL=png(inside)),
        painted("window", inside),
        {**painted("window", inside), "image_rotation": 90},  # only how it was shown
    ):
        result = labelled(tmp_path, drawn)
        np.testing.assert_array_equal(result.label_map, wanted)
        assert (result.width, result.height, result.shapes) == (WIDTH, HEIGHT, 1)
        assert result.skipped == ()
        assert result.image == photograph()


def test_rectangles_turn_around_their_corner_as_in_the_sdk(tmp_path: Path) -> None:
    value = {"x": 40, "y": 10, "width": 30, "height": 20, "rotation": 33}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    corners = convert_annotation_to_yolo_obb({**value, **size}, normalize=False)
    points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in corners]
    turned = labelled(tmp_path, region("rectangle", "wall", **value))
    outlined = labelled(tmp_path, region("polygon", "wall", points=points))
    np.testing.assert_array_equal(turned.label_map, outlined.label_map)
    assert 0 < (turned.label_map == 0).sum() < HEIGHT * WIDTH / 10


@pytest.mark.parametrize("rotation", [0, 90, 30])
def test_ellipses_are_drawn_around_their_centre(tmp_path: Path, rotation: int) -> None:
    value = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 20, "rotation": rotation}
    drawn = labelled(tmp_path, region("ellipse", "wall", **value)).label_map == 0
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y, turn = x - WIDTH / 2, y - HEIGHT / 2, np.radians(rotation)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = (along / (0.3 * WIDTH)) ** 2 + (across / (0.2 * HEIGHT)) ** 2
    assert drawn[distance < 0.9].all()
    assert not drawn[distance > 1.1].any()


def test_later_regions_lie_on_top(tmp_path: Path) -> None:
    result = labelled(
        tmp_path,
        painted("wall", np.ones((HEIGHT, WIDTH), np.bool_)),
        box("window", 5, 4, 15, 14),
        box("wall", 10, 8, 20, 18),
        box("__ignore__", 0, 0, 2, 2),
    )
    wanted = blank(0)
    wanted[4:14, 5:15] = 1
    wanted[8:18, 10:20] = 0
    wanted[:2, :2] = IGNORE_INDEX
    np.testing.assert_array_equal(result.label_map, wanted)


def test_regions_with_labels_of_their_own_and_other_results_are_read(tmp_path: Path) -> None:
    """The tags Rectangle and Labels, a choice for the region, and one for the image."""
    drawn = box("window", 5, 4, 10, 8)
    place = {k: v for k, v in drawn["value"].items() if k != "rectanglelabels"}
    result = labelled(
        tmp_path,
        {**drawn, "type": "rectangle", "value": place},
        {**drawn, "type": "labels", "value": {**place, "labels": ["window"]}},
        {**drawn, "type": "choices", "value": {**place, "choices": ["broken"]}},
        {"type": "choices", "value": {"choices": ["sharp"]}, "id": "c"},
        {"type": "relation", "from_id": "r1", "to_id": "r1"},
        {**drawn, "id": "r2", "type": "rectangle", "value": {**place, "labels": ["wall"]}},
    )
    wanted = blank(UNLABELLED)
    wanted[4:8, 5:10] = 0
    np.testing.assert_array_equal(result.label_map, wanted)
    assert (result.shapes, result.skipped) == (2, ())


SQUARE = np.zeros((HEIGHT, WIDTH), np.bool_)
SQUARE[4:8, 5:10] = True
RLE = brush.mask2rle(SQUARE.astype(np.uint8) * 255)


@pytest.mark.parametrize(("bad", "why"), [
    (region("brush", "window", format="rle", rle=RLE[:-20]), "RLE that ends too early"),
    (region("brush", "window", rle=brush.mask2rle(np.ones((3, 4), np.uint8))), "48 values: an im"),
    (region("brush", "window", rle=[300, 1]), "RLE that is not a list of bytes"),
    (region("brush", "window", rle="AAE="), "RLE that is not a list of bytes"),
    (painted("window", SQUARE & False), "covers no pixel of the image"),
    (region("bitmask", "window", imageDataURL="data:image/png;base64,AAAA"), "not a PNG in a data"),
    (region("bitmask", "window", imageDataURL=None), "bitmask that is not a PNG"),
    (region("bitmask", "window", imageDataURL=png(SQUARE[:9])), "bitmask of 30×9: the image is 30"),
    (region("polygon", "window", points=[[1, 1], [5, 5]]), "polygon of 2 points"),
    (region("polygon", "window", points=[[1, 1], [float("nan"), 5], [5, 9]]), "not numbers"),
    (region("polygon", "window", points=[[1, 1], [10**400, 5], [5, 9]]), "not pairs of numbers"),
    (region("polygon", "window", points=[[1, 1], ["a", 5], [5, 9]]), "not pairs of numbers"),
    (region("polygon", "window", points=[1, 2, 3]), "not pairs of numbers"),
    (region("polygon", "window", points=[[150, 1], [160, 1], [160, 9]]), "covers no pixel"),
    (region("rectangle", "window", x=1e308, y=1, width=5, height=5), "not numbers|pixels away"),
    (region("rectangle", "window", x=1, y=1, width=0, height=5), "covers no pixel"),
    (region("rectangle", "window", x=1, y=None, width=5, height=5), "its y is not a number"),
    (region("rectangle", "window", x=1, y=1, height=5), "its width is not a number"),
    (region("rectangle", "window", x=10**400, y=1, width=1, height=5), "its x is not a number"),
    (region("ellipse", "window", x=1, y=1, radiusX="9", radiusY=5), "its radiusX is not a number"),
    (region("ellipse", "window", x=50, y=50, radiusX=1e300, radiusY=5), "pixels away"),
    (region("keypoint", "window", x=1, y=1, width=1), "is a point, which has no area"),
    (region("vector", "window", vertices=[], closed=True), "is a vector, which is not read"),
    (region("rectangle", ["window", "wall"], x=1, y=1, width=9, height=9), "labels, window, wall"),
    ({**box("window", 1, 1, 5, 5), "original_width": 31}, "on an image of another size"),
])  # fmt: skip
def test_a_region_that_cannot_be_drawn_is_skipped_with_its_place_and_the_reason(
    tmp_path: Path, bad: Any, why: str
) -> None:
    result = labelled(tmp_path, box("wall", 0, 0, 4, 4), bad)
    wanted = blank(UNLABELLED)
    wanted[:4, :4] = 0
    np.testing.assert_array_equal(result.label_map, wanted)
    assert result.shapes == 1
    (skipped,) = result.skipped
    assert skipped.where == f"{tmp_path}/export.json: task 12 region 2 (window)"
    assert re.search(why, skipped.why)


@pytest.mark.parametrize("label", [None, "", " ", 7, []])
def test_a_region_without_a_label_is_skipped(tmp_path: Path, label: Any) -> None:
    result = labelled(tmp_path, box(label, 1, 1, 5, 5), {**box("wall", 1, 1, 5, 5), "id": "r2"})
    (skipped,) = result.skipped
    assert (skipped.where[-8:], skipped.why) == ("region 1", "has no label")


def test_shapes_beyond_the_edge_are_clipped(tmp_path: Path) -> None:
    result = labelled(tmp_path, box("window", -9, -9, 2, 2), box("window", 28, 18, 60, 60))
    wanted = blank(UNLABELLED)
    wanted[:2, :2] = wanted[18:, 28:] = 1
    np.testing.assert_array_equal(result.label_map, wanted)


def test_a_photograph_of_another_size_than_its_annotation_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="the annotation is for 30×20 and the image is 31×20"):
        labelled(tmp_path, box("wall", 0, 0, 4, 4), photo=photograph(31))


def test_an_image_that_exif_turns_is_labelled_upright(tmp_path: Path) -> None:
    result = labelled(tmp_path, box("window", 25, 4, 30, 8), photo=photograph(HEIGHT, WIDTH, 6))
    wanted = blank(UNLABELLED)
    wanted[4:8, 25:] = 1
    np.testing.assert_array_equal(result.label_map, wanted)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-300, 300) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["x", "y", "width", "height", "rle", "points", "radiusX", "radiusY",
                         "brushlabels", "labels", "rotation", "imageDataURL", "value", "type"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(JSON, st.sampled_from(["brushlabels", "labels", "polygonlabels", "ellipselabels", "brush"]))
@example(None, "brushlabels")
def test_anything_in_an_annotation_is_drawn_or_skipped(
    tmp_path: Path, value: Any, kind: str
) -> None:
    hostile = {**box("window", 1, 1, 5, 5), "id": value, "type": kind, "value": value}
    result = labelled(tmp_path, box("wall", 0, 0, 4, 4), hostile, value)
    assert result.shapes + len(result.skipped) >= 1
    assert result.label_map.shape == (HEIGHT, WIDTH)


# ----------------------------------------------------------------------------------- the whole way


def test_label_maps_come_back_to_the_pixel(tmp_path: Path) -> None:
    assert_round_trip(LABELSTUDIO, tmp_path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 12), st.integers(1, 17)),
        elements=st.sampled_from([0, 1, 2, 3, IGNORE_INDEX]),
    )
)
@example(np.full((1, 1), 3, np.uint8))
@example(np.full((7, 13), IGNORE_INDEX, np.uint8))
def test_any_label_map_comes_back_from_the_sdk_and_from_our_import(
    tmp_path: Path, label_map: Array
) -> None:
    height, width = label_map.shape
    result = to_result(label_map, SDK_CLASSES, {})
    decoded = np.full(label_map.shape, IGNORE_INDEX, np.uint8)
    layers = brush.decode_from_annotation("label", [{**r, **r["value"]} for r in result])
    for c in SDK_CLASSES:
        if (layer := layers.get(f"label-{c.name}-0")) is not None:
            decoded[layer > 0] = c.id
    np.testing.assert_array_equal(decoded, label_map)

    write(tmp_path, {"a.jpg": photograph(width, height), "export.json": task(*result)})
    (image,) = find(tmp_path).images
    ids = {c.name: c.id for c in SDK_CLASSES}
    back = read_labelstudio(image, ids, IGNORE_INDEX)
    np.testing.assert_array_equal(back.label_map, label_map)
    assert (back.shapes, back.skipped) == (len(result), ())


def test_the_sdk_exports_our_tasks_as_our_own_masks(tmp_path: Path) -> None:
    """Its Converter reads them with our labelling configuration, as after a click on Submit."""
    label_map = facade(4)
    result = to_result(label_map, CLASSES, {})
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks", {"tasks.json": [task(*result)]})
    converter = Converter(write_label_config(CLASSES), str(tmp_path), download_resources=False)
    assert {"BRUSH_TO_PNG", "BRUSH_TO_COCO"} <= set(converter.supported_formats)

    (tmp_path / "png").mkdir()
    converter.convert(str(tmp_path / "tasks"), str(tmp_path / "png"), "BRUSH_TO_PNG")
    for c in CLASSES:
        [file] = (tmp_path / "png").glob(f"*label-{c.name}-0.png")
        np.testing.assert_array_equal(np.asarray(Image.open(file)) > 0, label_map == c.id)

    converter.convert(str(tmp_path / "tasks"), str(tmp_path / "coco"), "BRUSH_TO_COCO")
    coco = json.loads((tmp_path / "coco" / "result_coco.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    drawn = Image.new("L", (WIDTH, HEIGHT))
    for annotation in coco["annotations"]:  # outlines without holes: two windows, one door
        if names[annotation["category_id"]] != "wall":
            [outline] = annotation["segmentation"]
            ImageDraw.Draw(drawn).polygon(outline, fill=1, outline=1)
    filled = np.isin(label_map, [1, 2])
    filled[5:7, 13:15] = True
    np.testing.assert_array_equal(np.asarray(drawn) > 0, filled)

    converter.convert(str(tmp_path / "tasks"), str(tmp_path / "min"), "JSON_MIN")
    write(tmp_path / "min", {"a.jpg": photograph()})
    (image,) = find(tmp_path / "min").images
    back = read_labelstudio(image, IDS, IGNORE_INDEX)
    np.testing.assert_array_equal(back.label_map, label_map)


def test_a_prediction_has_the_models_confidence() -> None:
    label_map = blank(0)
    label_map[:5] = 1
    confidence = {"wall": 0.9, "window": 0.5, "street door": None}
    prediction = to_prediction(label_map, CLASSES, confidence, "zoo:facades")
    assert prediction["model_version"] == "zoo:facades"
    assert prediction["score"] == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)
    assert [result["score"] for result in prediction["result"]] == [0.9, 0.5]
    unknown = to_prediction(label_map, CLASSES, {}, "m", from_name="tag", to_name="img")
    assert "score" not in unknown
    assert {(r["from_name"], r["to_name"]) for r in unknown["result"]} == {("tag", "img")}
    json.dumps(prediction)


def test_photographs_in_object_storage_are_named_where_they_are(tmp_path: Path) -> None:
    assert LABELSTUDIO.writer is not None
    writer = LABELSTUDIO.writer
    assert writer.entries is not None
    assert writer.has_address("s3://photos/a.jpg")
    for uri in ("/home/a.jpg", "s3://photos/a.tif", "s3://photos/a.mp4#t=1.000", "hf://o/n/a.jpg"):
        assert not writer.has_address(uri)
    image = segmented(3, "street/a", facade(4))
    file = "images/street/a.jpg"
    [with_copy] = map(json.loads, writer.entries(image, file)["tasks"])
    assert with_copy["data"] == {
        "image": "/data/local-files/?d=labels/images/street/a.jpg",
        "segbatch": {"uri": image.uri, "run": "runs/a", "image_id": 3},
    }
    [without] = map(json.loads, writer.entries(image, "")["tasks"])
    assert without["data"]["image"] == image.uri
    assert without["predictions"] == with_copy["predictions"]


# ------------------------------------------------------------------------------------- the export


def test_the_labelling_configuration_gives_the_key_of_the_image_and_colours(
    tmp_path: Path,
) -> None:
    data = {"thumb": "small/a.jpg", "photo": "a.jpg", "note": "front"}
    files = {"a.jpg": photograph(), "export.json": [task(box("wall", 0, 0, 4, 4), data=data)]}
    folder = write(tmp_path, files)
    with pytest.raises(SourceError, match=r"thumb and photo may be its image: .*label_config\.xml"):
        find(tmp_path)
    config = write_label_config(CLASSES).replace("$image", "$photo")
    write(tmp_path, {"label_config.xml": config, "other.xml": "<annotation/>"})
    found = find(tmp_path)
    assert [image.uri for image in found.images] == [f"{folder}/a.jpg"]
    assert found.colors == {c.name: c.color for c in CLASSES}
    assert found.names == ["wall"]


def test_what_is_no_export_is_named(tmp_path: Path) -> None:
    write(tmp_path, {
        "a.jpg": photograph(),
        "export.json": [task(box("wall", 0, 0, 4, 4)), 5, {**task(data={"text": "b"}), "id": 3}],
        "coco.json": {"images": [], "annotations": [], "categories": []},
        "labelme.json": {"shapes": []},
        "deep.json": "[" * 100_000,
        "text.json": "no json",
        "utf-16.json": "[]".encode("utf-16-le"),
    })  # fmt: skip
    found = find(tmp_path)
    assert len(found.images) == 1
    reasons = left_out(tmp_path, found)
    assert reasons["export.json: entry 2"] == "is not a task: it has no data"
    assert reasons["export.json: task 3"] == "its data name no image, or a list of images"
    assert "it looks like COCO: --from coco" in reasons["coco.json"]
    assert "labelme file" in reasons["labelme.json"]
    assert {"deep.json", "text.json", "utf-16.json"} < reasons.keys()
    assert "\n" not in "".join(reasons.values())


def test_a_folder_without_any_task_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": [], "a.jpg": photograph()})
    with pytest.raises(SourceError, match=r"1 files .*no annotated task of Label Studio"):
        find(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        find(tmp_path / "nothing.json")
