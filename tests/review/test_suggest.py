"""What `labels suggest` chooses of a run, and that it comes back as labels."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segbatch import import_labels, storage
from segbatch.cli.labels import read_uris
from segbatch.cli.main import main
from segbatch.errors import InputError, SourceError
from segbatch.formats.polygons import without_specks
from segbatch.labels.dataset import open_dataset
from segbatch.masks import decode_mask
from segbatch.review.suggest.diversity import describe_images, diverse_order
from segbatch.review.suggest.labelling import LABEL_WRITERS, copy_name, write_coco
from segbatch.review.suggest.suggest import LabelledImages, Suggestions, suggest
from segbatch.run import Run
from segbatch.storage import clients
from tests import written_run
from tests.conftest import S3
from tests.films import film
from tests.written_run import damage_mask, label_map, with_uris, write_run

NAMES = ["background", "wall", "window", "traffic light"]


@pytest.fixture(scope="module")
def run(photos: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Twelve images, 0006 the least certain, then 0005; one of the failed ones can be read now."""
    photos.put("s3://photos/0013.jpg", photo(photos, 1) + b"\0")
    kinds = ("not_found", "timeout", "too_large")
    yield write_run(str(tmp_path_factory.mktemp("runs") / "facades"), failed=kinds)
    photos.client.delete_object(Bucket="photos", Key="0013.jpg")


def photo(photos: S3, image_id: int) -> bytes:
    return storage.read_bytes(f"s3://photos/{image_id:04d}.jpg")


def ids(suggestions: Suggestions) -> list[int]:
    return [entry.image_id for entry in suggestions.images]


def listed(folder: Any) -> list[dict[str, str]]:
    text = storage.read_bytes(f"{folder}/suggested.csv").decode()
    return list(csv.DictReader(io.StringIO(text)))


def rows(dataset: Any) -> dict[str, dict[str, Any]]:
    """The rows of a dataset by URI."""
    opened = open_dataset(str(dataset))
    tables = (table for split in opened.splits for table in opened.tables(split))
    return {row["uri"]: row for table in tables for row in table.to_pylist()}


# -------------------------------------------------------------------------------- what is chosen


def test_the_least_certain_images_are_copied_with_their_predicted_shapes(
    run: Run, photos: S3, tmp_path: Path
) -> None:
    suggestions = suggest(run, str(tmp_path), count=2)
    first = suggestions.images[0]
    assert (first.image_id, first.uri, first.reason) == (
        6, "s3://photos/0006.jpg", "uncertainty 0.300"
    )  # fmt: skip
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [
        ".csv", ".jpg", ".jpg", ".json", ".json"
    ]  # fmt: skip
    assert (tmp_path / first.file).read_bytes() == photo(photos, 6)
    content = json.loads((tmp_path / first.file).with_suffix(".json").read_text())
    assert content["imagePath"] == first.file
    assert (content["imageWidth"], content["imageHeight"]) == (60, 40)
    assert {shape["label"] for shape in content["shapes"]} == {"background", "wall", "window"}
    assert len(content["segbatch"].pop("unchanged")) == 64
    assert content["segbatch"] == {
        "uri": first.uri, "run": run.uri, "image_id": 6, "model": "models/facades"
    }  # fmt: skip
    assert [row["image_id"] for row in listed(tmp_path)] == [str(n) for n in ids(suggestions)]
    assert listed(tmp_path)[0]["sha256"] == sha256(photo(photos, 6)).hexdigest()


def test_the_same_run_gives_the_same_images(run: Run, tmp_path: Path) -> None:
    first, again = (
        suggest(run, str(tmp_path / folder), count=5, by="diverse") for folder in ("a", "b")
    )
    assert first.images == again.images
    assert len({entry.cluster for entry in first.images}) == 5


