"""Panoramas: the views of an equirectangular picture are images of a run."""

from __future__ import annotations

import io
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import py360convert
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from segbatch import storage
from segbatch.config.images import parse_source
from segbatch.config.job import Limits
from segbatch.errors import JobFileError
from segbatch.images import panorama
from segbatch.images.decode import decode
from segbatch.images.exif import Capture
from segbatch.images.panorama import View, sample_view
from segbatch.images.parts import read_images, read_parts
from segbatch.images.place import parts_of
from tests.collection import encoded
from tests.conftest import S3
from tests.images.frozen import frozen
from tests.images.test_shards import tar

LIMITS = storage.ReadLimits()
Pixels = npt.NDArray[np.uint8]
# The colours of the walls of a room, by the direction in which they are from its middle.
WALLS = {
    "front": (250, 20, 20), "right": (20, 250, 20), "back": (20, 20, 250), "left": (250, 250, 20),
    "up": (20, 250, 250), "down": (250, 20, 250),
}  # fmt: skip


def room(width: int = 512) -> Pixels:
    """A cube of coloured walls as it is seen from its middle."""
    height = width // 2
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lon, lat = np.meshgrid(longitude, latitude)
    x, y, z = np.cos(lat) * np.sin(lon), np.sin(lat), np.cos(lat) * np.cos(lon)
    walls = np.stack([z, x, -z, -x, y, -y])  # the largest is the wall that is hit
    return np.array(list(WALLS.values()), np.uint8)[walls.argmax(axis=0)]


