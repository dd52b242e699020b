"""What the first images and the output say before a cluster is asked for anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segbatch.config.job import SegmentJob, load_kind
from segbatch.errors import Incomplete, InputError, RunError, SegbatchError, SourceError
from segbatch.images.video import frame_uri
from segbatch.jobs.doctor import examine
from segbatch.jobs.evaluate import evaluate
from segbatch.jobs.finetune import finetune
from segbatch.jobs.preflight import (
    Prepared,
    check_first_images,
    check_output,
    choose_sizes,
    prepare,
)
from segbatch.jobs.segment import segment
from segbatch.results.log import read_columns
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.films import STEADY, film
from tests.labelled import labelled_dataset
from tests.model.conftest import CLASSES


@pytest.fixture(scope="module")
def prepared(model_uri: str) -> Prepared:
    return prepare(load_kind(job("/photos/", model_uri, "/run"), SegmentJob))


def check(prepared: Prepared, *uris: str) -> None:
    check_first_images(pa.table({"uri": list(uris)}), prepared)


def test_a_torn_video_in_the_first_place_is_a_failed_row(
    tmp_path: Path, prepared: Prepared
) -> None:
    film(tmp_path / "clip.mp4", range(0, 4000, 40), sound=None)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) // 2])
    check(prepared, *(frame_uri(f"{tmp_path}/clip.mp4", time) for time in (3.8, 3.84, 3.88)))


def test_videos_in_the_place_of_images_are_refused(tmp_path: Path, prepared: Prepared) -> None:
    film(tmp_path / "clip.mp4", STEADY, sound=None)
    with pytest.raises(SourceError, match=r"a video: .*images: \{video: …\}"):
        check(prepared, f"{tmp_path}/clip.mp4")


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure"), ("abfss", "adlfs", "azure")],
)
def test_an_output_that_needs_an_extra_is_refused_before_a_cluster_is_asked(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    advice = f"{scheme}:// needs the extra {extra}: pip install 'segbatch[{extra}]'"
    with pytest.raises(InputError) as refused:
        check_output(f"{scheme}://bucket/run")
    assert str(refused.value) == advice
    with pytest.raises(InputError) as refused:
        read_columns(f"{scheme}://bucket/run/rows", "a.parquet", ["uri"])
    assert str(refused.value) == advice
    assert examine(f"{scheme}://bucket")["extra"] == f"no: {advice}"


def test_one_photograph_among_them_is_enough(tmp_path: Path, prepared: Prepared) -> None:
    film(tmp_path / "clip.mp4", STEADY, sound=None)
    (tmp_path / "photo.mov").write_bytes(jpeg(1))
    check(prepared, f"{tmp_path}/clip.mp4", f"{tmp_path}/photo.mov")


@pytest.mark.parametrize("rows_per_file", [1, 2, 4, 6, 500])
def test_views_of_one_panorama_stay_in_a_block_and_a_file_has_whole_blocks(
    prepared: Prepared, rows_per_file: int
) -> None:
    views = {"panorama": "/panoramas/", "yaw": [0, 90, 180, 270]}
    work = load_kind({**job(views, "m", "/run"), "rows_per_file": rows_per_file}, SegmentJob)
    images = pa.table({"uri": ["/panoramas/a.jpg#yaw=0&pitch=0&fov=90&size=64"]})
    sizes = choose_sizes(work, prepared, images, [], "cpu", num_images=12, num_workers=1)
    assert sizes.block_rows % 4 == 0
    assert sizes.file_rows >= sizes.block_rows
    assert sizes.file_rows % sizes.block_rows == 0


def test_a_relative_path_is_looked_for_where_the_message_says(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=f"photos/a.jpg: not_found: no such file in {tmp_path}"):
        check(prepared, "photos/a.jpg")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, model_uri: str) -> dict[Any, dict[str, Any]]:
    """A job for each function that runs one, without its output."""
    labels = str(tmp_path_factory.mktemp("labels") / "facades")
    dataset = labelled_dataset(labels, train=1, val=1, long_side=32)
    replace(dataset, classes=CLASSES).publish()
    network = {"arch": "deeplabv3plus", "backbone": "tu-test_resnet", "backbone_weights": None}
    return {
        segment: {"kind": "segment", "images": "photos/", "model": model_uri},
        finetune: {"kind": "finetune", "dataset": labels, "model": network},
        evaluate: {"kind": "evaluate", "dataset": labels, "model": model_uri},
    }


@pytest.mark.parametrize("start", [segment, finetune, evaluate])
def test_an_output_that_storage_refuses_ends_each_kind_of_job_with_an_error_of_ours(
    s3: S3, jobs: dict[Any, dict[str, Any]], start: Callable[..., Any]
) -> None:
    output = s3.uri("out")
    denied = {"status": 403, "code": "AccessDenied"}
    faults: list[tuple[dict[str, Any], type[SegbatchError], str]] = [
        ({"method": "GET", "part": "out/", **denied}, RunError, r"^output s3:\S+\.json: 403 "),
        ({"method": "PUT", "part": "out/pre", **denied}, RunError, "out: cannot be written to: "),
        (
            {"method": "PUT", "part": "out/lease", "status": 400, "code": "InvalidRequest"},
            Incomplete,
            r"^storage: s3:\S+/out/lease.json: .*; run it again$",
        ),
    ]
    try:
        for fault, error, message in faults:
            s3.break_down(fault)
            with pytest.raises(error, match=message):
                start(jobs[start] | {"output": output})
    finally:
        s3.break_down()
