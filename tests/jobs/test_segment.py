"""The whole job, on a real Ray, against real storage, with real faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pytest
from PIL import Image, ImageOps

import segbatch
from segbatch import storage
from segbatch.errors import (
    CredentialsRefused,
    Incomplete,
    InputError,
    JobFailed,
    RunError,
    SourceError,
)
from segbatch.jobs import passes
from segbatch.jobs.segment import segment
from segbatch.masks import decode_mask
from segbatch.masks.classes import Classes
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.predict import load_model
from segbatch.review.suggest.suggest import suggest
from segbatch.run import Run
from tests.collection import broken, jpeg, various
from tests.conftest import EVERYTHING, S3, job
from tests.model.test_graphs import graph_file
from tests.runs import FEW, rows_of, share_that_differs, stats_of

pytestmark = pytest.mark.usefixtures("ray_address")


def contents(folder: Path) -> dict[str, int]:
    """Every file below, with the time at which it was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------- rows, masks, statistics


@pytest.fixture(scope="module")
def mixed(s3: S3, model_uri: str) -> Run:
    """On S3: half good and half broken images, by a manifest with columns of its own."""
    root = s3.uri("images")
    names = []
    for seed in range(14):
        extension, data = various(seed)
        names.append(f"{seed:03d}.{extension}")
        s3.put(f"{root}/{names[-1]}", data)
    for name, data in broken().items():
        names.append(name)
        s3.put(f"{root}/{name}", data)
    s3.put(f"{root}/forbidden.jpg", jpeg(50))
    names += ["forbidden.jpg", *(f"not_found-{number}.jpg" for number in range(6)), *names[:2]]
    manifest = pa.table(
        {
            "uri": [f"{root}/{name}" for name in names],
            "building": [f"{number:05d}" for number in range(len(names))],
            "year": [1900 + number for number in range(len(names))],
        }
    )
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(manifest, sink)
    s3.put(f"{root}/list.csv", sink.getvalue().to_pybytes())
    s3.break_down({"part": "/forbidden.jpg", "status": 403, "code": "AccessDenied"})
    try:
        return segment(job(f"{root}/list.csv", model_uri, f"{root}/run", **EVERYTHING))
    finally:
        s3.break_down()


def test_every_row_of_the_manifest_has_its_row_and_its_reason(mixed: Run) -> None:
    rows = rows_of(mixed).to_pylist()
    assert [row["image_id"] for row in rows] == list(range(30))
    for row in rows:
        name = storage.name_of(row["uri"])
        if name[0].isdigit():
            assert (row["status"], row["error"], row["message"]) == ("ok", None, None)
            assert row["mask"] is not None
        else:
            assert row["status"] == "failed"
            assert row["error"] == name.split("-")[0].split(".")[0], row
            assert row["message"]
            assert "\n" not in row["message"]
            assert row["mask"] is None
            assert row["pixels"] is None
            assert row["coverage"] is None
    assert mixed.status == "complete"
    assert mixed.info.counts.model_dump() == {
        "ok": 16,
        "failed": {"forbidden": 1, "not_found": 6, "too_large": 2, "truncated": 2,
                   "undecodable": 2, "unsupported": 1},
    }  # fmt: skip


def test_a_run_of_seconds_says_on_which_machines_it_was(mixed: Run) -> None:
    [node] = mixed.info.starts[-1].nodes
    assert node.cpus == 4
    assert node.seconds > 0


def test_the_manifests_own_columns_travel_and_keep_their_types(mixed: Run) -> None:
    rows = rows_of(mixed)
    assert rows["building"].to_pylist() == [f"{number:05d}" for number in range(30)]
    assert rows["year"].to_pylist() == [1900 + number for number in range(30)]


def test_a_uri_that_stands_there_twice_has_two_rows_with_one_mask(mixed: Run) -> None:
    rows = rows_of(mixed).to_pylist()
    assert mixed.info.manifest.duplicates == 2
    for first, second in ((0, 28), (1, 29)):
        assert rows[first]["uri"] == rows[second]["uri"]
        assert rows[first]["mask"] == rows[second]["mask"]


