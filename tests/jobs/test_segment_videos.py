"""A whole run over videos, and everything that takes a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.errors import SourceError
from segbatch.jobs.segment import segment
from segbatch.run import Run, open_run
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.drivers import driver, exit_code, wait_until
from tests.films import film
from tests.runs import rows_commits, rows_of

pytestmark = pytest.mark.usefixtures("ray_address")

TIMES = range(0, 1200, 100)  # twelve frames


@pytest.fixture(scope="module")
def bucket(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two videos, of which one is damaged, and one that is none; a photograph; a list."""
    folder, root = tmp_path_factory.mktemp("films"), s3.uri("drives")
    film(folder / "whole.mp4", TIMES)
    s3.put(f"{root}/whole.mp4", (folder / "whole.mp4").read_bytes())
    film(folder / "cut.mp4", range(0, 4000, 100), sound=None)
    data = (folder / "cut.mp4").read_bytes()
    s3.put(f"{root}/cut", data[: len(data) // 8])
    s3.put(f"{root}/none.mkv", b"no video")
    s3.put(f"{root}/photo.jpg", jpeg(1))
    cities = {"whole.mp4": "Bern", "cut": "Basel", "none.mkv": "Genève"}
    lines = [f"{root}/{name},{city}" for name, city in cities.items()]
    s3.put(f"{root}/list.csv", "\n".join(["uri,city", *lines]).encode())
    return root


@pytest.fixture(scope="module")
def run(bucket: str, model_uri: str) -> Run:
    images = [{"video": f"{bucket}/list.csv"}, f"{bucket}/photo.jpg"]
    return segment(job(images, model_uri, f"{bucket}/run", stats=["confidence"]))


def test_each_frame_has_its_row_and_each_damage_its_reason(run: Run, bucket: str) -> None:
    rows = rows_of(run).to_pylist()
    whole = [row for row in rows if "whole.mp4#t=" in row["uri"]]
    assert [row["frame"] for row in whole] == list(range(12))
    assert [row["time_s"] for row in whole] == pytest.approx([time / 1000 for time in TIMES])
    assert {(row["status"], row["city"], row["width"]) for row in whole} == {("ok", "Bern", 64)}
    cut = [row for row in rows if "/cut#t=" in row["uri"]]
    assert cut[0]["status"] == "ok"
    assert cut[-1]["error"] == "truncated"
    [none] = [row for row in rows if row["uri"].endswith("none.mkv#t=0")]
    assert (none["frame"], none["error"]) == (None, "undecodable")
    photo = rows[-1]
    assert (photo["status"], photo["frame"], photo["time_s"]) == ("ok", None, None)
    assert run.audit(deep=True).exit_code == 0


@pytest.mark.long
def test_a_run_that_is_killed_in_the_middle_of_a_video_goes_on_there(
    model_uri: str, tmp_path: Path, ray_address: str
) -> None:
    film(tmp_path / "long.mp4", range(0, 6000, 100), sound=None)
    run = tmp_path / "run"
    work = job({"video": f"{tmp_path}/long.mp4"}, model_uri, str(run))
    with driver(work, tmp_path, ray_address) as process:
        wait_until(lambda: rows_commits(run) >= 2, process)
        process.kill()
        assert exit_code(process) == -signal.SIGKILL
    assert 0 < open_run(str(run)).audit().rows < 60
    resumed = segment(work)
    assert resumed.audit(deep=True).exit_code == 0
    rows = rows_of(resumed).to_pylist()
    assert [(row["frame"], row["status"]) for row in rows] == [(n, "ok") for n in range(60)]


def test_everything_that_takes_a_run_takes_one_over_videos(
    run: Run, bucket: str, tmp_path: Path
) -> None:
    def said(*words: str) -> str:
        done = CliRunner().invoke(app, [word.replace("DIR", str(tmp_path)) for word in words])
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.stdout

    over_time = (
        "SELECT round(time_s / 0.5) * 0.5 AS from_s, avg(coverage.wall) AS walls FROM images"
        " WHERE uri LIKE '%/whole.mp4#%' GROUP BY ALL ORDER BY from_s"
    )
    series = json.loads(said("query", run.uri, over_time, "--format", "json"))
    assert [row["from_s"] for row in series] == [0.0, 0.5, 1.0]
    assert json.loads(said("status", run.uri, "--format", "json"))["images"] == len(rows_of(run))
    said("report", run.uri, "-o", "DIR/report.html", "--by", "city")
    said("export", run.uri, "DIR/png", "--to", "png", "--limit", "3")
    said("export", run.uri, "DIR/labelme", "--to", "labelme", "--limit", "3")
    said("labels", "suggest", run.uri, "DIR/label", "--count", "2")
    assert "data:image" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "png").rglob("*.png"))) == 3
    polygons = [*(tmp_path / "labelme").rglob("*.json"), *(tmp_path / "label").glob("*.json")]
    assert len(polygons) == 5
    for file in polygons:
        annotated = json.loads(file.read_text())
        with Image.open(file.parent / annotated["imagePath"]) as image:
            assert image.size == (annotated["imageWidth"], annotated["imageHeight"])
    mask = run.mask(0)
    assert mask is not None
    assert mask.shape == (48, 64)


def test_a_list_of_videos_in_the_place_of_images_is_refused(
    bucket: str, model_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"a video: .*images: \{video: …\}"):
        segment(job({"glob": f"{bucket}/whole.mp4"}, model_uri, str(tmp_path / "run")))