def smooth(width: int = 400) -> Pixels:
    rows, columns = np.mgrid[: width // 2, :width]
    waves = [np.sin(2 * np.pi * columns / width * n) for n in (1, 2, 3)]
    shade = np.cos(np.pi * (rows / (width // 2) - 0.5))
    return np.stack([127 + 100 * wave * shade for wave in waves], axis=-1).astype(np.uint8)


def pixels_of(content: object) -> Pixels:
    assert isinstance(content, bytes)
    return np.asarray(Image.open(io.BytesIO(content)))


# -------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("yaw", "pitch", "wall"),
    [(0, 0, "front"), (90, 0, "right"), (180, 0, "back"), (-180, 0, "back"), (270, 0, "left"),
     (-90, 0, "left"), (0, 90, "up"), (0, -90, "down"), (123, 90, "up")],
)  # fmt: skip
def test_a_view_sees_the_wall_in_its_direction(yaw: float, pitch: float, wall: str) -> None:
    seen = sample_view(room(), View(yaw, pitch, 89.0, 64))
    inside = np.ones((64, 64), bool) if yaw != 123 else np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 31
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert (seen[inside] == WALLS[wall]).all()


def test_a_view_of_a_corner_has_both_walls_upright() -> None:
    seen = sample_view(room(), View(45.0, 0.0, 60.0, 65))
    assert tuple(seen[32, 4]) == WALLS["front"]
    assert tuple(seen[32, 60]) == WALLS["right"]
    tilted = sample_view(room(), View(0.0, 45.0, 60.0, 65))
    assert tuple(tilted[4, 32]) == WALLS["up"]
    assert tuple(tilted[60, 32]) == WALLS["front"]


@pytest.mark.parametrize("yaw", [0.0, 33.0, 179.5, -120.0])
@pytest.mark.parametrize("pitch", [0.0, 20.0, -60.0])
@pytest.mark.parametrize("fov", [60.0, 100.0])
def test_views_are_those_of_py360convert(yaw: float, pitch: float, fov: float) -> None:
    size, picture = 80, smooth()
    ours = sample_view(picture, View(yaw, pitch, fov, size)).astype(int)
    # Its outermost pixels have their middles on the border of the view, ours lie inside.
    inner = 2 * math.degrees(math.atan(math.tan(math.radians(fov) / 2) * (size - 1) / size))
    theirs = py360convert.e2p(picture, inner, yaw, pitch, (size, size), mode="bilinear")
    assert np.abs(ours - theirs.astype(int)).max() <= 2


# ------------------------------------------------------------------------------------ as a source


def sphere(path: Path, picture: Pixels, capture: Capture | None = None, xmp: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = panorama.exif.exif_bytes(capture or Capture())
    Image.fromarray(picture).save(path, quality=95, exif=exif, xmp=xmp)


def test_every_view_is_a_row(tmp_path: Path) -> None:
    sphere(tmp_path / "data" / "0.jpg", room())
    sphere(tmp_path / "data" / "1.png", room())
    source = {"panorama": f"{tmp_path}/data/", "yaw": [0, 90], "pitch": 5, "fov": 70, "size": 64}
    rows = frozen(tmp_path, source)
    assert rows.column_names == ["image_id", "uri", "yaw", "pitch", "fov", "compass"]
    assert rows["uri"][1].as_py() == f"{tmp_path}/data/0.jpg#yaw=90&pitch=5&fov=70&size=64"
    assert rows.select(["yaw", "pitch", "fov"]).to_pylist()[3] == {"yaw": 90, "pitch": 5, "fov": 70}
    for row, content in enumerate(read_parts(parts_of(rows), LIMITS)):
        middle = pixels_of(content)[32, 32].astype(int)
        assert np.abs(middle - WALLS["front" if row % 2 == 0 else "right"]).max() < 8


def test_a_panorama_is_fetched_and_decoded_once_for_its_views(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3.uri("panoramas")
    for number in range(3):
        storage.write_bytes(f"{root}/{number}.jpg", encoded(Image.fromarray(room())))
    rows = frozen(tmp_path, {"panorama": f"{root}/", "size": 32})
    decoded = []
    plain = panorama.decode_image
    monkeypatch.setattr(
        panorama, "decode_image", lambda *a, **k: decoded.append(1) or plain(*a, **k)
    )
    s3.break_down()
    assert len(read_parts(parts_of(rows), LIMITS)) == 12
    assert sum(s3.requests("GET", ".jpg").values()) == 3
    assert len(decoded) == 3


def test_panoramas_in_shards(tmp_path: Path) -> None:
    data = tar([("a.jpg", encoded(Image.fromarray(room()))), ("a.json", b'{"street": "Gasse"}')])
    storage.write_bytes(f"{tmp_path}/data/0.tar", data)
    rows = frozen(tmp_path, {"panorama": {"shards": f"{tmp_path}/data/"}, "yaw": [0], "size": 32})
    assert rows["street"].to_pylist() == ["Gasse"]
    assert rows["uri"][0].as_py().endswith("0.tar#member=a.jpg#yaw=0&pitch=0&fov=90&size=32")
    assert read_parts(parts_of(rows), LIMITS) == read_images(rows["uri"].to_pylist(), LIMITS)
    assert pixels_of(read_parts(parts_of(rows), LIMITS)[0]).shape == (32, 32, 3)


def test_what_is_no_panorama_fails_with_a_reason(tmp_path: Path) -> None:
    sphere(tmp_path / "data" / "0.jpg", room()[:, :400])
    (tmp_path / "data" / "1.jpg").write_bytes(b"nothing")
    rows = frozen(tmp_path, {"panorama": f"{tmp_path}/data/", "yaw": [0], "size": 32})
    flat, broken = read_parts(parts_of(rows), LIMITS)
    assert getattr(flat, "kind", None) == "unsupported"
    assert "400×256: no panorama, which is twice as wide as high" in getattr(flat, "message", "")
    assert getattr(broken, "kind", None) == "undecodable"


def test_a_panorama_may_have_as_many_pixels_as_the_job_allows(tmp_path: Path) -> None:
    sphere(tmp_path / "data" / "0.jpg", room(200))
    parts = parts_of(frozen(tmp_path, {"panorama": f"{tmp_path}/data/", "size": 32, "yaw": [0]}))
    [found] = read_parts(parts, Limits(max_pixels=20_000).read_limits())
    assert pixels_of(found).shape == (32, 32, 3)
    [found] = read_parts(parts, Limits(max_pixels=19_999).read_limits())
    assert getattr(found, "kind", None) == "too_large"
    assert getattr(found, "message", "").endswith("limits.max_pixels is 19,999")


@given(st.floats(-1e9, 1e9), st.floats(-90, 90), st.floats(1e-12, 150))
@example(1e-05, -1e-07, 1e-05)
@example(1_000_000.0, 0.0, 90.0)
def test_every_view_has_a_uri_that_reads_back(yaw: float, pitch: float, fov: float) -> None:
    uri = panorama.view_uri("s3://b/a.jpg", View(yaw, pitch, fov, 64))
    assert panorama.is_view(uri)
    assert re.fullmatch(panorama.FRAGMENT, uri.removeprefix("s3://b/a.jpg"))
    image, view = panorama._split(uri)
    assert image == "s3://b/a.jpg"
    assert view[:3] == pytest.approx((yaw, pitch, fov), rel=1e-5)


def test_uris_of_views_stay_as_earlier_runs_wrote_them() -> None:
    uri = panorama.view_uri("a.jpg", View(123.4567, -12.5, 90.0, 1024))
    assert uri == "a.jpg#yaw=123.457&pitch=-12.5&fov=90&size=1024"


def test_large_panoramas_do_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((1024, 2048, 3), np.uint8)
    stripes[:, ::2] = 255
    sphere(tmp_path / "data" / "0.png", stripes)
    rows = frozen(tmp_path, {"panorama": f"{tmp_path}/data/", "yaw": [0], "size": 32})
    [content] = read_parts(parts_of(rows), LIMITS)
    assert np.abs(pixels_of(content).astype(int) - 127).max() < 30


@pytest.mark.parametrize(
    "capture",
    [
        Capture(47.5, -8.25, datetime(2024, 5, 6, 7, 8, 9), 30.0),
        Capture(None, None, None, 30.0),
    ],
)
def test_views_say_where_they_look(tmp_path: Path, capture: Capture) -> None:
    sphere(tmp_path / "data" / "0.jpg", room(), capture)
    source = {"panorama": f"{tmp_path}/data/", "yaw": [0, 90, 350], "size": 32, "exif": True}
    rows = frozen(tmp_path, source)
    assert set(rows.column_names) >= {"compass", "latitude", "longitude", "captured_at"}
    found = read_parts(parts_of(rows), LIMITS, raw_bytes=4000)  # room for one that is raw
    assert [Image.open(io.BytesIO(data)).format for data in found if isinstance(data, bytes)] == [
        "TIFF",
        "PNG",
        "PNG",
    ]
    table = pa.table({
        "data": pa.array(found, pa.large_binary()),
        "error": pa.nulls(3, pa.string()),
        "message": pa.nulls(3, pa.string()),
    })  # fmt: skip
    told = decode(table, max_pixels=10**6, long_side=None, budget_bytes=10**6, exif=True)
    assert told["exif:compass"].to_pylist() == pytest.approx([30, 120, 20])
    assert told["exif:latitude"].to_pylist() == [capture.latitude] * 3
    assert told["exif:longitude"].to_pylist() == [capture.longitude] * 3
    assert told["exif:captured_at"].to_pylist() == [capture.captured_at] * 3


def test_the_heading_of_a_photo_sphere_counts(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description GPano:PoseHeadingDegrees="275.5"/></x:xmpmeta>'
    sphere(tmp_path / "data" / "0.jpg", room(), xmp=xmp)
    rows = frozen(tmp_path, {"panorama": f"{tmp_path}/data/", "yaw": [90], "size": 32})
    [content] = read_parts(parts_of(rows), LIMITS)
    assert isinstance(content, bytes)
    gps = Image.open(io.BytesIO(content)).getexif().get_ifd(ExifTags.IFD.GPSInfo)
    assert float(gps[ExifTags.GPS.GPSImgDirection]) == pytest.approx(5.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"yaw": []},
        {"yaw": [math.inf]},
        {"yaw": [math.nan]},
        {"pitch": 91},
        {"fov": 0},
        {"size": 8},
        {"panorama": {"video": "a.mp4"}},
    ],
)
def test_views_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"validation error|must be a source of photographs"):
        parse_source({"panorama": "data/", **wrong})


def test_a_job_file_names_the_key() -> None:
    from segbatch.config.job import load_job

    job = {"kind": "segment", "images": {"panorama": "data/", "fov": 200}, "model": "m"}
    with pytest.raises(JobFileError, match=r"images\.fov|fov"):
        load_job({**job, "output": "runs/a"})
