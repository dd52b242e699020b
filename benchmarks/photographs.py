"""Photographs to measure with: generated ones that cost a decoder what real ones do, or a folder.

A camera leaves noise in flat surfaces, which is what the bytes of a JPEG are mostly spent on; with
this much of it they come to those of the photographs of ``swiss-facades``, 0.22 bytes a pixel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS

DISTINCT = 16  # the others are copies: nothing caches by content
NOISE = 7.0
QUALITY = 85


def side_of(megapixels: float) -> int:
    """Side in pixels of a square photograph; 0.3 megapixels are the usual 512."""
    return 512 if megapixels == 0.3 else round((megapixels * 1e6) ** 0.5 / 8) * 8


def photograph(side: int, seed: int) -> npt.NDArray[np.uint8]:
    """Smooth colours with the noise of a camera: ``(side, side, 3)`` uint8 RGB."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (12, 12, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC))
    noise = generator.standard_normal((side, side, 1), np.float32) * NOISE
    pixels: npt.NDArray[np.uint8] = (smooth + noise).clip(0, 255).astype(np.uint8)
    return pixels


def jpegs(side: int, number: int) -> Iterator[bytes]:
    """``number`` files, of which ``DISTINCT`` differ."""
    distinct = []
    for seed in range(min(number, DISTINCT)):
        sink = io.BytesIO()
        Image.fromarray(photograph(side, seed)).save(sink, "JPEG", quality=QUALITY)
        distinct.append(sink.getvalue())
    for index in range(number):
        yield distinct[index % len(distinct)]


def put(target: str, side: int, number: int) -> list[str]:
    """Write generated photographs below ``target``; their URIs."""
    return _written(target, ((f"{n:06d}.jpg", data) for n, data in enumerate(jpegs(side, number))))


def copied(source: str, target: str, number: int) -> list[str]:
    """Copy the first ``number`` images of a folder below ``target``; their URIs there."""
    files = [
        file.uri
        for file in storage.list_files(source)
        if Path(file.uri).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
    ]
    return _written(
        target, ((storage.name_of(uri), storage.read_bytes(uri)) for uri in files[:number])
    )


def _written(target: str, files: Iterator[tuple[str, bytes]]) -> list[str]:
    uris = []
    for name, data in files:
        uris.append(storage.join(target, name))
        storage.write_bytes(uris[-1], data)
    return uris