@pytest.mark.parametrize("name", ["mixed", "whole_run"])
def test_the_statistics_are_the_rows_without_masks(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    rows, stats = rows_of(run), stats_of(run)
    assert stats.drop_columns(["file", "file_row"]) == rows.drop_columns(["mask"])


def test_file_and_file_row_lead_to_the_mask(whole_run: Run) -> None:
    masks = dict(zip(*(rows_of(whole_run)[n].to_pylist() for n in ("image_id", "mask")),
                     strict=True))  # fmt: skip
    for row in stats_of(whole_run).to_pylist():
        file = pa.parquet.read_table(f"{whole_run.uri}/rows/{row['file']}")
        assert file["image_id"][row["file_row"]].as_py() == row["image_id"]
        assert file["mask"][row["file_row"]].as_py() == masks[row["image_id"]]


def test_a_mask_is_what_the_model_predicts_of_the_upright_image(
    whole_run: Run, model_uri: str
) -> None:
    model = segbatch.load_model(model_uri, device="cpu")
    differing = total = 0
    classes_seen = set()
    for row in rows_of(whole_run).to_pylist():
        if row["status"] == "ok":
            with Image.open(row["uri"]) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            assert (row["width"], row["height"]) == upright.size
            assert (row["mask_width"], row["mask_height"]) == upright.size
            mask, expected = decode_mask(row["mask"]), model.predict(upright).mask
            differing += int((mask != expected).sum())
            total += mask.size
            classes_seen |= set(np.unique(mask).tolist())
    assert differing / total < FEW
    assert len(classes_seen) >= 4, "otherwise the comparison says little"


def test_all_numbers_of_a_row_fit_its_mask(whole_run: Run) -> None:
    fields = whole_run.classes.fields
    for row in rows_of(whole_run).to_pylist():
        if row["status"] == "failed":
            continue
        mask = decode_mask(row["mask"])
        counts = np.bincount(mask.ravel(), minlength=len(fields))
        assert list(row["pixels"].values()) == counts.tolist()
        np.testing.assert_allclose(list(row["coverage"].values()), counts / mask.size, rtol=1e-6)
        for index, field in enumerate(fields):
            boxes = row["boxes"][field]
            assert row["components"][field] == len(boxes)
            assert sum(box["pixels"] for box in boxes) == counts[index]
            for box in boxes:
                inside = mask[box["y"] :, box["x"] :][: box["height"], : box["width"]]
                assert inside.shape == (box["height"], box["width"])
                assert (inside == index).sum() >= box["pixels"]
            confidence = row["confidence"][field]
            if counts[index] > mask.size / 20:
                assert 1 / len(fields) < confidence <= 1
        assert 0 < row["uncertainty"] < 1
        window, wall = row["coverage"]["window"], row["coverage"]["wall"]
        expected = None if window + wall == 0 else window / (window + wall)
        assert row["formulas"]["window_to_wall"] == pytest.approx(expected, rel=1e-5)


def test_no_file_holds_more_rows_than_rows_per_file(whole_run: Run) -> None:
    table = whole_run.table("rows")
    assert table is not None
    assert max(file.rows for file in table.files()) <= 4


def test_label_maps_depend_on_no_neighbour_no_batch_and_no_worker(
    whole_run: Run, model_uri: str, collection: Path, tmp_path: Path
) -> None:
    other = segment(
        job(
            [f"{path}" for path in sorted(collection.iterdir(), reverse=True)],
            model_uri,
            str(tmp_path / "run"),
            predict={"batch_size": 3},
            resources={"workers": 2, "cpus_per_worker": 1},
            rows_per_file=5,
        )
    )
    one, two = rows_of(whole_run), rows_of(other).sort_by("uri")
    assert one["uri"] == two["uri"]
    assert share_that_differs(one, two) < FEW
    assert set(two.column_names) - set(one.column_names) == set()


# ---------------------------------------------------------------------------- running it once again


def test_a_finished_run_is_left_as_it_is(whole_run: Run, model_uri: str, collection: Path) -> None:
    before = contents(Path(whole_run.uri))
    again = segment(job(f"{collection}/", model_uri, whole_run.uri, **EVERYTHING))
    assert contents(Path(whole_run.uri)) == before
    assert again.info == whole_run.info


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("images", {"images": "/another/folder/"}),
        ("masks", {"masks": "model"}),
        ("stats", {"stats": ["confidence"]}),
        ("formulas", {"formulas": {"window_to_wall": "window / wall"}}),
        ("predict.long_side", {"predict": {"long_side": 64}}),
        ("predict.flip", {"predict": {"flip": True}}),
        ("predict.scales", {"predict": {"scales": [1.0, 2.0]}}),
    ],
)
def test_a_changed_identity_key_is_refused_by_its_name(
    key: str, change: dict[str, Any], whole_run: Run, model_uri: str, collection: Path
) -> None:
    before = contents(Path(whole_run.uri))
    changed = job(f"{collection}/", model_uri, whole_run.uri, **EVERYTHING) | change
    with pytest.raises(RunError, match=f"{key} was .* choose a new output") as caught:
        segment(changed)
    assert caught.value.exit_code == 2
    assert contents(Path(whole_run.uri)) == before


