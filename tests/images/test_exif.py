"""What photographs say of where, when and in which direction they were taken."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

from segbatch.images.decode import decode_image
from segbatch.images.exif import Capture, capture_of, exif_bytes
from segbatch.images.faults import Undecodable

GPS, BASE = ExifTags.GPS, ExifTags.Base
NORTH_EAST: dict[int, Any] = {GPS.GPSLatitudeRef: "N", GPS.GPSLongitudeRef: "E"}
BERN = ((46.0, 57.0, 0.0), (7.0, 27.0, 0.0))
NOTHING = TiffImagePlugin.IFDRational(1, 0)


def told(gps: dict[int, Any], times: dict[int, Any] | None = None, format: str = "JPEG") -> Capture:
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = gps
    exif[ExifTags.IFD.Exif] = times or {}
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, format, exif=exif.tobytes())
    return capture_of(Image.open(io.BytesIO(sink.getvalue())))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_degrees_minutes_and_seconds_are_one_number(format: str) -> None:
    gps = {
        GPS.GPSLatitude: (47.0, 22.0, 30.0),
        GPS.GPSLatitudeRef: "S",
        GPS.GPSLongitude: (8.0, 32.0, 24.0),
        GPS.GPSLongitudeRef: "E",
        GPS.GPSImgDirection: 361.5,
    }
    found = told(gps, {BASE.DateTimeOriginal: "2024:05:06 07:08:09"}, format)
    assert found.latitude == pytest.approx(-47.375)
    assert found.longitude == pytest.approx(8.54)
    assert found.captured_at == datetime(2024, 5, 6, 7, 8, 9)
    assert found.compass == pytest.approx(1.5)


@pytest.mark.parametrize(
    "gps",
    [
        {GPS.GPSLatitude: (47.0, 0.0, 0.0), GPS.GPSLatitudeRef: "N"},  # no longitude
        {**NORTH_EAST, GPS.GPSLatitude: (97.0, 0.0, 0.0), GPS.GPSLongitude: (8.0, 0.0, 0.0)},
        {**NORTH_EAST, GPS.GPSLatitude: (NOTHING, 0.0, 0.0), GPS.GPSLongitude: (8.0, 0.0, 0.0)},
        {**NORTH_EAST, GPS.GPSLatitude: (47.0,), GPS.GPSLongitude: (190.0,)},
        {GPS.GPSImgDirection: NOTHING},
        {GPS.GPSLatitude: BERN[0], GPS.GPSLongitude: BERN[1]},  # or Cape Verde, or elsewhere
        {GPS.GPSLatitude: BERN[0], GPS.GPSLongitude: BERN[1], GPS.GPSLatitudeRef: "N"},
        {**NORTH_EAST, GPS.GPSLatitude: BERN[0], GPS.GPSLongitude: BERN[1], GPS.GPSLatitudeRef: ""},
        {**NORTH_EAST, GPS.GPSLatitude: (0.0,) * 3, GPS.GPSLongitude: (0.0,) * 3},  # no fix
    ],
)
def test_nonsense_is_nothing(gps: dict[int, Any]) -> None:
    assert told(gps, {BASE.DateTimeOriginal: "0000:00:00 00:00:00"}) == Capture()


@pytest.mark.parametrize(("north", "east"), [("N\0", " e"), (b"N", b"E"), ("North", "East")])
def test_letters_are_read_as_cameras_write_them(north: Any, east: Any) -> None:
    gps = {GPS.GPSLatitude: BERN[0], GPS.GPSLongitude: BERN[1]}
    found = told(gps | {GPS.GPSLatitudeRef: north, GPS.GPSLongitudeRef: east})
    assert found.latitude == pytest.approx(46.95)
    assert found.longitude == pytest.approx(7.45)


@given(
    st.floats(-90, 90), st.floats(-180, 180), st.floats(0, 359.9),
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
)  # fmt: skip
def test_what_is_written_is_read(
    latitude: float, longitude: float, compass: float, time: datetime
) -> None:
    assume(max(abs(latitude), abs(longitude)) > 1e-6)  # else it is no place
    given = Capture(latitude, longitude, time.replace(microsecond=0), compass)
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=exif_bytes(given))
    found = capture_of(Image.open(io.BytesIO(sink.getvalue())))
    assert found.captured_at == given.captured_at
    numbers = [found.latitude, found.longitude, found.compass]
    assert numbers == pytest.approx([latitude, longitude, compass], abs=1e-5)


SPHERE = '<rdf:Description GPano:PoseHeadingDegrees="275.5"/>'


@pytest.mark.parametrize(
    ("kind", "value", "compass"),
    [
        (TiffTags.BYTE, SPHERE.encode(), 275.5),
        (TiffTags.UNDEFINED, SPHERE.encode(), 275.5),
        (TiffTags.ASCII, SPHERE, 275.5),
        (TiffTags.SHORT, 7, None),
        (TiffTags.DOUBLE, 0.5, None),
    ],
)
def test_the_xmp_of_a_tiff_may_have_any_type(kind: int, value: Any, compass: float | None) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700], tags[700] = kind, value
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "TIFF", tiffinfo=tags)
    decoded = decode_image(sink.getvalue(), max_pixels=10_000, long_side=None, exif=True)
    assert not isinstance(decoded, Undecodable)
    assert decoded.capture == Capture(compass=compass)


@given(st.binary(max_size=200))
def test_damaged_exif_raises_nothing(data: bytes) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=b"Exif\0\0II*\0" + data)
    decoded = decode_image(sink.getvalue(), max_pixels=10_000, long_side=None, exif=True)
    assert not isinstance(decoded, Undecodable)
    assert isinstance(decoded.capture, Capture)