def test_images_with_classes_that_few_images_show(
    photos: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_rare_classes(image_id: int) -> Any:
        """Image 4 alone has a traffic light; 1, 3 and 5 have no window; a dot in 2 is none."""
        labels = label_map(image_id)
        labels[labels == 2] = 1 if image_id in (1, 3, 5) else 2
        labels[0, : {4: 3, 2: 1}.get(image_id, 0)] = 3
        return labels

    monkeypatch.setattr(written_run, "label_map", with_rare_classes)
    run = write_run(str(tmp_path / "run"), num_ok=6, failed=())
    images = suggest(run, str(tmp_path / "a"), count=2, by="rare").images
    assert (images[0].image_id, images[0].reason) == (4, "rarity 1.000")
    assert images[1].image_id in (0, 2)
    without_window, whole = 2 / 6, 2 / 6 + 1 / 3 + 1
    assert images[1].reason == f"rarity {(whole - 1) / whole:.3f}"
    rest = suggest(run, str(tmp_path / "a"), count=6, by="rare").images
    assert {entry.reason for entry in rest} <= {
        images[1].reason, f"rarity {without_window / whole:.3f}"
    }  # fmt: skip


def test_images_on_which_another_run_disagrees_most(run: Run, tmp_path: Path) -> None:
    other = write_run(str(tmp_path / "other"), names=["background", "wall", "glass", "sign"])
    suggestions = suggest(run, str(tmp_path / "to"), count=1, by="disagreement", against=other)
    assert ids(suggestions) == [11]  # its window, which the other run calls glass, is the largest
    assert suggestions.images[0].reason.startswith("disagreement 0.")


def test_failed_images_are_taken_if_they_can_be_read_now(run: Run, tmp_path: Path) -> None:
    suggestions = suggest(run, str(tmp_path), count=3, by="failures")
    [entry] = suggestions.images
    assert (entry.image_id, entry.reason) == (13, "failed: timeout")
    [file] = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["shapes"] == []
    assert suggestions.left_out == {
        "cannot be read now: not_found": 1,
        "failed in the run, too_large: cannot be labelled": 1,
    }


@pytest.mark.parametrize("by", ["uncertainty", "rare", "disagreement", "failures", "diverse"])
def test_columns_of_the_users_have_any_name_and_type(photos: S3, tmp_path: Path, by: str) -> None:
    names = ["score", "scores", "taken", "reason"]
    zoned = pa.timestamp("us", "UTC")  # DuckDB would need pytz to fetch it
    values: dict[str, Any] = {
        name: lambda image_id: datetime(2026, 7, 1, image_id, tzinfo=UTC) for name in names
    }
    run, other = (
        write_run(
            str(tmp_path / name),
            names=["background", "wall", of_class, "sign"],
            user_columns=[pa.field(name, zoned) for name in names],
            user_values=values,
            failed=("not_found",),
        )
        for name, of_class in (("run", "window"), ("other", "glass"))
    )
    against = other if by == "disagreement" else None
    suggestions = suggest(run, str(tmp_path / "to"), count=1, by=by, against=against)
    expected = {"uncertainty": [6], "disagreement": [11], "failures": []}
    if by in expected:
        assert ids(suggestions) == expected[by]
    else:
        assert len(suggestions.images) == 1


def test_damaged_masks_are_left_out_and_counted(photos: S3, tmp_path: Path) -> None:
    damaged = write_run(str(tmp_path / "run"), failed=())
    damage_mask(damaged, 6)  # and those in the same part of the file, 7 to 9
    suggestions = suggest(damaged, str(tmp_path / "to"), count=12, by="diverse")
    assert not {6, 7, 8, 9} & set(ids(suggestions))
    assert len(suggestions.images) == 8
    assert suggestions.left_out == {"its mask in the run is damaged: audit the run": 4}
    assert len(list((tmp_path / "to").glob("*.jpg"))) == 8


def test_frames_of_videos_become_pictures_with_labels(tmp_path: Path) -> None:
    film(tmp_path / "street.mp4", size=(40, 60))
    run = write_run(str(tmp_path / "run"), num_ok=4, failed=(), finished=False)
    with_uris(run, lambda n: f"{tmp_path}/street.mp4#t={0.04 * n:.3f}")
    suggest(run, str(tmp_path / "to"), count=4)
    [*pictures] = (tmp_path / "to").glob("*.png")
    sizes = [Image.open(io.BytesIO(path.read_bytes())).size for path in pictures]
    assert sizes == 4 * [(60, 40)]
    import_labels(
        str(tmp_path / "to"), str(tmp_path / "labels"), format="labelme", accept_unchanged=True
    )
    uris = {f"{tmp_path}/street.mp4#t={0.04 * n:.3f}" for n in range(4)}
    assert rows(tmp_path / "labels").keys() == uris


def test_two_images_of_one_stem_have_a_labelme_file_each(photos: S3, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        photos.put(f"s3://photos/front.{version}", photo(photos, int(version[1])))
    run = write_run(str(tmp_path / "run"), num_ok=2, failed=(), finished=False)
    with_uris(run, lambda n: f"s3://photos/front.v{n + 1}")
    suggestions = suggest(run, str(tmp_path / "to"), count=2)
    documents = map(json.loads, (path.read_text() for path in (tmp_path / "to").glob("*.json")))
    assert {d["imagePath"] for d in documents} == {entry.file for entry in suggestions.images}


def test_a_list_limits_the_choice_and_the_rest_is_counted(run: Run, tmp_path: Path) -> None:
    among = [f"s3://photos/{name}.jpg" for name in ("0001", "0002", "0012", "9999")]
    suggestions = suggest(run, str(tmp_path), count=4, images=among)
    assert sorted(ids(suggestions)) == [1, 2]
    assert suggestions.left_out == {
        "not in the run": 1,
        "failed in the run, not_found: see --by failures": 1,
    }


@pytest.mark.parametrize(
    "text",
    [
        "s3://photos/1.jpg\n\n s3://photos/ü.jpg \n",
        "image_id,uri\n1,s3://photos/1.jpg\n2,s3://photos/ü.jpg\n",
        "\ufeffimage_id;uri;x\r\n1;s3://photos/1.jpg;a\r\n2;s3://photos/ü.jpg;b\r\n",
        "uri\timage_id\ns3://photos/1.jpg\t1\ns3://photos/ü.jpg\t2\n",
        '[{"image_id": 1, "uri": "s3://photos/1.jpg"}, {"uri": "s3://photos/ü.jpg"}]',
        '["s3://photos/1.jpg", "s3://photos/ü.jpg"]',
    ],
)
def test_a_list_of_images_is_read_in_any_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_bytes(text.encode())
    assert read_uris(str(tmp_path / "list")) == ["s3://photos/1.jpg", "s3://photos/ü.jpg"]


def test_names_in_brackets_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("[1].jpg\n[2].jpg\n")
    assert read_uris(str(tmp_path / "list")) == ["[1].jpg", "[2].jpg"]
    (tmp_path / "list").write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match="list: no URIs: give one a line, or a CSV or a JSON"):
        read_uris(str(tmp_path / "list"))


def test_an_image_that_is_labelled_is_left_out_by_its_uri_or_its_content(
    run: Run, photos: S3, tmp_path: Path
) -> None:
    labelled = LabelledImages({"s3://photos/0006.jpg"}, {sha256(photo(photos, 5)).hexdigest()})
    suggestions = suggest(run, str(tmp_path), count=2, labelled=labelled)
    assert not {5, 6} & set(ids(suggestions))
    assert len(suggestions.images) == 2
    assert suggestions.left_out == {"is labelled already": 2}


def test_a_folder_gets_others_when_it_is_asked_again_and_keeps_what_was_corrected(
    run: Run, tmp_path: Path
) -> None:
    first = suggest(run, str(tmp_path), count=2)
    corrected = (tmp_path / first.images[0].file).with_suffix(".json")
    corrected.write_text("corrected")
    again = suggest(run, str(tmp_path), count=2)
    assert not set(ids(first)) & set(ids(again))
    assert again.earlier == 2
    assert [int(row["image_id"]) for row in listed(tmp_path)] == [*ids(first), *ids(again)]
    (tmp_path / "suggested.csv").unlink()  # as if killed before the list was written
    suggest(run, str(tmp_path), count=2)
    assert corrected.read_text() == "corrected"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "luck"}, "--by luck: must be one of uncertainty, rare, disagreement"),
        ({"by": "disagreement"}, "--by disagreement and --against RUN_B go together"),
        ({"to": "voc"}, "--to voc: must be one of labelme, coco, labelstudio"),
    ],
)
def test_what_cannot_be_done_is_refused(
    run: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        suggest(run, str(tmp_path), count=1, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_list_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "suggested.csv").write_text("name,price\nbread,3\n")
    with pytest.raises(InputError, match=r"suggested.csv: is not a list of suggestions"):
        suggest(run, str(tmp_path), count=1)


# ------------------------------------------------------------------------------- and comes back


@pytest.mark.parametrize("format", ["labelme", "coco", "labelstudio"])
def test_corrected_labels_go_back_under_the_images_own_uri(
    run: Run, s3: S3, tmp_path: Path, format: str
) -> None:
    folder, dataset = s3.uri("to-label"), tmp_path / "labels"
    suggestions = suggest(run, folder, count=3, to=format)
    uris = {entry.uri for entry in suggestions.images}
    options: dict[str, Any] = {"format": format, "accept_unchanged": True}
    import_labels(folder, str(dataset), **options, classes=NAMES, split="val=0.5")
    before = rows(dataset)
    assert before.keys() == uris
    for entry in suggestions.images:
        drawn = decode_mask(before[entry.uri]["mask"]["bytes"])
        seen = np.kron(label_map(entry.image_id), np.ones((2, 2), np.uint8))
        assert (drawn == seen).mean() > 0.9

    import_labels(folder, str(dataset), **options, append=True, split="test=1.0")
    suggest(run, folder, count=2, to=format)
    report = import_labels(folder, str(dataset), **options, append=True, split="test=1.0")
    after = rows(dataset)
    assert (report.replaced, len(after)) == (3, 5)
    for uri in uris:
        assert after[uri]["split"] == before[uri]["split"]
        assert after[uri]["image_id"] == before[uri]["image_id"]
    assert {row["split"] for uri, row in after.items() if uri not in uris} == {"test"}


@pytest.mark.parametrize("format", ["labelme", "coco", "labelstudio"])
def test_suggestions_that_nobody_changed_never_replace_what_people_drew(
    run: Run, photos: S3, tmp_path: Path, format: str
) -> None:
    folder, dataset = tmp_path / "to", str(tmp_path / "labels")
    suggest(run, str(folder), count=3, to=format)
    with pytest.raises(SourceError, match=r"3 images are suggestions that nobody.*--accept-unch"):
        import_labels(str(folder), dataset, format=format)
    path = min(folder.glob("*.json"))
    content = json.loads(path.read_text())
    if format == "coco":  # a person draws another shape in one image of the file
        content["annotations"][0]["segmentation"] = [[0, 0, 9, 0, 9, 9]]
        content["annotations"].reverse()  # CVAT's way: its own order, numbers and keys
        for annotation in content["annotations"]:
            [points] = annotation["segmentation"]
            annotation["segmentation"] = [[point + 0.004 for point in points]]
        content["images"] = [
            {key: value for key, value in image.items() if key != "segbatch"}
            for image in content["images"]
        ]
    if format == "labelstudio":  # a person corrects one task and submits it
        first, *others = content
        first["annotations"] = [{"id": 1, "result": first["predictions"][0]["result"][:1]}]
        content = [first, *({**task, "annotations": []} for task in others)]
    path.write_text(json.dumps(content, indent=2))  # labelme saves its own way
    report = import_labels(str(folder), dataset, format=format, classes=NAMES)
    assert sum(report.images.values()) == 1
    assert any(note.startswith("2 images are suggestions") for note in report.notes)
    accepted = import_labels(
        str(folder), dataset, format=format, append=True, accept_unchanged=True
    )
    assert (sum(accepted.images.values()), accepted.replaced) == (3, 1)


@pytest.mark.parametrize("format", ["labelme", "coco"])
def test_a_correction_counts_in_any_file_next_to_the_suggestion(
    run: Run, photos: S3, tmp_path: Path, format: str
) -> None:
    folder, dataset = tmp_path / "to", str(tmp_path / "labels")
    suggest(run, str(folder), count=2, to=format)
    content = json.loads(min(folder.glob("*.json")).read_text())
    if format == "coco":  # all but the first shape of the first image
        first, *others = content["annotations"]
        content["annotations"] = [first, *(each for each in others if each["image_id"] != 1)]
    else:
        content["shapes"] = content["shapes"][:1]
    (folder / "result.json").write_text(json.dumps(content))  # its name comes after the other's
    options: dict[str, Any] = {"format": format, "classes": NAMES, "overwrite": True}
    import_labels(str(folder), dataset, **options)
    [(uri, corrected)] = rows(dataset).items()
    report = import_labels(str(folder), dataset, **options, accept_unchanged=True)
    assert rows(dataset)[uri]["mask"] == corrected["mask"]
    [left_out] = [entry for entry in report.skipped if f"its image, {uri}," in entry.why]
    assert left_out.why.endswith("/result.json")


@pytest.mark.parametrize("format", ["labelme", "coco", "labelstudio"])
def test_suggestions_are_known_without_their_list(
    run: Run, photos: S3, tmp_path: Path, format: str
) -> None:
    folder, dataset = tmp_path / "to", str(tmp_path / "labels")
    suggestions = suggest(run, str(folder), count=2, to=format)
    (folder / "suggested.csv").unlink()
    with pytest.raises(SourceError, match="2 images are suggestions that nobody has changed"):
        import_labels(str(folder), dataset, format=format)
    import_labels(str(folder), dataset, format=format, accept_unchanged=True)
    assert rows(dataset).keys() == {entry.uri for entry in suggestions.images}


@pytest.mark.parametrize("format", ["coco", "labelstudio"])
def test_every_image_has_its_labels_although_the_list_is_lost(
    run: Run, photos: S3, tmp_path: Path, format: str
) -> None:
    folder, dataset = tmp_path / "to", str(tmp_path / "labels")
    first = suggest(run, str(folder), count=2, to=format)
    (folder / "suggested.csv").rename(tmp_path / "elsewhere.csv")
    second = suggest(run, str(folder), count=2, by="diverse", to=format)
    again = suggest(run, str(folder), count=2, images=[e.uri for e in first.images], to=format)
    uris = {entry.uri for each in (first, second, again) for entry in each.images}
    assert len(uris) > 2
    import_labels(str(folder), dataset, format=format, accept_unchanged=True)
    assert rows(dataset).keys() == uris


def test_the_list_keeps_the_lines_of_a_call_at_the_same_time(
    run: Run, photos: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "to")

    def write_after_another_call(*arguments: Any) -> None:
        monkeypatch.undo()
        suggest(run, folder, count=2, by="diverse", to="coco")
        write_coco(*arguments)

    monkeypatch.setitem(LABEL_WRITERS, "coco", write_after_another_call)
    suggest(run, folder, count=3, to="coco")
    files = [row["file"] for row in listed(folder)]
    assert sorted(files) == sorted(path.name for path in Path(folder).glob("*.jpg"))
    assert len(files) > 3


def test_label_studio_gets_the_copies_with_predictions_and_its_configuration(
    run: Run, photos: S3, tmp_path: Path
) -> None:
    folder, dataset = tmp_path / "to label", str(tmp_path / "labels")
    suggestions = suggest(run, str(folder), count=2, to="labelstudio")
    assert (folder / "label_config.xml").read_text().count("<Label ") == len(NAMES)
    first, second = json.loads((folder / "tasks_1-2.json").read_text())
    entry = suggestions.images[0]
    assert first["data"] == {
        "image": f"/data/local-files/?d=to%20label/{entry.file}",
        "segbatch": {"uri": entry.uri, "run": run.uri, "image_id": 6, "model": "models/facades"},
    }
    [prediction] = first["predictions"]
    names = [result["value"]["brushlabels"] for result in prediction["result"]]
    assert names == [["background"], ["wall"], ["window"]]
    assert prediction["model_version"] == "models/facades"
    assert 0.5 < prediction["score"] < 1

    # Label Studio's export of both tasks, the second one corrected, is put into the folder.
    corrected = [{**second, "id": 2, "annotations": [{"result": prediction["result"]}]}]
    exported = [{**first, "id": 1, "annotations": []}, *corrected]
    (folder / "project-1-at-2026-03-02.json").write_text(json.dumps(exported))
    import_labels(str(folder), dataset, format="labelstudio", classes=NAMES)
    [(uri, row)] = rows(dataset).items()
    assert uri == suggestions.images[1].uri
    drawn = decode_mask(row["mask"]["bytes"])
    np.testing.assert_array_equal(drawn, np.kron(label_map(6), np.ones((2, 2), np.uint8)))

    # The same without the tasks of the call: the list of copies names the originals, too.
    del corrected[0]["data"]["segbatch"]
    (tmp_path / "export.json").write_text(json.dumps(corrected))
    report = import_labels(
        str(tmp_path / "export.json"),
        dataset,
        format="labelstudio",
        images=str(folder),
        append=True,
    )
    assert (report.replaced, rows(dataset).keys()) == (1, {uri})


def test_the_command_says_how_to_go_on_and_leaves_a_dataset_out(
    run: Run,
    photos: S3,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        words = ["segbatch", "labels", "suggest", run.uri, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        said = capsys.readouterr()
        return said.out, said.err

    out, err = command(tmp_path / "to", "--count", 2)
    assert "suggested         2" in out
    assert f"correct them with: labelme {tmp_path}/to\n" in err
    assert f"segbatch labels import {tmp_path}/to DATASET --from labelme --append" in err
    import_labels(
        str(tmp_path / "to"), str(tmp_path / "labels"), format="labelme", accept_unchanged=True
    )
    (tmp_path / "list.csv").write_text("image_id,uri\r\n6,s3://photos/0006.jpg\r\n")
    out, _ = command(
        tmp_path / "b", "--exclude", tmp_path / "labels", "--images", tmp_path / "list.csv"
    )
    assert "is labelled already 1" in out
    (tmp_path / "strangers.txt").write_text("photos/0006.jpg\n")
    _, err = command(tmp_path / "b", "--images", tmp_path / "strangers.txt", code=2)
    assert f"none of the list is in {run.uri}: it says photos/0006.jpg" in err
    assert "and the run s3://photos/0000.jpg" in err
    out, err = command(tmp_path / "c", "--count", 1, "--to", "coco", "--format", "json")
    told = json.loads(out)
    assert (told["folder"], told["suggested"], told["left_out"]) == (f"{tmp_path}/c", 1, {})
    assert [{k: str(v) for k, v in told["images"][0].items()}] == listed(tmp_path / "c")
    assert "--from coco --append" in err
    _, err = command(tmp_path / "e", "--count", 1, "--to", "labelstudio")
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path} label-studio start" in err
    assert f"labels import {tmp_path}/e DATASET --from labelstudio --append" in err

    monkeypatch.setattr(clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(clients, "MAX_BACKOFF_S", 0.02)
    faults = {
        "unavailable": {"kind": "reset"},
        "credentials": {"status": 400, "code": "ExpiredToken"},
    }
    for kind, fault in faults.items():
        photos.break_down({"method": "GET", "part": "/photos/"} | fault)
        try:
            out, err = command(tmp_path / "d", "--count", 1, code=3)
        finally:
            photos.break_down()
        assert f"cannot be read now: {kind} 3" in out
        assert "run it again as it is" in err


# ------------------------------------------------------------------------------------- its parts


def test_images_that_are_alike_are_one_cluster_and_the_best_of_each_comes_first() -> None:
    dark, light = np.zeros((30, 40, 3), np.uint8), np.full((3, 2, 3), 200, np.uint8)
    coverages = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.1, 0.9]])
    descriptors = describe_images(coverages, [dark, dark, light, light, light])
    order = diverse_order(descriptors, [0.9, 0.8, 0.1, 0.3, 0.2], 2)
    assert order == [(0, 0), (3, 1), (1, 0), (4, 1), (2, 1)]
    assert len({cluster for _, cluster in diverse_order(descriptors, [0.0] * 5, 5)}) == 3


