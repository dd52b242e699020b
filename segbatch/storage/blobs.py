"""Blobs: columns of large binaries, made of bytes and seen as bytes without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Blob = npt.NDArray[np.uint8]


def binary_column(content: Blob, ends: Sequence[int]) -> pa.Array:
    """The large_binary column over ``content``, without copying it; what is empty is null.

    ``ends`` begins with 0 and has the end of each row's bytes.
    """
    offsets = np.array(ends, np.int64)
    valid = pa.array(np.diff(offsets) > 0)
    buffers = [valid.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(content[: ends[-1]])]
    return pa.Array.from_buffers(pa.large_binary(), len(valid), buffers)


def binary_views(column: pa.ChunkedArray) -> list[Blob | None]:
    """The bytes of each row of a binary or large_binary column; ``None`` where it is null.

    Views of the column's memory, read only. A scalar of it, ``column[row]``, would be a copy.
    """
    offset_type = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    views: list[Blob | None] = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, offset_type)[chunk.offset :]
        content = np.frombuffer(data or b"", np.uint8)
        content.flags.writeable = False
        views += [
            content[ends[row] : ends[row + 1]] if valid else None
            for row, valid in enumerate(chunk.is_valid().to_pylist())
        ]
    return views
