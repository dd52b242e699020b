"""Fetch: URIs → bytes, or the reason why not. The first stage of a run, on Arrow tables.

Retries, limits and the number of requests at a time are the storage's (``storage.read_many``);
what comes out of here is final for this pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from segbatch import storage
from segbatch.images.faults import Undecodable
from segbatch.images.video import is_frame, read_frames


def read_images(
    uris: Sequence[str], limits: storage.ReadLimits
) -> list[bytes | Undecodable | storage.Unreadable]:
    """The bytes at ``uris`` in their order, those of frames as PNG, or why they are not there."""
    frames = [row for row, uri in enumerate(uris) if is_frame(uri)]
    files = [uri for uri in uris if not is_frame(uri)]
    contents: list[bytes | Undecodable | storage.Unreadable] = []
    contents += storage.read_many(files, limits)
    for row, content in zip(frames, read_frames([uris[row] for row in frames]), strict=True):
        contents.insert(row, content)
    return contents


def fetch(table: pa.Table, limits: storage.ReadLimits) -> pa.Table:
    """``table`` with the content of each row's ``uri``, or why it could not be read.

    Needs a column ``uri`` (string); the others pass through. Adds

    - ``data``, large_binary: the object's bytes, or a frame's as PNG; null if it could not be read
    - ``error``, string: ``not_found``, ``forbidden``, ``timeout``, ``unavailable`` or
      ``too_large``; ``credentials`` where the storage refuses us and not this object, so that the
      run should stop; ``undecodable`` or ``truncated`` for a frame that its video does not give;
      null if it was read
    - ``message``, string: one line; null if it was read

    Raises nothing for what storage answers. Holds the bytes of all rows, twice for a moment: at
    worst ``2 × rows × limits.max_bytes``.
    """
    contents = read_images(table["uri"].to_pylist(), limits)
    data = [content if isinstance(content, bytes) else None for content in contents]
    reasons = [None if isinstance(content, bytes) else content for content in contents]
    errors = [reason and reason.kind for reason in reasons]
    messages = [reason and reason.message for reason in reasons]
    return (
        table.append_column("data", pa.array(data, pa.large_binary()))
        .append_column("error", pa.array(errors, pa.string()))
        .append_column("message", pa.array(messages, pa.string()))
    )
