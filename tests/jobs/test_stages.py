"""The stages, one by one and together, in this process: no Ray."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from segbatch.config.job import Predict, Tile
from segbatch.errors import Fenced
from segbatch.images.video import FRAME_COLUMNS, frame_uri
from segbatch.jobs import stages
from segbatch.jobs.stages import (
    Predicting,
    PredictStage,
    Reading,
    Stages,
    accounts_of,
    crashed_row,
    decode_stage,
    encode_stage,
    fetch_stage,
    run_all_stages,
    write_stage,
)
from segbatch.masks import decode_mask
from segbatch.model.bundle import load_config
from segbatch.model.predict import load_model
from segbatch.results.encode import Encoding, carried
from segbatch.results.lease import Lease, WorkerLease, read_lease
from segbatch.results.schema import rows_schema
from segbatch.results.write import Account, Writing
from segbatch.storage import ReadLimits
from tests.collection import encoded, image, jpeg
from tests.drivers import wait_until
from tests.films import film

LIMITS = ReadLimits(max_bytes=1_000_000, retries=0)


@pytest.fixture(autouse=True)
def lease(tmp_path: Path) -> Iterator[Lease]:
    """What is written, is written for the driver that holds the run."""
    with Lease(str(tmp_path), print) as lease:
        yield lease


def manifest(folder: Path, files: dict[str, bytes]) -> pa.Table:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return pa.table(
        {
            "image_id": pa.array(range(10, 10 + len(files)), pa.int64()),
            "uri": [str(folder / name) for name in files],
            carried("city"): [f"city of {name}" for name in files],
        }
    )


def told(
    run: Path,
    model_uri: str,
    *,
    options: Predict | None = None,
    long_side: int | None = 128,
    masks: str = "original",
    stats: tuple[str, ...] = ("confidence",),
) -> Stages:
    """What the stages are told, as the job does it."""
    classes = load_config(model_uri).classes
    holder = read_lease(str(run))
    assert holder is not None
    schema = rows_schema(classes, stats=stats, user_columns=[pa.field("city", pa.string())])
    encoding = Encoding(classes, schema, store_masks=masks != "none")
    return Stages(
        Reading(LIMITS, 1_000_000, long_side),
        Predicting(
            model_uri,
            options or Predict(),
            device="cpu",
            threads=1,
            original_grid=masks == "original",
            keep_label_maps=encoding.wants_label_maps,
        ),
        encoding,
        Writing(WorkerLease(str(run), holder["driver"]), 1, schema, last_pass=False),
    )


def written(accounts: list[Account], run: Path) -> list[dict[str, Any]]:
    """The rows in the files of ``accounts``, by their image."""
    files = [account.file for account in accounts if account.file is not None]
    rows = [row for file in files for row in pq.read_table(run / "rows" / file.name).to_pylist()]
    return sorted(rows, key=lambda row: row["image_id"])


def test_blocks_that_a_worker_is_given_at_once_come_out_as_one_after_the_other(
    tmp_path: Path, model_uri: str
) -> None:
    files = {f"{n}.jpg": jpeg(n, 40 + 8 * n, 64) for n in range(4)} | {"no.jpg": b"no image"}
    pipeline = told(tmp_path, model_uri)
    blocks = [
        decode_stage(
            fetch_stage(part, pipeline.reading, pipeline.writing.worker_lease), pipeline.reading
        )
        for images in [manifest(tmp_path, files)]
        for part in [images, images.slice(2, 3), images.slice(4), images.slice(0, 1)]
    ]
    predict = PredictStage(pipeline.predicting, pipeline.reading)
    timings = [f"{stages.SECONDS}{name}" for name in ("fetch", "decode", "predict", "wait")]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(predict, blocks * 3))
    for block, table in zip(blocks * 3, at_once, strict=True):
        assert table.drop_columns(timings) == predict(block).drop_columns(timings)


def test_jpegs_that_the_device_decodes_give_the_same_rows(tmp_path: Path, model_uri: str) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    broken = re.sub(rb"(\xff\xc4...).{16}", rb"\1" + 16 * b"\xff", jpeg(8, 48, 64), flags=re.DOTALL)
    files = {
        **{f"{n}.jpg": jpeg(n, 48 + 8 * n, 64) for n in range(3)},
        "grey.jpg": encoded(image(3).convert("L"), "JPEG"),
        "turned.jpg": encoded(image(4), "JPEG", exif=turned),
        "large.jpg": jpeg(5, 300, 200),  # and downscaled
        "photo.png": encoded(image(6), "PNG"),
        "cut.jpg": jpeg(7, 48, 64)[:-200],
        "codes.jpg": broken,
    }
    images = manifest(tmp_path, files)
    pipeline = told(tmp_path, model_uri)
    by_cpu = written(accounts_of(run_all_stages(images, pipeline)), tmp_path)
    reading = replace(pipeline.reading, jpegs_on_device=True)
    fetched = fetch_stage(images, reading, pipeline.writing.worker_lease)
    kept = decode_stage(fetched, reading)["data"].is_valid().to_pylist()
    assert kept == [True] * 4 + [False] * 4 + [True]
    by_device = accounts_of(run_all_stages(images, replace(pipeline, reading=reading)))
    assert written(by_device, tmp_path) == by_cpu
    assert [row["error"] for row in by_cpu][-2:] == ["truncated", "undecodable"]


def test_frames_of_a_video_go_the_whole_way_with_their_times(
    tmp_path: Path, model_uri: str
) -> None:
    film(tmp_path / "clip.mp4", [0, 40, 90], sound=None)
    times = [0.0, 0.04, 0.09, 5.0]
    images = pa.table(
        {
            "image_id": pa.array(range(4), pa.int64()),
            "uri": [frame_uri(f"{tmp_path}/clip.mp4", time) for time in times],
            carried("city"): ["Bern"] * 4,
            carried("frame"): pa.array(range(4), pa.int64()),
            carried("time_s"): pa.array(times, pa.float64()),
        }
    )
    pipeline = told(tmp_path, model_uri)
    users = [pa.field("city", pa.string()), *FRAME_COLUMNS]
    schema = rows_schema(pipeline.encoding.classes, stats=("confidence",), user_columns=users)
    pipeline = replace(
        pipeline,
        encoding=replace(pipeline.encoding, schema=schema),
        writing=replace(pipeline.writing, schema=schema),
    )
    rows = written(accounts_of(run_all_stages(images, pipeline)), tmp_path)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed"]
    assert [row["time_s"] for row in rows] == times
    assert [row["frame"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["uri"].endswith("clip.mp4#t=0.000")
    assert (rows[2]["width"], rows[2]["height"]) == (64, 48)


def test_an_image_goes_the_whole_way_in_one_process(tmp_path: Path, model_uri: str) -> None:
    files = {"a.jpg": jpeg(1), "b.jpg": jpeg(2, 80, 60), "c.jpg": b"<html>", "d.jpg": jpeg(3)}
    images = manifest(tmp_path, files)
    accounts = accounts_of(run_all_stages(images, told(tmp_path, model_uri)))
    assert {account.kind: account.image_ids for account in accounts} == {
        "ok": [10, 11, 13],
        "undecodable": [12],
    }
    stages = {"fetch", "decode", "wait", "predict", "encode", "write"}
    assert accounts[0].seconds.keys() == stages
    assert all(seconds > 0 for seconds in accounts[0].seconds.values())
    assert accounts[0].counted == {
        "rows": 4,
        "read_bytes": sum(map(len, files.values())),
        "requests": 0,  # they are on disk
        "batches": pytest.approx(2),  # of the padded shapes 64×128 (b) and 128×128
    }
    rows = written(accounts, tmp_path)
    assert [row["city"] for row in rows] == [f"city of {name}" for name in files]
    model = load_model(model_uri, device="cpu")
    for row, data in zip(rows, files.values(), strict=True):
        if row["status"] == "ok":
            expected = model.predict(Image.open(io.BytesIO(data)))
            assert np.mean(decode_mask(row["mask"]) != expected.mask) < 1e-3
            assert sum(row["coverage"].values()) == pytest.approx(1, abs=1e-6)


def test_a_passing_failure_is_told_and_only_written_in_the_last_pass(
    tmp_path: Path, model_uri: str, s3: Any
) -> None:
    root = s3.uri("images")
    s3.put(f"{root}/a.jpg", jpeg(1))
    images = pa.table({"image_id": [0], "uri": [f"{root}/a.jpg"], carried("city"): ["Bern"]})
    s3.break_down({"part": "a.jpg", "status": 503, "code": "SlowDown"})
    try:
        [first] = accounts_of(run_all_stages(images, told(tmp_path, model_uri)))
        [last] = accounts_of(run_all_stages(images, told(tmp_path, model_uri).in_pass(True)))
    finally:
        s3.break_down()
    assert (first.kind, first.image_ids, first.file) == ("unavailable", [0], None)
    [row] = written([last], tmp_path)
    assert (row["error"], row["city"]) == ("unavailable", "Bern")
    assert "SlowDown" in row["message"]


def test_what_does_not_fit_in_a_block_is_decoded_by_the_model_and_is_the_same(
    tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "a.png": encoded(image(1), "PNG"),
        "large.png": encoded(image(2, 200, 300), "PNG"),
        "broken.jpg": jpeg(3)[:300],
        "z.png": encoded(image(4), "PNG"),
    }
    images = manifest(tmp_path, files)
    pipeline = told(tmp_path, model_uri, long_side=None)
    roomy = written(accounts_of(run_all_stages(images, pipeline)), tmp_path)

    monkeypatch.setattr(stages, "BLOCK_BYTES", 100_000)
    fetched = fetch_stage(images, pipeline.reading, pipeline.writing.worker_lease)
    tight = decode_stage(fetched, pipeline.reading)
    assert tight["pixels"].is_valid().to_pylist()[1] is False, "180 kB of pixels do not fit"
    assert tight["error"][1].as_py() is None
    assert tight["pixels"].nbytes <= 100_000 + 1000
    rows = written(accounts_of(run_all_stages(images, pipeline)), tmp_path)
    for row, other in zip(rows, roomy, strict=True):
        if row["mask"] is not None:
            # In batches of other sizes, convolutions round in another way.
            assert row["uncertainty"] == pytest.approx(other["uncertainty"], rel=1e-4)
            assert np.mean(decode_mask(row["mask"]) != decode_mask(other["mask"])) < 1e-4
        same = row.keys() - {"mask", "pixels", "coverage", "confidence", "uncertainty"}
        assert all(row[name] == other[name] for name in same)
    assert [row["error"] for row in roomy] == [None, None, "truncated", None]


def test_a_broken_image_that_waited_for_the_model_fails_there(
    tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BLOCK_BYTES", 0)
    png = encoded(image(1), "PNG")
    files = {"a.png": png, "cut.png": png[:-100], "b.png": encoded(image(2), "PNG")}
    accounts = accounts_of(run_all_stages(manifest(tmp_path, files), told(tmp_path, model_uri)))
    rows = written(accounts, tmp_path)
    assert [row["error"] for row in rows] == [None, "truncated", None]


def test_the_original_grid_is_the_images_and_the_models_is_after_downscaling(
    tmp_path: Path, model_uri: str
) -> None:
    images = manifest(tmp_path, {"a.png": encoded(image(1, 120, 300), "PNG")})
    grids = {}
    for masks in ("original", "model", "none"):
        accounts = accounts_of(run_all_stages(images, told(tmp_path, model_uri, masks=masks)))
        [row] = written(accounts, tmp_path)
        assert (row["width"], row["height"]) == (300, 120)
        assert sum(row["pixels"].values()) == row["mask_width"] * row["mask_height"]
        assert (row["mask"] is None) == (masks == "none")
        grids[masks] = row["mask_width"], row["mask_height"]
    assert grids == {"original": (300, 120), "model": (128, 51), "none": (128, 51)}


def test_components_are_counted_without_storing_masks(tmp_path: Path, model_uri: str) -> None:
    images = manifest(tmp_path, {"a.jpg": jpeg(1)})
    with_masks, without = (
        written(
            accounts_of(
                run_all_stages(
                    images, told(tmp_path, model_uri, masks=masks, stats=("components", "boxes"))
                )
            ),
            tmp_path,
        )[0]
        for masks in ("model", "none")
    )
    assert without["mask"] is None
    assert without["components"] == with_masks["components"]
    assert without["boxes"] == with_masks["boxes"]


@pytest.mark.parametrize(
    "options",
    [
        Predict(long_side=None, tile=Tile(size=128, overlap=32)),
        Predict(long_side=None, flip=True),
        Predict(long_side=None, scales=[0.5, 1.0]),
    ],
    ids=["tile", "flip", "scales"],
)
def test_a_job_predicts_with_the_options_that_load_model_takes(
    options: Predict, tmp_path: Path, model_uri: str
) -> None:
    picture = image(5, 220, 300)
    images = manifest(tmp_path, {"a.png": encoded(picture, "PNG")})
    pipeline = told(tmp_path, model_uri, options=options, long_side=None)
    [row] = written(accounts_of(run_all_stages(images, pipeline)), tmp_path)
    expected = load_model(model_uri, device="cpu", options=options).predict(picture)
    assert np.array_equal(decode_mask(row["mask"]), expected.mask)
    plain = load_model(model_uri, device="cpu", options=Predict(long_side=None))
    assert not np.array_equal(plain.predict(picture).mask, expected.mask)


def test_a_block_of_nothing_but_failures_goes_through(tmp_path: Path, model_uri: str) -> None:
    images = manifest(tmp_path, {"a.jpg": b"", "b.jpg": b"<html>"})
    accounts = accounts_of(run_all_stages(images, told(tmp_path, model_uri)))
    assert {account.kind for account in accounts} == {"truncated", "undecodable"}


def test_predict_leaves_no_pixels_in_what_it_gives_on(tmp_path: Path, model_uri: str) -> None:
    images = manifest(tmp_path, {"a.jpg": jpeg(1), "b.jpg": b""})
    pipeline = told(tmp_path, model_uri)
    decoded = decode_stage(
        fetch_stage(images, pipeline.reading, pipeline.writing.worker_lease), pipeline.reading
    )
    predicted = PredictStage(pipeline.predicting, pipeline.reading)(decoded)
    assert not {"data", "pixels"} & set(predicted.column_names)
    assert predicted.schema.field("label_map").type == pa.large_binary()
    assert predicted["label_map"].is_valid().to_pylist() == [True, False]


def test_a_crashed_image_gets_its_row(tmp_path: Path, model_uri: str) -> None:
    images = manifest(tmp_path, {"a.jpg": jpeg(1)})
    table = crashed_row(images, "the worker's process died, 2 times", told(tmp_path, model_uri))
    [account] = accounts_of(table)
    assert account.kind == "crashed"
    [row] = written([account], tmp_path)
    assert (row["image_id"], row["status"], row["error"]) == (10, "failed", "crashed")
    assert row["message"] == "the worker's process died, 2 times"
    assert row["city"] == "city of a.jpg"


def test_nothing_is_written_for_a_driver_that_lost_its_lease(
    tmp_path: Path, model_uri: str, lease: Lease
) -> None:
    images, pipeline = manifest(tmp_path, {"a.jpg": jpeg(1)}), told(tmp_path, model_uri)
    another = replace(pipeline.writing.worker_lease, driver="another")
    written_by_another = replace(pipeline, writing=replace(pipeline.writing, worker_lease=another))
    with pytest.raises(Fenced, match="taken over by process"):
        run_all_stages(images, written_by_another)
    lease.__exit__()
    with pytest.raises(Fenced, match="given up"):
        run_all_stages(images, pipeline)
    assert not (tmp_path / "rows").exists()


# ---------------------------------------------------------------------------- when the driver stops


def test_nothing_is_begun_once_the_driver_stops_and_what_was_begun_is_written(
    tmp_path: Path, model_uri: str, lease: Lease
) -> None:
    images = manifest(tmp_path, {"a.jpg": jpeg(1), "b.jpg": b""})
    pipeline = told(tmp_path, model_uri)
    reading, worker_lease = pipeline.reading, pipeline.writing.worker_lease
    predict = PredictStage(pipeline.predicting, reading, worker_lease)
    decoded = decode_stage(fetch_stage(images, reading, worker_lease), reading)
    predicted = predict(decoded)
    lease.announce_stop()
    wait_until(worker_lease.should_stop)
    assert fetch_stage(images, reading, worker_lease).num_rows == 0
    assert predict(decoded).num_rows == 0
    assert run_all_stages(images, pipeline).num_rows == 0
    rows = encode_stage(predicted, pipeline.encoding)
    accounts = accounts_of(write_stage(rows, pipeline.writing))
    assert {account.kind: account.image_ids for account in accounts} == {
        "ok": [10],
        "truncated": [11],
    }
