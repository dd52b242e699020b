"""Encodes label maps as palette PNGs and decodes them; the only codec of masks.

A label map is ``(height, width)`` uint8 of class ids, 255 = ignore. Its mask is a PNG whose
palette index is the class id and whose colours are those of the classes, the convention of
Pascal VOC: every viewer shows it, and Pillow returns the ids.

The PNG chunks are written here because no library writes them as fast: label maps are flat, so
subtracting the row above (filter ``Up``) leaves almost only zeros, and deflate needs to search for
runs only (``Z_RLE``). ``benchmarks/masks.py`` has the figures.

Source: Portable Network Graphics (PNG) Specification, third edition, W3C 2025.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin
from zlib_ng import zlib_ng

from segbatch.errors import SourceError

# Limit of decode_mask: four times the default limit for images, and still no decompression bomb.
# Pillow's own limit is below the largest images that a job may allow.
MAX_PIXELS = 800_000_000

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE_COLOR = 3
FILTER_UP = 2


def encode_mask(label_map: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """The palette PNG of a label map: 4 bits a pixel where every id is below 16, else 8.

    ``label_map`` is ``(height, width)`` uint8 in any memory layout, ``palette`` ``(256, 3)``
    uint8 (:attr:`Classes.palette <segbatch.masks.classes.Classes.palette>`). The same input gives
    the same bytes. Raises ``ValueError`` for another shape or type, or for no pixels.
    """
    if label_map.ndim != 2 or label_map.dtype != np.uint8 or not label_map.size:
        raise ValueError(f"a label map is HW uint8, not {label_map.shape} {label_map.dtype}")
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"a palette is (256, 3) uint8, not {palette.shape} {palette.dtype}")
    height, width = label_map.shape
    bits = 4 if label_map.max() < 16 else 8
    rows = _pack_nibbles(label_map) if bits == 4 else label_map

    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the filter requires

    deflate = zlib_ng.compressobj(level=6, strategy=zlib_ng.Z_RLE)
    return b"".join(
        [
            SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, PALETTE_COLOR, 0, 0, 0)),
            _chunk(b"PLTE", palette[: 1 << bits].tobytes()),
            _chunk(b"IDAT", deflate.compress(filtered) + deflate.flush()),
            _chunk(b"IEND", b""),
        ]
    )


def decode_mask(data: bytes) -> npt.NDArray[np.uint8]:
    """The label map, ``(height, width)`` uint8, of a palette PNG of 1, 2, 4 or 8 bits.

    Raises :class:`~segbatch.errors.SourceError` for data that is no PNG, is damaged, or has no
    palette: the values of a grey or RGB image are colours, not class ids.
    """
    try:
        # Not Image.open, which refuses the largest masks or warns about them.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            if image.mode != "P":
                raise SourceError(
                    f"the mask is a PNG of mode {image.mode}: it needs a palette whose index is"
                    " the class id"
                )
            if image.width * image.height > MAX_PIXELS:
                raise SourceError(
                    f"the mask claims {image.width}×{image.height} pixels: at most {MAX_PIXELS:,}"
                )
            return np.array(image)
    except SourceError:
        raise
    except Exception as error:  # Pillow also raises IndexError and OverflowError on damaged data
        raise SourceError(f"the mask is not a readable PNG: {error}") from error


def _pack_nibbles(label_map: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two ids a byte, the left one in the high half; an odd row is padded with zero."""
    width = label_map.shape[1]
    if width % 2:
        label_map = np.pad(label_map, ((0, 0), (0, 1)))
    pairs = np.ascontiguousarray(label_map).view("<u2")  # left id in the low byte
    return (pairs << 4 | pairs >> 8).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib_ng.crc32(body))
