"""Runs of images with coordinates: columns from EXIF, points for maps."""

from __future__ import annotations

import io
import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.errors import InputError
from segbatch.images.exif import Capture, exif_bytes
from segbatch.jobs.segment import segment
from segbatch.review.browse.grid import Grid, GridQuery
from segbatch.run import Run
from tests.collection import image
from tests.conftest import EVERYTHING, job
from tests.images.test_panorama import room, sphere
from tests.review.conftest import Visitor
from tests.review.test_browse import served
from tests.runs import rows_of
from tests.written_run import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
        image(number).save(name, quality=90, exif=exif_bytes(place))
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


def test_the_job_that_the_run_notes_is_the_same_job(run: Run) -> None:
    assert segment(run.info.job).info.counts == run.info.counts


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


def test_columns_called_as_parts_of_the_formats_are_still_there(tmp_path: Path) -> None:
    names = ["geometry", "Geometry_", "properties", "type", "coordinates", "features", "id"]
    values: dict[str, Any] = {
        **{name: lambda image_id, name=name: f"{name} {image_id}" for name in names},
        "lat": lambda image_id: 47 + image_id / 10,
        "lon": lambda image_id: 8.5,
    }
    columns = [
        *(pa.field(name, pa.string()) for name in names),
        *(pa.field(name, pa.float64()) for name in ("lat", "lon")),
    ]
    run = write_run(str(tmp_path / "run"), user_columns=columns, user_values=values)
    run.export(str(tmp_path / "a"), "geoparquet")
    read = geopandas.read_parquet(tmp_path / "a" / "images.parquet")
    assert read.geometry.name == "geometry__"
    assert list(read.geometry.y[:2]) == [47, 47.1]
    run.export(str(tmp_path / "b"), "geojson")
    collection = json.loads((tmp_path / "b" / "images.geojson").read_text())
    assert len(read) == len(collection["features"]) == 14
    feature = collection["features"][3]
    assert feature.keys() == {"type", "geometry", "properties"}
    assert feature["type"] == "Feature"
    assert feature["geometry"] == {"type": "Point", "coordinates": [8.5, 47.3]}
    for name in names:
        assert read[name][3] == feature["properties"][name] == f"{name} 3"
    assert len(geopandas.read_file(tmp_path / "b" / "images.geojson")) == 14


def test_numbers_in_lists_that_are_not_finite_are_null(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "embedding": lambda image_id: [0.5, math.inf, math.nan],
        "lat": lambda image_id: 47.0,
        "lon": lambda image_id: 8.5,
    }
    columns = [
        pa.field("embedding", pa.list_(pa.float64())),
        *(pa.field(name, pa.float64()) for name in ("lat", "lon")),
    ]
    run = write_run(str(tmp_path / "run"), user_columns=columns, user_values=values)
    run.export(str(tmp_path / "out"), "geojson")
    text = (tmp_path / "out" / "images.geojson").read_text()
    collection = json.loads(text, parse_constant=pytest.fail)
    assert collection["features"][0]["properties"]["embedding"] == [0.5, None, None]


def test_coordinates_may_be_text(tmp_path: Path) -> None:
    """A CSV with six decimals has 47.370000, which no number prints back."""
    latitudes = ["47.370000", None, "", "47°22'N", "91.000000"]
    values: dict[str, Any] = {
        "latitude": lambda image_id: latitudes[min(image_id, 4)],
        "longitude": lambda image_id: 8.541234,
        "Lat": lambda image_id: "none",
        "lon": lambda image_id: "none",
    }
    types = [pa.string(), pa.float64(), pa.string(), pa.string()]
    columns = [pa.field(name, type_) for name, type_ in zip(values, types, strict=True)]
    run = write_run(str(tmp_path / "run"), user_columns=columns, user_values=values)
    run.export(str(tmp_path / "parquet"), "geoparquet")
    [point] = geopandas.read_parquet(tmp_path / "parquet" / "images.parquet").geometry
    assert (point.x, point.y) == (8.541234, 47.37)
    run.export(str(tmp_path / "json"), "geojson")
    [point] = geopandas.read_file(tmp_path / "json" / "images.geojson").geometry
    assert (point.x, point.y) == (8.541234, 47.37)
    run.report(str(tmp_path / "report.html"))
    assert "8.541234, 47.37, [" in (tmp_path / "report.html").read_text()
    grid = Grid(run)
    [shown] = grid.points(GridQuery())
    assert (shown["lon"], shown["lat"]) == (8.541234, 47.37)


