"""What a check finds in a labelled dataset."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from segbatch.errors import Incomplete, InputError, SourceError
from segbatch.labels.check import CheckReport, check_dataset
from segbatch.labels.dataset import Dataset, write_shard
from segbatch.labels.rows import DatasetRow
from segbatch.labels.sheet import GAP, MAX_IMAGES, PADDING, SIDE, choose_rows, write_sheet
from segbatch.masks import FILL, encode_mask
from segbatch.masks.classes import Classes
from tests.collection import encoded, image, jpeg
from tests.conftest import S3

CLASSES = Classes(["wall", "window", "door"])
WIDTH, HEIGHT = 64, 48


def mask(*class_ids: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A mask of stripes."""
    label_map = np.resize(np.array(class_ids, np.uint8), (height, width))
    return encode_mask(label_map, CLASSES.palette)


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of a sound dataset, except for ``columns``; images and masks are bytes."""
    values = {
        "image_id": number,
        "uri": f"/photos/{number}.jpg",
        "image": jpeg(0, HEIGHT, WIDTH, b"%d" % number),
        "mask": mask(0, 1, 2, 255),
        "width": WIDTH,
        "height": HEIGHT,
        "group": None,
        **columns,
    }
    return values | {name: {"bytes": values[name], "path": None} for name in ("image", "mask")}


def write(uri: object, **splits: Sequence[dict[str, Any]]) -> Dataset:
    shards = [write_shard(str(uri), split, rows) for split, rows in splits.items()]
    dataset = Dataset(str(uri), CLASSES, shards)
    dataset.publish()
    return dataset


def check(uri: object, *wrong: dict[str, Any]) -> CheckReport:
    """Check a dataset of two sound images, one of them in val, and the given ones."""
    write(uri, train=[row(0), *wrong], val=[row(1)])
    return check_dataset(str(uri))


def found(report: CheckReport, level: str = "error") -> str:
    """The text of the one finding of the level."""
    [finding] = [finding for finding in report.findings if finding.level == level]
    return str(finding)


def test_a_sound_dataset_has_no_findings(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert report.findings == []
    assert report.exit_code == 0
    facts = report.to_json()
    assert facts["images"] == {"train": 1, "val": 1}
    quarter = {"pixels": WIDTH * HEIGHT // 2, "share": 0.25, "images": {"train": 1, "val": 1}}
    assert facts["classes"] == [
        {"id": class_id, "name": name, **quarter}
        for class_id, name in [(0, "wall"), (1, "window"), (2, "door"), (255, "void")]
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": b"no image"}, "looks like text"),
        ({"image": jpeg(1, HEIGHT, WIDTH)[:-200]}, "truncated"),
        ({"image": None}, "0 bytes"),
        ({"mask": b"no mask"}, "the mask is not a readable PNG"),
        ({"mask": mask(0, 1)[:-30]}, "the mask is not a readable PNG"),
        ({"mask": None}, "the mask is not a readable PNG"),
        ({"mask": mask(0, width=48, height=64)}, "its row 64×48, the mask 48×64, the upright im"),
        ({"width": 48, "height": 64}, "sizes differ: its row 48×64"),
        ({"width": None}, "sizes differ: its row None×48"),
        ({"mask": mask(0, 3)}, "the mask has ids that are not classes: 3"),
        (
            {"mask": mask(0, *range(20, 200, 9))},
            "the mask has ids that are not classes: 20, 29, 38, 47, 56, 65, 74, 83, …; so many look"
            " like colours",
        ),
        ({"mask": encoded(image(3, HEIGHT, WIDTH), "PNG")}, "a PNG of mode RGB: it needs a pal"),
        ({"mask": encoded(image(3, HEIGHT, WIDTH).convert("L"), "PNG")}, "a PNG of mode L"),
        ({"image_id": 1}, "its image_id is also that of /photos/"),
    ],
)  # fmt: skip
def test_a_sample_that_cannot_be_trained_on_is_an_error(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    report = check(tmp_path, row(2, **columns))
    text = found(report)
    assert said in text
    assert "\n" not in text
    assert report.exit_code == 1
    assert report.to_json()["errors"] == 1


def test_a_finding_names_image_uri_and_file(tmp_path: Path) -> None:
    report = check(tmp_path, row(17, image=b""))
    [shard] = report.dataset.shards_of("train")
    assert found(report).startswith(f"error: image 17 · /photos/17.jpg · {shard.path} · ")
    assert report.to_json()["findings"][0]["image_id"] == 17


def test_a_photograph_that_lies_on_its_side_is_as_large_as_it_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = encoded(image(0, HEIGHT, WIDTH), "JPEG", exif=exif)
    upright = row(2, image=lying, mask=mask(0, width=48, height=64), width=48, height=64)
    assert check(tmp_path / "upright", upright).findings == []
    report = check(tmp_path / "lying", row(2, image=lying))
    assert "the upright image 48×64" in found(report)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"mask": mask(255)}, "every pixel is void"),
        ({"image": row(0)["image"]["bytes"]}, "the same image as 0 (/photos/0.jpg) in train"),
    ],
)
def test_what_is_odd_is_a_warning(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    report = check(tmp_path, row(2, **columns))
    assert said in found(report, "warning")
    assert report.exit_code == 0


def test_an_image_that_is_in_two_splits_is_found_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, train=[row(0)], val=[row(1), row(2, image=row(0)["image"]["bytes"])])
    text = found(check_dataset(str(tmp_path)), "warning")
    assert text.startswith("warning: image 2 · /photos/2.jpg · val/")
    assert "in train, so the model is tested on a training image" in text


def test_a_group_in_two_splits_is_found(tmp_path: Path) -> None:
    write(tmp_path, train=[row(0, group="B1"), row(1, group="B2")], val=[row(2, group="B1")])
    assert "its group 'B1' is also in train: image 0" in found(
        check_dataset(str(tmp_path)), "warning"
    )


def test_classes_and_splits_without_anything_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a", train=[row(0, mask=mask(0, 1))], val=[row(1)])
    assert found(check_dataset(str(tmp_path / "a")), "warning").endswith(
        "train has no pixel of door"
    )
    write(tmp_path / "b", train=[row(0)])
    assert found(check_dataset(str(tmp_path / "b")), "warning") == "warning: val has no image"


def test_files_that_do_not_belong_to_it_are_found(tmp_path: Path) -> None:
    write(tmp_path, train=[row(0)], val=[row(1)])
    stray = write_shard(str(tmp_path), "val", [row(2)])
    text = found(check_dataset(str(tmp_path)), "warning")
    assert text.startswith(f"warning: {stray.path} · does not belong to the dataset")


def test_a_damaged_file_is_an_error_and_the_others_are_checked(tmp_path: Path) -> None:
    dataset = write(tmp_path, train=[row(0)], val=[row(1, image=b"")])
    (tmp_path / dataset.shards[0].path).unlink()
    report = check_dataset(str(tmp_path))
    errors = [str(finding) for finding in report.findings if finding.level == "error"]
    assert len(errors) == 2
    assert dataset.shards[0].path in errors[0]
    assert "/photos/1.jpg" in errors[1]


def test_many_images_are_checked_by_several_processes(tmp_path: Path) -> None:
    rows = [row(number) for number in range(90)]
    rows[71] = row(71, image=b"")
    write(tmp_path, train=rows, val=[row(90)])
    report = check_dataset(str(tmp_path))
    assert [r.image_id for r in report.rows] == list(range(91))
    assert "image 71" in found(report)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"{tmp_path}/classes.json: no such file"):
        check_dataset(str(tmp_path))


def test_storage_that_does_not_answer_is_no_damage(s3: S3) -> None:
    uri = s3.uri("labels")
    write(uri, train=[row(0)], val=[row(1)])
    assert check_dataset(uri).findings == []
    try:
        s3.break_down({"part": "labels/train/", "status": 400, "code": "InternalError"})
        with pytest.raises(Incomplete, match=f"{uri}/train/"):
            check_dataset(uri)
    finally:
        s3.break_down()


# ------------------------------------------------------------------------------------ contact sheet


def pictured(image_id: int, *faults: str, **pixels: int) -> DatasetRow:
    counts = {int(name[1:]): count for name, count in pixels.items()}
    return DatasetRow(image_id, f"/{image_id}.jpg", None, "train", "train/a", "", counts, faults)


def test_a_sheet_shows_every_class_where_it_is_largest() -> None:
    rows = [pictured(number, _0=100) for number in range(100)]
    rows[50], rows[60] = pictured(50, _0=90, _1=10), pictured(60, _0=20, _1=80)
    rows[33] = pictured(33, _2=100)
    chosen = {each.row.image_id: each.shown_for for each in choose_rows(rows, 3)}
    assert len(chosen) == MAX_IMAGES
    assert list(chosen) == sorted(chosen)
    assert {image_id for image_id, why in chosen.items() if why is not None} == {33, 60}
    assert (chosen[33], chosen[60], chosen[0]) == (2, 1, None)
    assert choose_rows(rows, 3) == choose_rows(rows, 3)


def test_a_sheet_leaves_out_what_cannot_be_shown() -> None:
    rows = [pictured(0, _0=1), pictured(1, "broken", _1=1), pictured(2)]
    assert [each.row.image_id for each in choose_rows(rows, 2)] == [0]


def test_a_sheet_has_photographs_beside_their_classes(tmp_path: Path) -> None:
    grey = encoded(Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)), "PNG")
    columns = {"image": grey, "mask": mask(*[1] * (3 * WIDTH), *[255] * WIDTH)}
    write(tmp_path / "labels", train=[row(0, **columns)], val=[row(1)])
    report = check_dataset(str(tmp_path / "labels"))
    assert write_sheet(report, str(tmp_path / "sheet.png")) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        start = GAP + PADDING
        photo, covered = (sheet.convert("RGB").getpixel((x, start)) for x in (start, start + SIDE))
    assert photo == (128, 128, 128)
    blue = CLASSES[1].color
    fill = round(FILL * 255) / 255  # Pillow's opacities are bytes
    assert covered == tuple(round((1 - fill) * 128 + fill * value) for value in blue)


def test_the_captions_of_a_sheet_have_letters_of_any_language(tmp_path: Path) -> None:
    sheets = set()
    for letter in "aäéñж":
        write(tmp_path / letter, train=[row(0, uri=f"/photos/t{letter}r.jpg")], val=[row(1)])
        write_sheet(check_dataset(str(tmp_path / letter)), str(tmp_path / "sheet.png"))
        sheets.add((tmp_path / "sheet.png").read_bytes())
    assert len(sheets) == 5


def sixteen_bits() -> bytes:
    """Grey of half the brightness."""
    return encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 1 << 15, np.uint16)), "PNG")


def with_damaged_exif() -> bytes:
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"
    picture = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    return encoded(picture, "JPEG", exif=damaged)


@pytest.mark.parametrize("make", [sixteen_bits, with_damaged_exif])
def test_a_sheet_shows_images_as_they_are_predicted(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    write(tmp_path / "labels", train=[row(0, image=make())], val=[row(1)])
    report = check_dataset(str(tmp_path / "labels"))
    assert write_sheet(report, str(tmp_path / "sheet.png")) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.convert("RGB").getpixel((GAP + PADDING,) * 2) == (128, 128, 128)


def test_a_sheet_goes_anywhere_in_the_format_of_its_name(s3: S3, tmp_path: Path) -> None:
    from segbatch import storage

    write(tmp_path, train=[row(0)], val=[row(1)])
    report = check_dataset(str(tmp_path))
    uri = f"{s3.uri('sheets')}/sheet.jpg"
    write_sheet(report, uri)
    with Image.open(io.BytesIO(storage.read_bytes(uri))) as sheet:
        assert sheet.format == "JPEG"
    with pytest.raises(InputError, match=r"the extension must be one of \.png, \.jpg"):
        write_sheet(report, str(tmp_path / "sheet.txt"))
