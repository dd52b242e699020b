"""Jobs over shards and over a table that holds its images, and what opens them afterwards."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segbatch import storage
from segbatch.jobs.segment import segment
from segbatch.review.suggest.suggest import suggest
from segbatch.run import Run, open_run
from tests import poison
from tests.collection import jpeg
from tests.conftest import EVERYTHING, S3, job
from tests.drivers import driver, exit_code, wait_until
from tests.runs import rows_of

SAME = ["status", "error", "width", "height", "mask", "pixels", "coverage", "boxes"]
KINDS = ["shards", "table"]
Contents = Sequence[tuple[str, bytes]]


def pack(kind: str, contents: Contents) -> bytes:
    """A shard, or a table with row groups of 4."""
    sink = io.BytesIO()
    if kind == "table":
        images = [{"bytes": data, "path": name} for name, data in contents]
        type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        names = [name for name, _ in contents]
        table = pa.table({"image": pa.array(images, type_), "txt": names})
        pq.write_table(table, sink, row_group_size=4)
        return sink.getvalue()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, (name, data) in enumerate(contents):
            suffix = name.rpartition(".")[2]
            for extension, content in ((suffix, data), ("txt", name.encode())):
                header = tarfile.TarInfo(f"{number:04d}.{extension}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return sink.getvalue()


def put(s3: S3, root: str, kind: str, contents: Contents) -> Mapping[str, str]:
    """The source of ``contents`` in two files below ``root``."""
    suffix = "parquet" if kind == "table" else "tar"
    half = len(contents) // 2
    for number, part in enumerate((contents[:half], contents[half:])):
        s3.put(f"{root}/data/part-{number}.{suffix}", pack(kind, part))
    return {kind: f"{root}/data/"}


@pytest.fixture(scope="module")
def files(collection: Path) -> list[Path]:
    return sorted(path for path in collection.iterdir() if path.is_file())


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, ray_address: str, s3: S3, model_uri: str, files: list[Path]
) -> Run:
    """The collection in two files."""
    root = s3.uri(request.param)
    source = put(s3, root, request.param, [(path.name, path.read_bytes()) for path in files])
    return segment(job(source, model_uri, f"{root}/run", **EVERYTHING))


def test_images_in_shards_and_tables_give_the_rows_of_loose_ones(run: Run, whole_run: Run) -> None:
    loose = {storage.name_of(row["uri"]): row for row in rows_of(whole_run).to_pylist()}
    rows = rows_of(run).to_pylist()
    assert [row["image_id"] for row in rows] == list(range(len(loose)))
    for row in rows:
        expected = loose[row["txt"]]
        assert [row[key] for key in SAME] == [expected[key] for key in SAME], row["txt"]
    assert run.audit(deep=True).exit_code == 0


def test_everything_that_opens_an_image_opens_one_in_a_shard_or_table(
    run: Run, files: list[Path], tmp_path: Path, s3: S3
) -> None:
    contents = {path.read_bytes() for path in files}
    suggested = suggest(run, str(tmp_path / "to-label"), count=3)
    for entry in suggested.images:
        copy = tmp_path / "to-label" / entry.file
        assert copy.read_bytes() in contents
        assert copy.suffix in (".jpg", ".jpeg", ".JPG", ".png", ".webp", ".tif", ".bmp", ".gif")
    s3.break_down()
    run.report(str(tmp_path / "report.html"))
    assert not s3.requests("HEAD", ".tar"), "the manifest knows where images are in their shards"
    assert "/part-0." in (tmp_path / "report.html").read_text()
    run.export(str(tmp_path / "overlays"), "overlay", limit=3)
    overlays = [
        path for path in (tmp_path / "overlays").rglob("*") if path.suffix in (".jpg", ".png")
    ]
    assert len(overlays) == 3
    for path in overlays:
        Image.open(path).load()


def flip_a_byte(run: Run) -> str:
    """Damage one file of rows; returns its URI."""
    uri = next(
        file.uri
        for file in storage.list_files(f"{run.uri}/rows")
        if file.uri.endswith(".parquet") and "/_delta_log/" not in file.uri
    )
    data = bytearray(storage.read_bytes(uri))
    data[len(data) // 2] ^= 1
    storage.write_bytes(uri, bytes(data))
    return uri


def identities(run: Run) -> dict[int, str]:
    return {row["image_id"]: row["uri"] for row in rows_of(run).to_pylist()}


def kill_after_a_commit(work: dict[str, Any], folder: Path, ray_address: str) -> None:
    """Begin the run, and kill its driver once it has committed rows."""
    with driver(work, folder, ray_address) as process:
        wait_until(lambda: "commit" in (folder / "stderr.txt").read_text(), process)
        process.kill()
        assert exit_code(process) == -signal.SIGKILL


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_and_damaged_under_faults_ends_whole(
    kind: str, model_uri: str, tmp_path: Path, ray_address: str, s3: S3
) -> None:
    root = s3.uri("faults")
    contents = [(f"{n}.jpg", jpeg(n, 64, 64, comment=poison.WAIT)) for n in range(24)]
    source = put(s3, root, kind, contents)
    work = job(source, model_uri, str(tmp_path / "run"), rows_per_file=4)
    part = "/data/part-"
    try:
        s3.break_down(
            {"part": part, "rate": 0.2, "kind": "reset_body"},
            {"part": part, "rate": 0.2, "status": 503, "code": "SlowDown"},
        )
        kill_after_a_commit(work, tmp_path, ray_address)
        before = identities(open_run(str(tmp_path / "run")))
        resumed = segment(work)
    finally:
        s3.break_down()
    rows = rows_of(resumed)
    assert rows["txt"].to_pylist() == [name for name, _ in contents]
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert before.items() <= identities(resumed).items()
    flip_a_byte(resumed)
    assert resumed.audit(deep=True).exit_code == 1
    repaired = segment(work, repair=True)
    assert repaired.audit(deep=True).exit_code == 0
    same = ["image_id", "uri", "status", "mask"]
    assert rows_of(repaired).select(same) == rows.select(same)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_during_the_run_fails_with_a_reason(
    kind: str, model_uri: str, s3: S3, ray_address: str, tmp_path: Path
) -> None:
    root = s3.uri("replaced")
    contents = [(f"{n}.jpg", jpeg(n, 64, 64, comment=poison.WAIT)) for n in range(16)]
    source = put(s3, root, kind, contents)
    work = job(source, model_uri, str(tmp_path / "run"), limits={"max_failed_fraction": 0.9})
    work["rows_per_file"] = 2
    suffix = "parquet" if kind == "table" else "tar"
    kill_after_a_commit(work, tmp_path, ray_address)
    s3.put(f"{root}/data/part-1.{suffix}", pack(kind, contents[:8]))  # other images
    rows = rows_of(segment(work)).to_pylist()
    assert len(rows) == 16
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    for row in failed:
        assert "/part-1." in row["uri"]
        assert row["error"] == "not_found"
        assert row["message"].startswith("the file was replaced since the images were listed")