def test_text_that_is_no_number_is_no_coordinate(tmp_path: Path) -> None:
    columns = [pa.field(name, pa.string()) for name in ("lat", "lon")]
    values: dict[str, Any] = {name: lambda image_id: "47°22'N" for name in ("lat", "lon")}
    run = write_run(str(tmp_path / "run"), user_columns=columns, user_values=values)
    with pytest.raises(InputError, match="has no coordinates"):
        run.export(str(tmp_path / "out"), "geojson")


def test_the_report_has_a_map_that_asks_for_nothing(
    run: Run, tmp_path: Path, browser: Visitor
) -> None:
    run.report(str(tmp_path / "report.html"))

    def look(page: Page) -> tuple[str, str, int]:
        page.wait_for_selector('#map-place[data-points="4"]')
        page.locator("#map").scroll_into_view_if_needed()
        first = page.inner_text("#map-most")
        page.select_option("#map-class", index=1)
        page.wait_for_function(
            "(first) => document.getElementById('map-most').innerText !== first", arg=first
        )
        page.wait_for_timeout(300)
        picture = page.locator("#map-place").screenshot()
        return first, page.inner_text("#map p.quiet"), len(colors(picture))

    first, said, num_colors = browser.visit((tmp_path / "report.html").as_uri(), look)
    assert first.startswith("up to ")
    assert said.startswith("4 images with coordinates")
    assert num_colors > 5, "nothing is drawn"


def colors(picture: bytes) -> set[object]:
    with Image.open(io.BytesIO(picture)) as opened:
        return {color for _, color in opened.convert("RGB").getcolors(1 << 20) or ()}


def test_without_coordinates_there_is_no_map(whole_run: Run, tmp_path: Path) -> None:
    whole_run.report(str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "maplibre" not in page
    assert "worker-src" not in page


def test_browse_shows_the_images_that_match_on_a_map(run: Run, browser: Visitor) -> None:
    def look(page: Page) -> tuple[str, str, str]:
        page.check("#map-on")
        page.wait_for_selector('#map-place[data-points="4"]')
        page.select_option("#sort", "coverage.wall")
        page.locator("#map-note", has_text="wall").wait_for()
        page.wait_for_timeout(300)
        place = page.locator("#map-place").bounding_box()
        assert place is not None
        x, y = page.evaluate(
            "(() => { const { x, y } = map.map.project([151.2093, -33.8688]); return [x, y]; })()"
        )
        page.mouse.move(place["x"] + x, place["y"] + y)
        page.locator(".map-told", has_text="jpg").wait_for()
        told = page.inner_text(".map-told")
        page.mouse.click(place["x"] + x, place["y"] + y)
        page.wait_for_selector("#large[open]")
        title = page.inner_text("#title")
        page.click("#close")
        page.uncheck("#map-on")
        page.wait_for_selector("#grid figure")
        return told, title, page.inner_text("#hits")

    with served(run) as url:
        told, title, hits = browser.visit(url, look)
    assert told.startswith("wall ")
    assert told.endswith("/1.jpg")
    assert title == "1.jpg"
    assert hits == "6 images"


def test_tiles_come_from_the_address_that_was_named_and_no_other(run: Run, tmp_path: Path) -> None:
    tiles = "http://127.0.0.1:9/{z}/{x}/{y}.png"
    run.report(str(tmp_path / "report.html"), tiles=tiles)
    page = (tmp_path / "report.html").read_text()
    assert "connect-src http://127.0.0.1:9" in page
    for wrong in ("tiles/{z}/{x}/{y}.png", "https://host/tiles.png", "http://a b/{z}{x}{y}"):
        with pytest.raises(InputError, match=r"--tiles .* must be an address"):
            run.report(str(tmp_path / "none.html"), tiles=wrong)
    assert not (tmp_path / "none.html").exists()


def test_views_are_opened_everywhere(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path / "png"), "overlay", where="yaw IS NOT NULL")
    drawn = [path for path in (tmp_path / "png").rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(drawn) == 2
    for path in drawn:
        with Image.open(path) as overlay:
            overlay.load()
    assert [row["mask_width"] for row in rows_of(run).to_pylist()[4:]] == [64, 64]
