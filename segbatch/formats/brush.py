"""Masks of Label Studio's brush: run-length encoded RGBA pixels, row by row.

A stream of bits: the number of values (32 bits), the bits of a value less 1 (5), the bits of each
of four kinds of lengths less 1 (4 × 4); then records. A record is a bit that is set if one value
repeats, the kind of its length (2), the length less 1, and the value or values. A pixel has four
values; it belongs to the mask if its alpha is not 0, as Label Studio shows it.

The codec is ours, because ``label-studio-sdk`` brings 27 packages (a code generator, a formatter,
NLTK, a client of the whole API), and encodes bit by bit in Python. Tests compare the two.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, which Label Studio calls,
and ``label_studio_sdk/converter/brush.py`` of 2.1.2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (height, width), true inside

CHANNELS = 4  # RGBA; all four are written, as Label Studio does
WORD_BITS = 8
LENGTH_BITS = np.array([3, 4, 8, 16])  # of the four kinds of lengths that Label Studio writes
LONGEST = 1 << 16
MAX_RECORD = 1 + 2 + 16 + WORD_BITS  # bits
CHUNK = 1 << 16  # records that are turned into bits at once


def encode_brush(inside: Mask) -> bytes:
    """The RLE of a mask of at least one pixel; Label Studio's JSON holds it as a list of bytes."""
    flat = inside.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    num_pieces = -(-lengths // LONGEST)
    pieces = np.full(num_pieces.sum(), LONGEST)
    pieces[np.cumsum(num_pieces) - 1] = lengths - (num_pieces - 1) * LONGEST
    values = np.repeat(flat[starts], num_pieces) * 255

    stream = [
        _bits_of(flat.size * CHANNELS, 32),
        _bits_of(WORD_BITS - 1, 5),
        *(_bits_of(bits - 1, 4) for bits in LENGTH_BITS),
    ]
    for start in range(0, len(pieces), CHUNK):
        chunk = slice(start, start + CHUNK)
        stream.append(_records(pieces[chunk], values[chunk]))
    return np.packbits(np.concatenate(stream)).tobytes()


def _bits_of(value: int, num_bits: int) -> npt.NDArray[np.uint8]:
    return np.array([value >> shift & 1 for shift in reversed(range(num_bits))], np.uint8)


def _records(lengths: npt.NDArray[np.int_], values: npt.NDArray[np.int_]) -> npt.NDArray[np.uint8]:
    """The bits of a record for each length, 1 to 65,536, and its repeated value."""
    kinds = np.searchsorted(1 << LENGTH_BITS, lengths)
    length_bits = LENGTH_BITS[kinds]
    codes = (((4 | kinds) << length_bits | lengths - 1) << WORD_BITS) | values
    shifts = (3 + length_bits + WORD_BITS)[:, None] - 1 - np.arange(MAX_RECORD)
    bits = codes[:, None] >> np.maximum(shifts, 0) & 1
    stream: npt.NDArray[np.uint8] = bits[shifts >= 0].astype(np.uint8)
    return stream


def decode_brush(rle: bytes, width: int, height: int) -> Mask:
    """The mask of an image of that size. Raises ``ValueError`` with the reason if ``rle`` is not
    one of such an image.
    """
    stream = _Bits(rle)
    num_values, word_bits = stream.read(32), stream.read(5) + 1
    length_bits = [stream.read(4) + 1 for _ in range(4)]
    if num_values != width * height * CHANNELS:
        raise ValueError(
            f"has RLE of {num_values:,} values: an image of {width}×{height} has"
            f" {width * height * CHANNELS:,}"
        )
    inside = np.zeros(width * height, np.bool_)
    at = 0
    while at < num_values:
        repeats = stream.read(1)
        end = at + 1 + stream.read(length_bits[stream.read(2)])
        if end > num_values:
            raise ValueError("has RLE with more values than the image")
        # Of the values from `at` to `end`, every fourth is the alpha of a pixel.
        if repeats:
            inside[at // CHANNELS : end // CHANNELS] = stream.read(word_bits) > 0
        else:
            alphas = stream.are_positive(end - at, word_bits)[(3 - at) % CHANNELS :: CHANNELS]
            inside[at // CHANNELS : at // CHANNELS + len(alphas)] = alphas
        at = end
    return inside.reshape(height, width)


class _Bits:
    """Reads numbers from the bits of ``data``, highest first."""

    def __init__(self, data: bytes) -> None:
        self._data = data + bytes(8)
        self._size = 8 * len(data)
        self._at = 0

    def read(self, num_bits: int) -> int:
        """The number in the next bits, 32 at most."""
        first, offset = divmod(self._advance(num_bits), 8)
        window = int.from_bytes(self._data[first : first + 8], "big")
        return window >> (64 - offset - num_bits) & ((1 << num_bits) - 1)

    def are_positive(self, count: int, num_bits: int) -> Mask:
        """Whether each of the next numbers is more than 0."""
        first, offset = divmod(self._advance(count * num_bits), 8)
        last = (self._at + 7) // 8
        bits = np.unpackbits(np.frombuffer(self._data[first:last], np.uint8))
        numbers = bits[offset : offset + count * num_bits].reshape(count, num_bits)
        return np.asarray(numbers.any(axis=1))

    def _advance(self, num_bits: int) -> int:
        """The position before the next bits."""
        before, self._at = self._at, self._at + num_bits
        if self._at > self._size:
            raise ValueError("has RLE that ends too early")
        return before
