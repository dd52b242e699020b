"""Panoramas as sources of images: a row for each perspective view of an equirectangular picture.

A view's URI is that of its panorama followed by ``#yaw=90&pitch=10&fov=90&size=1024``: the
direction in which it looks, in degrees right of the panorama's middle and up, the angle that it
sees, and its width and height in pixels. The panorama may itself be a part of an object.

The pixels are those of a pinhole camera, sampled bilinearly. A panorama that is much finer than
its views is downscaled first, so that they do not alias.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from segbatch import storage
from segbatch.config.images import Panorama, Source
from segbatch.images import exif
from segbatch.images.decode import Pixels, decode_image
from segbatch.images.faults import Content, Undecodable
from segbatch.images.place import Part

FRAGMENT = r"#yaw=[-.\d]+&pitch=[-.\d]+&fov=[.\d]+&size=\d+"  # at the end of a view's URI
VIEW_COLUMNS = [pa.field(name, pa.float64()) for name in ("yaw", "pitch", "fov")]
_VIEW_URI = re.compile(
    r"(.+)#yaw=(-?\d+(?:\.\d+)?)&pitch=(-?\d+(?:\.\d+)?)&fov=(\d+(?:\.\d+)?)&size=(\d+)", re.S
)
_RATIO_TOLERANCE = 0.01  # of 2:1
_MAX_WIDTH = 32_000  # that OpenCV samples
_OVERSAMPLING = 2  # a finer panorama is downscaled


class View(NamedTuple):
    """One view: degrees, and pixels of a side."""

    yaw: float
    pitch: float
    fov: float
    size: int

    @property
    def focal_length(self) -> float:
        """In pixels."""
        return self.size / 2 / math.tan(math.radians(self.fov) / 2)


def is_view(uri: str) -> bool:
    """Whether ``uri`` is that of a view of a panorama."""
    return _VIEW_URI.fullmatch(uri) is not None


def view_uri(panorama: str, view: View) -> str:
    """The URI of a view of ``panorama``."""
    yaw, pitch, fov = (_plain(angle) for angle in (view.yaw, view.pitch, view.fov))
    return f"{panorama}#yaw={yaw}&pitch={pitch}&fov={fov}&size={view.size}"


def _plain(angle: float) -> str:
    """``angle`` in six digits and without an exponent: ``0.00001``."""
    return f"{Decimal(f'{angle:g}'):f}"


def _split(uri: str) -> tuple[str, View]:
    match = _VIEW_URI.fullmatch(uri)
    assert match is not None
    return match[1], View(float(match[2]), float(match[3]), float(match[4]), int(match[5]))


# ----------------------------------------------------------------------------------- listing views


def expand_panoramas(batch: pa.RecordBatch, source: Panorama) -> Iterator[pa.RecordBatch]:
    """A row for each view of the panoramas in ``batch``, with :data:`VIEW_COLUMNS`."""
    views = [View(float(yaw), source.pitch, source.fov, source.size) for yaw in source.yaw]
    rows = np.repeat(np.arange(batch.num_rows), len(views))
    repeated = batch.take(pa.array(rows))
    columns = dict(zip(batch.schema.names, repeated.columns, strict=True))
    uris = batch.column("uri").to_pylist()
    columns["uri"] = pa.array([view_uri(uri, view) for uri in uris for view in views])
    for index, field in enumerate(VIEW_COLUMNS):
        values = [view[index] for view in views] * batch.num_rows
        columns[field.name] = pa.array(values, field.type)
    yield pa.RecordBatch.from_pydict(columns)


def views_each(sources: Sequence[Source]) -> int:
    """The number of views of each panorama; 1 if the images of ``sources`` are others."""
    return min(len(source.yaw) if isinstance(source, Panorama) else 1 for source in sources)


# ----------------------------------------------------------------------------------- reading views


def read_views(
    parts: Sequence[Part],
    limits: storage.ReadLimits,
    raw_bytes: int,
    read: Callable[[Sequence[Part], storage.ReadLimits], list[Content]],
) -> list[Content]:
    """An image file of each view, or why there is none, in the order of ``parts``.

    ``read`` gives the panoramas' own files; each is fetched and decoded once for its views that
    follow each other. The views are TIFF files while ``raw_bytes`` of them are not compressed, then
    PNG; they say where, when and in which direction they were taken, if the panorama does.
    """
    split = [(Part(uri, part.place), view) for part in parts for uri, view in [_split(part.uri)]]
    groups = [(part, [view for _, view in group]) for part, group in groupby(split, key=_panorama)]
    contents: list[Content] = []
    for start in range(0, len(groups), limits.concurrency):  # so many panoramas at once in memory
        some = groups[start : start + limits.concurrency]
        for (_, views), data in zip(some, read([part for part, _ in some], limits), strict=True):
            if not isinstance(data, bytes):
                contents += [data] * len(views)
                continue
            for content in _views_of(data, views, raw_bytes, limits.max_pixels):
                raw_bytes -= len(content) if isinstance(content, bytes) else 0
                contents.append(content)
    return contents


def _panorama(pair: tuple[Part, View]) -> Part:
    return pair[0]


def _views_of(
    data: bytes, views: Sequence[View], raw_bytes: int, max_pixels: int
) -> Iterator[Content]:
    finest = max(view.focal_length for view in views)
    width = min(_MAX_WIDTH, math.ceil(_OVERSAMPLING * 2 * math.pi * finest))
    image = decode_image(data, max_pixels=max_pixels, long_side=width, exif=True)
    if isinstance(image, Undecodable):
        yield from [image] * len(views)
        return
    capture = image.capture or exif.Capture()
    if abs(image.width - 2 * image.height) > _RATIO_TOLERANCE * image.width:
        message = f"{image.width}×{image.height}: no panorama, which is twice as wide as high"
        yield from [Undecodable("unsupported", message)] * len(views)
        return
    for view in views:
        pixels = sample_view(image.pixels, view)
        compass = capture.compass
        if compass is not None:
            compass = (compass + view.yaw) % 360
        raw_bytes -= pixels.nbytes
        sink = io.BytesIO()
        format_ = {"format": "TIFF"} if raw_bytes >= 0 else {"format": "PNG", "compress_level": 1}
        tags = exif.exif_bytes(capture._replace(compass=compass))
        Image.fromarray(pixels).save(sink, exif=tags, **format_)
        yield sink.getvalue()


def sample_view(panorama: Pixels, view: View) -> npt.NDArray[np.uint8]:
    """The pixels of a view: ``(size, size, 3)`` uint8 RGB.

    ``panorama``: ``(height, width, 3)`` uint8 RGB, equirectangular; its middle is yaw 0, pitch 0.
    """
    height, width = panorama.shape[:2]
    offsets = np.arange(view.size) + 0.5 - view.size / 2
    x, y = np.meshgrid(offsets, offsets)
    z = np.full_like(x, view.focal_length)
    pitch = math.radians(view.pitch)
    y, z = y * math.cos(pitch) - z * math.sin(pitch), y * math.sin(pitch) + z * math.cos(pitch)
    longitude = np.arctan2(x, z) + math.radians(view.yaw)
    latitude = np.arctan2(-y, np.hypot(x, z))
    column = (longitude / (2 * math.pi) + 0.5) * width - 0.5
    row = (0.5 - latitude / math.pi) * height - 0.5
    sampled = cv2.remap(
        panorama,
        np.mod(column, width).astype(np.float32),
        np.clip(row, 0, height - 1).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    return np.asarray(sampled, np.uint8)