def test_specks_take_the_class_of_the_larger_region_around_them() -> None:
    seen = np.zeros((20, 20), np.uint8)
    seen[:, 10:] = 1
    cleaned = seen.copy()
    seen[4:6, 3:5], seen[9, 15], seen[0, 12] = 1, 0, 2
    np.testing.assert_array_equal(without_specks(seen, 5), cleaned)
    np.testing.assert_array_equal(without_specks(seen, 1000), seen)


def test_a_list_keeps_the_columns_that_somebody_added(run: Run, tmp_path: Path) -> None:
    suggest(run, str(tmp_path), count=1)
    lines = (tmp_path / "suggested.csv").read_text().splitlines()
    (tmp_path / "suggested.csv").write_text(f"{lines[0]},labelled_by\n{lines[1]},anna\n")
    suggest(run, str(tmp_path), count=1)
    assert [line["labelled_by"] for line in listed(tmp_path)] == ["anna", ""]


def test_copies_of_images_of_one_name_are_called_differently() -> None:
    assert copy_name("https://h/p?file=a/b.jpg&sig=SECRET", b"").startswith("p-")
    assert copy_name("https://h/d//[x/1.jpg", b"").endswith(".jpg")
    first, second = (copy_name(f"s3://{bucket}/front view.jpg", b"") for bucket in "ab")
    assert first != second
    assert first.startswith("front_view-")
    assert first.endswith(".jpg")
    assert copy_name("https://photos.org/7.JPG?width=200", b"").startswith("7-")
    assert copy_name("https://photos.org/7.JPG?width=200", b"").endswith(".JPG")
    assert not copy_name("s3://photos/.jpg", b"").startswith(".")  # hidden files are not listed
