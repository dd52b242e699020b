"""Where, when and in which direction a photograph was taken, as its EXIF or XMP says.

``latitude`` and ``longitude`` are in degrees of WGS 84, north and east positive; ``captured_at`` is
the camera's own local time; ``compass`` is the direction in which it looked, 0 to 360 degrees
clockwise from north. All are null where the file does not say, or says nonsense: without its letter
(N, S, E, W) a number of degrees is no place, and 0°, 0° is that of a camera that has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import ExifTags, Image

from segbatch.images.faults import MAX_EXIF_BYTES

FIELDS = [
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("captured_at", pa.timestamp("us")),
    pa.field("compass", pa.float64()),
]
COMPASS = FIELDS[3]
# Google's Photo Sphere XMP: the direction of the middle of a panorama.
_POSE_HEADING = re.compile(rb"GPano:PoseHeadingDegrees\s*(?:=\s*[\"']|>)\s*([-+.\d]+)")


class Capture(NamedTuple):
    """What is known of one photograph; the fields are :data:`FIELDS`."""

    latitude: float | None = None
    longitude: float | None = None
    captured_at: datetime | None = None
    compass: float | None = None


def capture_of(image: Image.Image) -> Capture:
    """What an opened image says of its capture. Raises nothing for damaged EXIF."""
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return Capture()
    try:
        exif = image.getexif()
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        times = exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # Pillow raises anything for damaged EXIF
        return Capture(compass=_pose_heading(image))
    latitude = _degrees(gps, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "NS", 90)
    longitude = _degrees(gps, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "EW", 180)
    is_known = None not in (latitude, longitude) and (latitude, longitude) != (0, 0)
    compass = _number(gps.get(ExifTags.GPS.GPSImgDirection))
    return Capture(
        latitude if is_known else None,
        longitude if is_known else None,
        _time(times.get(ExifTags.Base.DateTimeOriginal)),
        compass % 360 if compass is not None else _pose_heading(image),
    )


def columns(captures: Sequence[Capture | None]) -> dict[str, pa.Array]:
    """A column for each of :data:`FIELDS`; null where there is no capture."""
    rows = [capture or Capture() for capture in captures]
    return {
        field.name: pa.array([row[index] for row in rows], field.type)
        for index, field in enumerate(FIELDS)
    }


def exif_bytes(capture: Capture) -> bytes:
    """The EXIF that says ``capture``, for a picture that is made of a photograph."""
    exif = Image.Exif()
    gps: dict[int, Any] = {}
    if capture.latitude is not None and capture.longitude is not None:
        gps[ExifTags.GPS.GPSLatitudeRef] = "S" if capture.latitude < 0 else "N"
        gps[ExifTags.GPS.GPSLatitude] = (abs(capture.latitude), 0.0, 0.0)
        gps[ExifTags.GPS.GPSLongitudeRef] = "W" if capture.longitude < 0 else "E"
        gps[ExifTags.GPS.GPSLongitude] = (abs(capture.longitude), 0.0, 0.0)
    if capture.compass is not None:
        gps[ExifTags.GPS.GPSImgDirection] = capture.compass
    if gps:
        exif[ExifTags.IFD.GPSInfo] = gps
    if capture.captured_at is not None:
        text = f"{capture.captured_at:%Y:%m:%d %H:%M:%S}"
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: text}
    return exif.tobytes()


def _degrees(
    gps: dict[int, Any], tag: int, reference: int, letters: str, most: int
) -> float | None:
    """Degrees, minutes and seconds as one number, positive for the first of ``letters``."""
    try:
        parts = [float(part) for part in gps[tag]]
        letter = gps[reference]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    letter = letter.decode(errors="replace") if isinstance(letter, bytes) else str(letter)
    letter = letter.strip("\0 ")[:1].upper()
    degrees = math.fsum(part / 60**index for index, part in enumerate(parts[:3]))
    if not letter or letter not in letters or not 0 <= degrees <= most:  # also for NaN
        return None
    return degrees if letter == letters[0] else -degrees


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _pose_heading(image: Image.Image) -> float | None:
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode(errors="replace")
    # In a TIFF the tag may have any type.
    found = _POSE_HEADING.search(xmp) if isinstance(xmp, bytes) else None
    heading = _number(found[1].decode()) if found else None
    return None if heading is None else heading % 360
