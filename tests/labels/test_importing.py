"""Annotated images of every format → a labelled dataset."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import segbatch
from segbatch import storage
from segbatch.cli.main import app
from segbatch.errors import Incomplete, InputError, SourceError
from segbatch.labels import importing, writer
from segbatch.labels.dataset import Dataset, open_dataset
from segbatch.labels.summary import ImportReport
from segbatch.masks import encode_mask
from segbatch.masks.classes import Classes
from tests.collection import encoded, jpeg
from tests.conftest import S3
from tests.labelled import rows
from tests.labels.annotated_images import FRONT, HEIGHT, WIDTH, annotate
from tests.labels.files import blank, grey, photograph, write


def labelme(source: Path, dataset: object, **options: Any) -> ImportReport:
    return segbatch.import_labels(str(source), str(dataset), format="labelme", **options)


def splits(dataset: object) -> dict[str, str]:
    return {storage.name_of(row["uri"]): row["split"] for row in rows(dataset)}


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Five houses, annotated with labelme."""
    for number in range(5):
        annotate(tmp_path / "street", f"house-{number}")
    return tmp_path / "street"


# ---------------------------------------------------------------------------------- what it makes


def test_images_masks_and_sizes_are_what_was_annotated(street: Path, tmp_path: Path) -> None:
    report = labelme(street, tmp_path / "labels")
    assert open_dataset(str(tmp_path / "labels")).classes == Classes(["wall", "window"])
    first, *_ = found = rows(tmp_path / "labels")
    assert [row["image_id"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["uri"] for row in found] == [f"{street}/house-{n}.jpg" for n in range(5)]
    assert first["image"]["bytes"] == (street / "house-0.jpg").read_bytes()
    assert (first["image"]["path"], first["mask"]["path"]) == ("house-0.jpg", "house-0.png")
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    expected = np.full((HEIGHT, WIDTH), 255, np.uint8)
    expected[:32] = 0
    expected[8:24, 8:24] = 1
    for row in found:
        np.testing.assert_array_equal(row["label_map"], expected)
    assert report.shapes == 10
    assert not report.skipped


def test_the_report_counts_images_and_pixels(street: Path, tmp_path: Path) -> None:
    report = labelme(street, tmp_path / "labels", split="val=0")
    facts = report.to_json()
    assert facts["images"] == {"train": 5}
    assert facts["unlabelled"] == "ignore"
    window, all_pixels = 5 * 16 * 16, 5 * WIDTH * HEIGHT
    assert facts["classes"] == [
        {"id": 0, "name": "wall", "pixels": 5 * 32 * WIDTH - window,
         "share": (5 * 32 * WIDTH - window) / all_pixels, "images": {"train": 5}},
        {"id": 1, "name": "window", "pixels": window, "share": window / all_pixels,
         "images": {"train": 5}},
        {"id": 255, "name": "void", "pixels": 5 * 16 * WIDTH, "share": 1 / 3,
         "images": {"train": 5}},
    ]  # fmt: skip


def test_the_same_labels_give_the_same_dataset(street: Path, tmp_path: Path) -> None:
    labelme(street, tmp_path / "a")
    labelme(street, tmp_path / "b")
    first, second = open_dataset(str(tmp_path / "a")), open_dataset(str(tmp_path / "b"))
    assert first.shards == second.shards
    assert first.fingerprint == second.fingerprint


def test_many_images_are_read_by_several_processes_in_order(tmp_path: Path) -> None:
    for number in range(30):
        annotate(tmp_path / "street", f"{number:02d}", [("wall", (0, 0, number, 10))])
    labelme(tmp_path / "street", tmp_path / "labels")
    for number, row in enumerate(rows(tmp_path / "labels")):
        assert row["uri"].endswith(f"/{number:02d}.jpg")
        assert (row["label_map"] == 0).sum() == 11 * (number + 1)


def test_labels_and_dataset_may_be_anywhere(s3: S3, street: Path) -> None:
    uri = s3.uri("street")
    for file in street.iterdir():
        s3.put(f"{uri}/{file.name}", file.read_bytes())
    dataset = s3.uri("labels")
    segbatch.import_labels(f"{uri}/", f"{dataset}/", format="labelme")
    assert [row["uri"] for row in rows(dataset)] == [f"{uri}/house-{n}.jpg" for n in range(5)]


def test_a_dataset_is_written_in_files_of_bounded_size(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 2)
    labelme(street, tmp_path / "by-rows", split="val=0")
    assert [s.rows for s in open_dataset(str(tmp_path / "by-rows")).shards] == [2, 2, 1]
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    labelme(street, tmp_path / "by-bytes", split="val=0")
    assert [s.rows for s in open_dataset(str(tmp_path / "by-bytes")).shards] == [1] * 5


def test_the_card_says_what_is_there(street: Path, tmp_path: Path) -> None:
    import yaml

    labelme(street, tmp_path / "labels", split_list=str(_list(tmp_path, val="house-1")))
    _, front, text = (tmp_path / "labels" / "README.md").read_text().split("---\n", 2)
    [config] = yaml.safe_load(front)["configs"]
    assert [entry["split"] for entry in config["data_files"]] == ["train", "validation"]
    for entry in config["data_files"]:
        assert all((tmp_path / "labels" / path).exists() for path in entry["path"])
    assert "| train | 4 |" in text
    assert "| 1 | window | #0072b2 | 1,280 | 8.33% | 5 |" in text
    assert f"| {street} | labelme | 5 | 0 |" in text
    assert f'images = datasets.load_dataset("{tmp_path}/labels")\n' in text


def test_a_dataset_named_from_the_folder_next_to_it_has_one_plain_path(
    street: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert labelme(street, tmp_path / "link/../labels").dataset == f"{tmp_path}/elsewhere/labels"
    assert labelme(street, tmp_path / "street/../labels").dataset == f"{tmp_path}/labels"


def test_the_card_loads_a_local_copy_of_a_dataset_in_a_bucket(street: Path, s3: S3) -> None:
    dataset = s3.uri("labels/facades")
    labelme(street, dataset)
    card = storage.read_bytes(f"{dataset}/README.md").decode()
    assert f'images = datasets.load_dataset("./facades")  # a copy of {dataset}\n' in card


def _list(folder: Path, **names: str) -> Path:
    """A list of splits: the houses in ``names`` have theirs, all others are in train."""
    listed = dict.fromkeys((f"house-{number}" for number in range(9)), "train")
    listed |= {name: split for split, name in names.items()}
    (folder / "splits.txt").write_text("".join(f"{n} {s}\n" for n, s in listed.items()))
    return folder / "splits.txt"


# ----------------------------------------------------------------------------------- other formats


def pairs(folder: Path) -> Path:
    """Mask pairs in train/ and val/ as mmsegmentation lays them out: wall 0, window 1, void 255."""
    for number, split in enumerate(["train", "train", "val"]):
        label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
        label_map[:8], label_map[8:16] = 1, 255
        for kind, name, data in (
            ("img_dir", f"{number}.jpg", jpeg(number, HEIGHT, WIDTH)),
            ("ann_dir", f"{number}.png", encoded(Image.fromarray(label_map), "PNG")),
        ):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            (folder / kind / split / name).write_bytes(data)
    return folder


PATTERNS = {"images": "img_dir/{split}/{id}.jpg", "masks": "ann_dir/{split}/{id}.png"}


def test_pairs_of_images_and_masks_become_a_dataset(tmp_path: Path) -> None:
    report = segbatch.import_labels(
        str(pairs(tmp_path / "pairs")), str(tmp_path / "labels"), format="pairs",
        classes=["wall", "window"], split="folder", **PATTERNS,
    )  # fmt: skip
    assert splits(tmp_path / "labels") == {"0.jpg": "train", "1.jpg": "train", "2.jpg": "val"}
    first = rows(tmp_path / "labels")[0]["label_map"]
    assert [int(first[row, 0]) for row in (0, 8, 16)] == [1, 255, 0]
    assert report.to_json()["unlabelled"] is None


def test_masks_added_to_a_dataset_hold_its_ids_unless_classes_are_given(tmp_path: Path) -> None:
    annotate(tmp_path / "street", "house", [("window", (0, 0, 5, 5)), ("wall", (8, 8, 20, 20))])
    labels = tmp_path / "labels"
    labelme(tmp_path / "street", labels)  # wall 0, window 1
    source = str(pairs(tmp_path / "pairs"))
    options: dict[str, Any] = {"format": "pairs", "append": True, **PATTERNS}
    segbatch.import_labels(source, str(labels), **options)
    assert {int(row["label_map"][0, 0]) for row in rows(labels)[1:]} == {1}
    segbatch.import_labels(source, str(labels), classes="window,wall", **options)
    assert {int(row["label_map"][0, 0]) for row in rows(labels)[1:]} == {0}


def coco(folder: Path, *, split: str, shift: int) -> None:
    """One image with a polygon, in a file in the folder of its split, as Roboflow exports it."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / "a.jpg").write_bytes(jpeg(shift, HEIGHT, WIDTH))
    square = [shift, shift, shift + 9, shift, shift + 9, shift + 9, shift, shift + 9]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": [square]}],
        "categories": [{"id": 7, "name": "window"}, {"id": 8, "name": "door"}],
    }
    (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def test_coco_by_folder(tmp_path: Path) -> None:
    coco(tmp_path / "coco", split="train", shift=3)
    coco(tmp_path / "coco", split="valid", shift=5)
    report = segbatch.import_labels(
        str(tmp_path / "coco"), str(tmp_path / "labels"), format="coco", split="folder"
    )
    assert report.images == {"train": 1, "val": 1}
    assert report.classes.names == ["door", "window"]
    assert [row["split"] for row in rows(tmp_path / "labels")] == ["train", "val"]


def test_folders_are_not_followed_unasked_but_mentioned(tmp_path: Path) -> None:
    coco(tmp_path / "coco", split="train", shift=3)
    coco(tmp_path / "coco", split="valid", shift=5)
    report = segbatch.import_labels(str(tmp_path / "coco"), str(tmp_path / "labels"), format="coco")
    assert any("train, val: --split folder would keep" in note for note in report.notes)


# -------------------------------------------------------------------------------- what is left out


def test_shapes_and_files_that_are_left_out_are_said_each_with_its_reason(
    street: Path, tmp_path: Path
) -> None:
    annotate(street, "house-0", [*FRONT, ("window", (900, 900, 950, 950))])
    (street / "house-1.jpg").write_bytes(b"no image")
    (street / "notes.json").write_text("{}")
    report = labelme(street, tmp_path / "labels")
    where = {Path(entry.where.split()[0]).name: entry.why for entry in report.skipped}
    assert set(where) == {"house-0.json", "house-1.jpg", "notes.json"}
    assert "outside" in where["house-0.json"]
    lines = (tmp_path / "labels" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == report.to_json()["skipped"]
    assert len(rows(tmp_path / "labels")) == 4
    assert [row["image_id"] for row in rows(tmp_path / "labels")] == [0, 1, 2, 3]


def test_an_image_that_is_labelled_twice_is_taken_once_and_said(
    street: Path, tmp_path: Path
) -> None:
    shutil.copy(street / "house-0.json", street / "house-0-again.json")
    report = labelme(street, tmp_path / "labels")
    [entry] = report.skipped
    assert entry.where == f"{street}/house-0.json"
    assert f"{street}/house-0-again.json" in entry.why
    assert len(rows(tmp_path / "labels")) == 5


def test_labels_of_which_none_can_be_used_make_no_dataset(street: Path, tmp_path: Path) -> None:
    for image in street.glob("*.jpg"):
        image.unlink()
    with pytest.raises(SourceError, match=r"no image there can be used; 5 .*house-0.jpg"):
        labelme(street, tmp_path / "labels")
    assert not list((tmp_path / "labels").iterdir())


def test_a_split_that_got_no_image_is_mentioned(street: Path, tmp_path: Path) -> None:
    report = labelme(street, tmp_path / "labels", split="val=0.1,test=0.000001")
    assert any(note.startswith("no image is in test") for note in report.notes)


def test_a_map_of_what_is_not_there_is_mentioned(street: Path, tmp_path: Path) -> None:
    report = labelme(street, tmp_path / "labels", map={"widow": "window"})
    assert "--map: no label has the name widow" in report.notes


# ----------------------------------------------------------------------------------------- options


def test_what_no_shape_covers_becomes_the_class_that_is_named(street: Path, tmp_path: Path) -> None:
    report = labelme(street, tmp_path / "a", unlabelled="wall")
    assert set(np.unique(rows(tmp_path / "a")[0]["label_map"])) == {0, 1}
    assert report.unlabelled == "wall"
    report = labelme(street, tmp_path / "b", classes=["wall", "_background_", "window"])
    assert rows(tmp_path / "b")[0]["label_map"][-1, -1] == 1
    assert report.unlabelled == "_background_"


def test_names_that_are_no_class_are_refused_before_anything_is_written(
    street: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="'window': not among the classes wall, door"):
        labelme(street, tmp_path / "labels", classes="wall,door")
    assert not (tmp_path / "labels").exists()
    labelme(street, tmp_path / "labels", classes="wall,door", map={"window": "__ignore__"})
    assert set(np.unique(rows(tmp_path / "labels")[0]["label_map"])) == {0, 255}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "yolo"}, "--from yolo: no such format; there is labelme, voc, coco, pairs, "),
        ({"masks": "masks/{id}.png"}, "--masks goes with --from pairs or hf, not labelme"),
        ({"colors": "c.txt"}, "--colors goes with --from voc or pairs or hf"),
        ({"reduce_zero_label": True}, "--reduce-zero-label goes with --from pairs or hf"),
        ({"format": "voc", "unlabelled": "wall"}, "--unlabelled goes with --from labelme or coco"),
        ({"add_class": True}, "--add-class goes with --append"),
        ({"append": True, "overwrite": True}, "exclude each other"),
        ({"append": True}, "no labelled dataset to append to"),
        ({"split": "half"}, "--split half"),
        ({"unlabelled": "sky"}, "--unlabelled sky: 'sky' is not a class; .* wall, window"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(
    street: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        segbatch.import_labels(
            str(street), str(tmp_path / "labels"), **{"format": "labelme", **options}
        )
    assert not (tmp_path / "labels").exists()


# ------------------------------------------------------------------------------ datasets that exist


def test_a_dataset_is_not_touched_unasked(street: Path, tmp_path: Path) -> None:
    labelme(street, tmp_path / "labels")
    before = open_dataset(str(tmp_path / "labels"))
    with pytest.raises(InputError, match=r"is a labelled dataset already: .*--append.*--overwrite"):
        labelme(street, tmp_path / "labels")
    assert open_dataset(str(tmp_path / "labels")) == before


def test_other_files_are_never_written_beside(street: Path, tmp_path: Path) -> None:
    for name in ("README.md", "train/photo.jpg"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("somebody's")
        with pytest.raises(InputError, match=rf"{folder}: holds other files \({name}\)"):
            labelme(street, folder, overwrite=True)
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / name]


def test_a_folder_that_cannot_be_written_to_is_refused(street: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"{tmp_path}/file/labels: cannot be written to"):
        labelme(street, tmp_path / "file" / "labels")


def test_overwriting_makes_the_dataset_anew(street: Path, tmp_path: Path) -> None:
    labelme(street, tmp_path / "labels", classes="window,wall")
    (street / "house-4.json").unlink()
    labelme(street, tmp_path / "labels", overwrite=True)
    opened = open_dataset(str(tmp_path / "labels"))
    assert opened.classes.names == ["wall", "window"]
    assert len(rows(tmp_path / "labels")) == 4
    assert opened.unnamed_files() == []
    assert len(opened.sources) == 1


def test_appending_keeps_what_is_there_and_adds_what_is_new(street: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labelme(street, labels, split="val=0.5")
    before = rows(labels)
    annotate(street, "house-3a")
    annotate(street, "house-7")
    report = labelme(street, labels, append=True, split="test=1.0")
    after = rows(labels)
    assert [_told(row) for row in after[:5]] == [_told(row) for row in before]
    assert [row["image_id"] for row in after] == list(range(7))
    assert [Path(row["uri"]).stem for row in after[5:]] == ["house-3a", "house-7"]
    assert [row["split"] for row in after[5:]] == ["test", "test"]
    assert report.replaced == 5
    assert sum(report.balance.splits.values()) == 7
    assert [entry["images"] for entry in open_dataset(str(labels)).sources] == [5, 7]
    assert open_dataset(str(labels)).unnamed_files() == []


def _told(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["image_id"], row["uri"], row["split"], row["image"], row["mask"]


def test_the_same_import_twice_changes_nothing(street: Path, tmp_path: Path) -> None:
    annotate(street, "twin-a", seed=1)
    annotate(street, "twin-b", seed=1)
    labelme(street, tmp_path / "labels", split="val=0.5")
    before = rows(tmp_path / "labels")
    labelme(street, tmp_path / "labels", append=True)
    assert [_told(row) for row in rows(tmp_path / "labels")] == [_told(row) for row in before]


def test_a_folder_that_was_moved_is_not_added_again(street: Path, tmp_path: Path) -> None:
    for twin in "abc":  # the same photograph, labelled differently
        annotate(street, f"twin-{twin}", [("window", (0, 0, 9 * ord(twin) % 50, 9))], seed=1)
    labelme(street, tmp_path / "labels", split="val=0.5")
    before = rows(tmp_path / "labels")
    street.rename(tmp_path / "avenue")
    report = labelme(tmp_path / "avenue", tmp_path / "labels", append=True)
    after = rows(tmp_path / "labels")
    assert report.replaced == len(before)
    assert [row["uri"] for row in after] == [
        row["uri"].replace("/street/", "/avenue/") for row in before
    ]
    for key in ("image_id", "split", "image", "mask"):
        assert [row[key] for row in after] == [row[key] for row in before]


def test_the_same_import_twice_changes_nothing_in_groups_either(
    street: Path, tmp_path: Path
) -> None:
    labels, groups = tmp_path / "labels", {"group_by": r"house-\d", "split": "val=0.5"}
    labelme(street, labels, **groups)
    before = rows(labels)
    for _ in range(2):
        labelme(street, labels, append=True, **groups)
        assert [_told(row) for row in rows(labels)] == [_told(row) for row in before]


def test_a_new_image_without_a_group_joins_a_dataset_of_groups(
    street: Path, tmp_path: Path
) -> None:
    labels, groups = tmp_path / "labels", {"group_by": r"house-\d", "append": True}
    labelme(street, labels, group_by=r"house-\d")
    for source in ("yard", "shed"):  # the dataset's images match, or the others of the import
        annotate(tmp_path / source, source)
    annotate(tmp_path / "shed", "house-1-shed")
    labelme(tmp_path / "yard", labels, **groups)
    labelme(tmp_path / "shed", labels, **groups)
    assert [row["group"] for row in rows(labels)[5:]] == [None, "house-1", None]
    with pytest.raises(SourceError, match=r"--group-by haus-\\d: matches no image"):
        labelme(tmp_path / "yard", labels, group_by=r"haus-\d", append=True)


def test_an_image_that_is_labelled_anew_keeps_its_id_and_split(
    street: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labelme(street, labels, split_list=str(_list(tmp_path, test="house-2")))
    annotate(tmp_path / "more", "other", [("window", (0, 0, 63, 47))])
    (tmp_path / "more" / "other.jpg").write_bytes((street / "house-2.jpg").read_bytes())
    report = labelme(tmp_path / "more", labels, append=True)
    found = rows(labels)
    assert report.replaced == 1
    assert len(found) == 5
    assert found[2]["uri"] == f"{tmp_path}/more/other.jpg"
    assert found[2]["split"] == "test"
    assert (found[2]["label_map"] == 1).all()


def test_an_image_that_can_no_longer_be_used_stays_as_it_was(street: Path, tmp_path: Path) -> None:
    labelme(street, tmp_path / "labels")
    before = rows(tmp_path / "labels")
    (street / "house-1.jpg").write_bytes(b"no image")
    assert labelme(street, tmp_path / "labels", append=True).skipped
    assert [_told(row) for row in rows(tmp_path / "labels")] == [_told(row) for row in before]


def test_a_new_class_is_refused_unless_it_may_be_added(street: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labelme(street, labels, classes="window,wall")
    annotate(tmp_path / "more", "house", [("balcony", (0, 0, 9, 9)), *FRONT[1:]])
    with pytest.raises(InputError, match="'balcony': not among the classes of the dataset"):
        labelme(tmp_path / "more", labels, append=True)
    report = labelme(tmp_path / "more", labels, append=True, add_class=True)
    assert report.added == ["balcony"]
    assert open_dataset(str(labels)).classes.names == ["window", "wall", "balcony"]
    label_map = rows(labels)[-1]["label_map"]
    assert (label_map[0, 0], label_map[12, 12]) == (2, 0)


def test_a_new_image_joins_the_split_of_its_group(street: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    group = r"(house-\d)"
    labelme(street, labels, group_by=group, split_list=str(_list(tmp_path, val="house-3")))
    assert {row["group"] for row in rows(labels)} == {f"house-{n}" for n in range(5)}
    annotate(tmp_path / "more", "house-3-backyard")
    labelme(tmp_path / "more", labels, append=True, group_by=group, split="val=0")
    assert splits(labels)["house-3-backyard.jpg"] == "val"


def test_images_are_grouped_as_in_the_import_before(street: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labelme(street, labels, group_by=r"(house-\d)", split="test=1")
    for number in range(6):
        annotate(tmp_path / "more", f"house-{number}-yard")
    report = labelme(tmp_path / "more", labels, append=True, split="val=0")
    assert report.images == {"test": 5, "train": 1}
    assert {row["group"] for row in rows(labels)} == {f"house-{number}" for number in range(6)}
    assert "new images are grouped as in earlier imports: --group-by '(house-\\d)'" in report.notes
    again = labelme(tmp_path / "more", labels, append=True)
    assert not any("grouped" in note for note in again.notes)
    annotate(tmp_path / "moved", "barn")  # a group may be found in another way from now on
    labelme(tmp_path / "moved", labels, append=True, group_by="barn")
    assert open_dataset(str(labels)).group_by == "barn"


def test_groups_whose_rule_is_not_recorded_are_asked_for(street: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labelme(street, labels, group_by=r"house-\d")
    content = json.loads((labels / "classes.json").read_text())
    del content["sources"][0]["group_by"]  # as an earlier version wrote it
    (labels / "classes.json").write_text(json.dumps(content))
    labelme(street, labels, append=True)
    annotate(street, "house-3-yard")
    with pytest.raises(SourceError, match=r"'house-0' of .*house-0.jpg, .*: add --group-by REGEX"):
        labelme(street, labels, append=True)
    labelme(street, labels, append=True, group_by=r"house-\d")
    annotate(street, "house-4-yard")
    labelme(street, labels, append=True)
    assert [row["group"] for row in rows(labels)[5:]] == ["house-3", "house-4"]


# --------------------------------------------------------------------------- what goes wrong midway


@pytest.fixture
def labels(street: Path, tmp_path: Path) -> Iterator[Dataset]:
    """A dataset of five images, which is the same afterwards, to the last file."""
    labelme(street, tmp_path / "labels")
    files = {path: path.read_bytes() for path in _files(tmp_path / "labels")}
    yield open_dataset(str(tmp_path / "labels"))
    assert {path: path.read_bytes() for path in _files(tmp_path / "labels")} == files


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_storage_that_fails_midway_leaves_the_dataset_as_it_was(s3: S3, street: Path) -> None:
    uri = s3.uri("labels")
    labelme(street, uri)
    before = open_dataset(uri)
    annotate(street, "house-8")
    try:
        s3.break_down({"part": "labels/train/", "method": "PUT", "status": 400, "code": "Broken"})
        with pytest.raises(Incomplete, match=f"{uri}: cannot be written to"):
            labelme(street, uri, append=True, split="val=0")
    finally:
        s3.break_down()
    assert open_dataset(uri) == before
    assert before.unnamed_files() == []


def test_a_source_that_is_lost_after_the_last_write_is_no_failure(
    s3: S3, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.uri("street")
    for file in street.iterdir():
        s3.put(f"{uri}/{file.name}", file.read_bytes())
    s3.put(f"{uri}/._house-0.jpg", b"of a Mac")
    publish = writer.DatasetWriter.publish

    def publish_and_lose(*args: Any) -> None:
        publish(*args)
        s3.break_down({"status": 403, "code": "AccessDenied"})

    monkeypatch.setattr(writer.DatasetWriter, "publish", publish_and_lose)
    try:
        report = segbatch.import_labels(uri, str(tmp_path / "labels"), format="labelme")
    finally:
        s3.break_down()
    assert "left out 1 system file (._*)" in report.notes
    assert len(rows(tmp_path / "labels")) == 5


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_storage_that_fails_at_the_end_leaves_one_dataset_or_the_other(
    s3: S3, street: Path, method: str
) -> None:
    uri = s3.uri("labels")
    labelme(street, uri)
    before = open_dataset(uri)
    annotate(street, "house-8")
    part = {"PUT": "labels/classes.json", "DELETE": "labels/train/"}[method]
    try:
        s3.break_down({"part": part, "method": method, "status": 403, "code": "AccessDenied"})
        if method == "PUT":
            with pytest.raises(Incomplete, match=f"{uri}: cannot be written to"):
                labelme(street, uri, overwrite=True)
        else:
            labelme(street, uri, overwrite=True)
    finally:
        s3.break_down()
    assert (open_dataset(uri) == before) == (method == "PUT")
    assert len(rows(uri)) == (5 if method == "PUT" else 6)
    labelme(street, uri, overwrite=True)
    assert open_dataset(uri).unnamed_files() == []


def test_a_format_that_fails_midway_leaves_the_dataset_as_it_was(
    labels: Dataset, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 1)
    annotate(street, "house-8")

    encoded = iter(range(8))

    def fail_late(*args: Any) -> bytes:
        if next(encoded) > 3:
            raise RuntimeError("a bug")
        return encode_mask(*args)

    monkeypatch.setattr(importing, "encode_mask", fail_late)
    with pytest.raises(RuntimeError, match="a bug"):
        labelme(street, labels.uri, append=True)


def test_an_import_that_another_one_overtook_is_refused(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.DatasetWriter.finish

    def overtaken(self: writer.DatasetWriter, replaced: Any) -> Any:
        monkeypatch.setattr(writer.DatasetWriter, "finish", real)
        labelme(street, tmp_path / "labels", classes="window,wall")
        return real(self, replaced)

    monkeypatch.setattr(writer.DatasetWriter, "finish", overtaken)
    with pytest.raises(Incomplete, match="another import changed it meanwhile"):
        labelme(street, tmp_path / "labels")
    assert open_dataset(str(tmp_path / "labels")).classes.names == ["window", "wall"]
    assert len(rows(tmp_path / "labels")) == 5


def test_a_damaged_dataset_is_not_appended_to(street: Path, tmp_path: Path) -> None:
    labelme(street, tmp_path / "labels", split="val=0")
    [file] = (tmp_path / "labels" / "train").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SourceError, match=f"{file}: is not the file that was imported"):
        labelme(street, tmp_path / "labels", append=True)


BOX_ONLY = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
NO_SUCH_IMAGE = {"image_id": 2, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}


@pytest.mark.parametrize(
    ("annotation", "why"),
    [(BOX_ONLY, "has no segmentation"), (NO_SUCH_IMAGE, "has the image_id 2, which no image has")],
)
def test_labels_of_which_no_shape_can_be_drawn_make_no_dataset(
    tmp_path: Path, annotation: dict[str, Any], why: str
) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "window"}],
    }
    source = write(tmp_path / "labels", {"a.json": content, "a.jpg": photograph()})
    with pytest.raises(SourceError, match=f"no shape there could be drawn; left out: .*{why}"):
        segbatch.import_labels(source, str(tmp_path / "out"), format="coco")
    assert not (tmp_path / "out" / "classes.json").exists()


def test_a_class_without_pixels_is_said_with_what_mends_it(tmp_path: Path) -> None:
    white = blank()
    white[2:9, 3:12] = 255
    source = write(tmp_path / "labels", {"images/a.jpg": photograph(), "masks/a.png": grey(white)})
    options: dict[str, Any] = {
        "format": "pairs",
        "classes": "background,window",
        "split": "val=0",
    }
    report = segbatch.import_labels(source, str(tmp_path / "out"), **options)
    assert report.notes[0] == "warning: no pixel of window: a training would not learn it"
    lines = re.findall("'([^']+)'", report.notes[1])
    (tmp_path / "colors.txt").write_text("\n".join(lines))
    assert report.notes[1].endswith("import with --colors FILE --overwrite")
    colors = str(tmp_path / "colors.txt")
    advised = segbatch.import_labels(
        source, str(tmp_path / "again"), **options, colors=colors, overwrite=True
    )
    assert [share.pixels for share in advised.balance.shares(advised.classes)][1:] == [63, 0]
    assert open_dataset(str(tmp_path / "again")).pixels == {"train": {0: 537, 1: 63}}
    assert not any("warning" in note for note in advised.notes)


@pytest.mark.parametrize("options", [[], ["--append"], ["--classes", "window,wall"]])
def test_labels_that_are_nearly_all_void_are_said_with_what_mends_it(
    tmp_path: Path, options: list[str]
) -> None:
    annotate(tmp_path / "labels", "a", [("window", (1, 1, 5, 5))])
    typed = ["labels", "import", str(tmp_path / "labels"), str(tmp_path / "out")]
    typed += ["--from=labelme", "--split=val=0"]
    for arguments in [[], options] if "--append" in options else [options]:
        said = CliRunner().invoke(app, [*typed, *arguments])
    [advice] = re.findall("of all pixels are void.* for instance with (.*)", said.stderr)
    said = CliRunner().invoke(app, [*typed, *shlex.split(advice)])
    assert said.exit_code == 0
    assert "are void" not in said.stderr
    assert set(open_dataset(str(tmp_path / "out")).pixels["train"]) == {0, 1}


def test_images_that_are_turned_unseen_are_said_where_others_are_labelled_as_stored(
    street: Path, tmp_path: Path
) -> None:
    (street / "house-1.jpg").write_bytes(photograph(WIDTH, HEIGHT, 3))
    (street / "house-2.jpg").write_bytes(photograph(WIDTH, HEIGHT, 2))
    assert not labelme(street, tmp_path / "upright", split="train=1").notes
    (street / "house-3.jpg").write_bytes(photograph(WIDTH, HEIGHT, 6))
    report = labelme(street, tmp_path / "stored")
    assert [entry.where for entry in report.skipped] == [f"{street}/house-3.jpg"]
    [note] = [note for note in report.notes if "EXIF" in note]
    assert f"EXIF turns {street}/house-1.jpg and 1 more, and" in note
    assert f"as those of {street}/house-3.jpg, which is left out" in note


def test_masks_that_are_all_void_make_no_dataset(tmp_path: Path) -> None:
    files = {"images/a.jpg": photograph(), "masks/a.png": grey(blank() + 255)}
    source = write(tmp_path / "labels", files)
    with pytest.raises(SourceError, match="every pixel is void: there is nothing to learn from"):
        segbatch.import_labels(source, str(tmp_path / "out"), format="pairs", classes="wall,window")
    assert not (tmp_path / "out" / "classes.json").exists()


@pytest.mark.parametrize("format", ["labelme", "coco", "pairs"])
@pytest.mark.parametrize(
    ("named", "on_disk"),
    [("Türe.jpg", "Tu\u0308re.jpg"), ("Tu\u0308re.jpg", "Türe.jpg"), ("IMG_1.JPG", "IMG_1.jpg")],
)
def test_photographs_are_found_however_their_names_are_spelled(
    tmp_path: Path, format: str, named: str, on_disk: str
) -> None:
    shape = {"label": "window", "points": [[1, 1], [4, 1], [4, 4]]}
    files: dict[str, Any] = {f"images/{on_disk}": photograph()}
    if format == "labelme":
        files["images/a.json"] = {"imagePath": named, "shapes": [shape]}
    elif format == "coco":
        files["images/a.json"] = {
            "images": [{"id": 1, "file_name": named}],
            "annotations": [
                {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}
            ],
            "categories": [{"id": 1, "name": "window"}],
        }
    else:
        files[f"masks/{Path(named).stem}.png"] = grey(blank())
    source = write(tmp_path / "labels", files)
    segbatch.import_labels(source, str(tmp_path / "out"), format=format, classes="wall,window")
    [row] = rows(tmp_path / "out")
    assert row["uri"] == f"{source}/images/{on_disk}"
