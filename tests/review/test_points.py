"""Runs of images with coordinates: columns from EXIF, points for maps."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import geopandas
import pytest
from PIL import Image
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.errors import InputError
from segbatch.images.exif import Capture, exif_of
from segbatch.jobs.segment import segment
from segbatch.run import Run
from tests.collection import image
from tests.conftest import EVERYTHING, job
from tests.images.test_panorama import room, sphere
from tests.runs import rows_of

PLACES = [
    Capture(47.3769, 8.5417, datetime(2024, 5, 6, 7, 8, 9), 90.0),
    Capture(-33.8688, 151.2093, None, None),
    Capture(),
]


@pytest.fixture(scope="module")
def run(ray_address: str, model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three photographs with EXIF, one file that is none, and two views of a panorama."""
    root = tmp_path_factory.mktemp("places")
    (root / "photos").mkdir()
    for number, place in enumerate(PLACES):
        name = root / "photos" / f"{number}.jpg"
        image(number).save(name, quality=90, exif=exif_of(place))
    (root / "photos" / "3.jpg").write_bytes(b"nothing")
    sphere(root / "panoramas" / "0.jpg", room(), PLACES[0])
    sources = [
        {"prefix": f"{root}/photos/", "exif": True},
        {"panorama": f"{root}/panoramas/", "yaw": [0, 300], "size": 64},
    ]
    return segment(job(sources, model_uri, str(root / "run"), **EVERYTHING))


def test_where_and_when_are_columns_of_the_results(run: Run) -> None:
    rows = rows_of(run).to_pylist()
    found = [Capture(*(row[name] for name in Capture._fields)) for row in rows]
    assert [place.latitude for place in found[:3]] == pytest.approx([47.3769, -33.8688, None])
    assert [place.captured_at for place in found[:3]] == [PLACES[0].captured_at, None, None]
    assert [place.compass for place in found[:3]] == [90.0, None, None]
    assert found[3] == Capture()
    assert rows[3]["error"] == "undecodable"
    assert [(row["yaw"], row["compass"]) for row in rows[4:]] == [(0.0, 90.0), (300.0, 30.0)]
    assert [row["longitude"] for row in rows[4:]] == pytest.approx([8.5417, 8.5417])
    assert rows[4]["uri"].endswith("0.jpg#yaw=0&pitch=0&fov=90&size=64")
    assert run.audit(deep=True).exit_code == 0


def test_points_are_read_by_geopandas(run: Run, tmp_path: Path) -> None:
    for to, file in (("geoparquet", "images.parquet"), ("geojson", "images.geojson")):
        done = CliRunner().invoke(app, ["export", run.uri, str(tmp_path / to), "--to", to])
        assert done.exit_code == 0, done.output
        assert "4 of 6 images" in done.stderr
        assert "2 left out: no coordinates" in done.stderr
        path = tmp_path / to / file
        read = geopandas.read_parquet(path) if to == "geoparquet" else geopandas.read_file(path)
        assert read.crs.to_epsg() == 4326 or read.crs.to_string() == "OGC:CRS84"
        assert list(read.geometry.x) == pytest.approx([8.5417, 151.2093, 8.5417, 8.5417])
        assert list(read.geometry.y) == pytest.approx([47.3769, -33.8688, 47.3769, 47.3769])
        assert list(read["image_id"]) == [0, 1, 4, 5]
        shares = read[[name for name in read.columns if name.startswith("coverage_")]].sum(axis=1)
        assert list(shares) == pytest.approx([1.0] * 4)
        assert "window_to_wall" in read.columns
    features = json.loads((tmp_path / "geojson" / "images.geojson").read_text())["features"]
    assert all(math.isfinite(feature["properties"]["coverage_wall"]) for feature in features)


def test_some_images_are_chosen(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path), "geojson", where="latitude < 0")
    assert len(geopandas.read_file(tmp_path / "images.geojson")) == 1
    with pytest.raises(InputError, match="none of 1 images has coordinates"):
        run.export(str(tmp_path / "none"), "geojson", where="image_id = 2")


def test_a_run_without_coordinates_says_how_to_get_them(whole_run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no coordinates: .*exif: true"):
        whole_run.export(str(tmp_path), "geoparquet")


def test_views_are_opened_everywhere(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path / "png"), "overlay", where="yaw IS NOT NULL")
    drawn = [path for path in (tmp_path / "png").rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(drawn) == 2
    for path in drawn:
        with Image.open(path) as overlay:
            overlay.load()
    assert [row["mask_width"] for row in rows_of(run).to_pylist()[4:]] == [64, 64]