def test_operational_keys_may_change(whole_run: Run, model_uri: str, collection: Path) -> None:
    keys = {
        "predict": {"batch_size": 2},
        "rows_per_file": 7,
        "resources": {"workers": 1},
        "limits": {"retries": 1},
    }
    work = job(f"{collection}/", model_uri, whole_run.uri, **EVERYTHING, **keys)
    assert segment(work).status == "complete"


def test_other_weights_under_the_same_name_are_refused(
    whole_run: Run, model_uri: str, collection: Path
) -> None:
    weights = Path(model_uri) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of one weight
    try:
        with pytest.raises(RunError, match=r"the weights of .* have changed"):
            segment(job(f"{collection}/", model_uri, whole_run.uri, **EVERYTHING))
    finally:
        weights.write_bytes(whole)


@pytest.mark.parametrize("content", ['{"kind": "train"}', "[]", "not JSON"])
def test_an_output_that_is_another_thing_is_refused(
    content: str, model_uri: str, collection: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json"):
        segment(job(f"{collection}/", model_uri, str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == content


# -------------------------------------------------------------------------------- too many failures


def test_too_many_failures_fail_the_run_until_the_limit_is_raised_or_they_are_mended(
    model_uri: str, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(8):
        (images / f"{seed}.jpg").write_bytes(jpeg(seed))
    (images / "8.jpg").write_bytes(b"")
    uris = [f"{images}/{number}.jpg" for number in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *uris]))
    run = tmp_path / "run"
    strict = job(f"{tmp_path}/list.csv", model_uri, str(run), limits={"max_failed_fraction": 0.2})
    lenient = strict | {"limits": strict["limits"] | {"max_failed_fraction": 0.5}}

    with pytest.raises(JobFailed, match=r"4 of 12 images failed \(3 not_found, 1 truncated\)"):
        segment(strict)
    kept = segbatch.open_run(str(run))
    assert kept.status == "failed"
    assert kept.audit(deep=True).exit_code == 0
    log = contents(run / "rows")

    with pytest.raises(JobFailed):
        segment(strict)
    assert segment(lenient).status == "complete"
    assert contents(run / "rows") == log, "a new verdict is no new work"
    with pytest.raises(JobFailed):
        segment(strict)

    for number in range(8, 12):
        (images / f"{number}.jpg").write_bytes(jpeg(number))
    retried = segment(strict, retry_failed=True, only=["not_found"])
    rows = rows_of(retried)
    assert rows["image_id"].to_pylist() == list(range(12))
    assert rows["error"].to_pylist() == [None] * 8 + ["truncated"] + [None] * 3
    assert retried.info.counts.model_dump() == {"ok": 11, "failed": {"truncated": 1}}

    audit = retried.audit(deep=True)
    assert (audit.exit_code, audit.rows, audit.uncommitted) == (0, 12, [])


def test_a_kind_that_does_not_exist_is_refused(
    whole_run: Run, model_uri: str, collection: Path
) -> None:
    work = job(f"{collection}/", model_uri, whole_run.uri, **EVERYTHING)
    before = contents(Path(whole_run.uri))
    with pytest.raises(segbatch.errors.InputError, match="no such kind"):
        segment(work, retry_failed=True, only=["missing"])
    assert contents(Path(whole_run.uri)) == before


# ---------------------------------------------------------------------------- storage that is down


@pytest.fixture
def twenty(s3: S3) -> Iterator[str]:
    """Twenty good images on S3, 16 to 19 in a folder of their own."""
    root = s3.uri("images")
    for number in range(20):
        folder = "b" if number >= 16 else "a"
        s3.put(f"{root}/{folder}/{number:02d}.jpg", jpeg(number, 64, 64))
    yield root
    s3.break_down()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PAUSE_S", 0.01)


@pytest.mark.usefixtures("no_pause")
def test_images_that_fail_for_a_while_arrive_and_few_that_never_do_get_their_reason(
    s3: S3, twenty: str, model_uri: str
) -> None:
    s3.break_down(
        {"part": "images/b/", "status": 503, "code": "SlowDown", "times": 1},
        {"part": "/02.jpg", "status": 503, "code": "SlowDown"},
    )
    limits = {"retries": 0, "passes": 2, "max_failed_fraction": 0.05}
    run = segment(job(f"{twenty}/", model_uri, f"{twenty}/run", limits=limits))
    assert run.info.counts.model_dump() == {"ok": 19, "failed": {"unavailable": 1}}
    row = rows_of(run).to_pylist()[2]
    assert (row["error"], "SlowDown" in row["message"]) == ("unavailable", True)
    assert run.audit(deep=True).exit_code == 0


@pytest.mark.long
@pytest.mark.usefixtures("no_pause")
def test_an_outage_commits_no_failure_and_is_run_again(s3: S3, twenty: str, model_uri: str) -> None:
    limits = {"retries": 0, "passes": 1, "max_failed_fraction": 0.1}
    work = job(f"{twenty}/", model_uri, f"{twenty}/run", limits=limits)
    s3.break_down({"part": "images/b/", "status": 503, "code": "SlowDown"})
    with pytest.raises(Incomplete, match=r"4 images could not be read .*run again later") as caught:
        segment(work)
    assert caught.value.exit_code == 3
    stopped = segbatch.open_run(work["output"])
    assert stopped.status == "incomplete"
    assert rows_of(stopped)["status"].to_pylist() == ["ok"] * 16
    assert stopped.audit().exit_code == 3

    s3.break_down({"part": "images/b/", "status": 400, "code": "ExpiredToken"})
    with pytest.raises(CredentialsRefused, match=r"ExpiredToken.*run again"):
        segment(work)
    assert rows_of(stopped).num_rows == 16

    s3.break_down()
    assert segment(work).info.counts.model_dump() == {"ok": 20, "failed": {}}


def test_none_of_the_first_images_readable_is_wrong_input(
    s3: S3, twenty: str, model_uri: str
) -> None:
    s3.break_down({"part": "images/a/", "status": 403, "code": "InvalidAccessKeyId"})
    work = job(f"{twenty}/", model_uri, f"{twenty}/run", limits={"retries": 0})
    with pytest.raises(SourceError, match=r"none of the first 16 images.*InvalidAccessKeyId"):
        segment(work)


# ------------------------------------------------------------------------------ models of elsewhere


def test_a_graph_that_gives_class_ids_has_no_confidence(collection: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.onnx"
    graph_file(labels, kinds=("labels",), size=(64, 96), batch=1, stride=1)
    known = Known(classes=Classes(["a", "b", "c", "d", "e"]), input_range=(0.0, 1.0))
    import_model(str(labels), str(tmp_path / "model"), known)
    run = segment(job(f"{collection}/", str(tmp_path / "model"), str(tmp_path / "run")))
    model = load_model(str(tmp_path / "model"), "cpu")
    rows = [row for row in rows_of(run).to_pylist() if row["status"] == "ok"]
    assert rows
    for row in rows:
        assert row["uncertainty"] is None
        assert set(row["confidence"].values()) == {None}
        assert sum(row["coverage"].values()) == pytest.approx(1)
    with Image.open(rows[0]["uri"]) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    mask = run.mask(rows[0]["image_id"])
    assert np.mean(mask != model.predict(upright).mask) < FEW
    assert run.report(str(tmp_path / "report.html")) > 1000
    with pytest.raises(InputError, match="its model gives class ids alone"):
        suggest(run, str(tmp_path / "suggested"), count=2)
