"""Stage 1, fetch: the bytes at the URIs of images, or the reason why they could not be read.

Storage retries and enforces the limits (:func:`segbatch.storage.read_many`), so a result of this
stage is final for the current pass.
"""

from __future__ import annotations

import pyarrow as pa

from segbatch import storage
from segbatch.images.parts import read_parts
from segbatch.images.place import PLACE, parts_of

RAW_BYTES = 256 << 20  # of the frames of a block that are not compressed on their way to decoding


def fetch(table: pa.Table, limits: storage.ReadLimits) -> pa.Table:
    """``table`` with the content of each row's ``uri``, or why it could not be read.

    Needs a column ``uri`` (string); the places of parts are used up, the other columns pass
    through. Adds

    - ``data``, large_binary: the object's bytes, or a frame as an image file; null if it could not
      be read
    - ``error``, string: ``not_found``, ``forbidden``, ``timeout``, ``unavailable`` or
      ``too_large``; ``credentials`` where the storage refuses us and not this object, so that the
      run should stop; ``undecodable`` or ``truncated`` for a frame that its video does not give;
      null if it was read
    - ``message``, string: one line; null if it was read

    Raises nothing for what storage answers. Holds the bytes of all rows, briefly twice: at worst
    ``2 × rows × limits.max_bytes``, and ``RAW_BYTES`` of frames.
    """
    contents = read_parts(parts_of(table), limits, RAW_BYTES)
    if PLACE.name in table.column_names:
        table = table.drop_columns(PLACE.name)
    data = [content if isinstance(content, bytes) else None for content in contents]
    reasons = [None if isinstance(content, bytes) else content for content in contents]
    errors = [reason and reason.kind for reason in reasons]
    messages = [reason and reason.message for reason in reasons]
    return (
        table.append_column("data", pa.array(data, pa.large_binary()))
        .append_column("error", pa.array(errors, pa.string()))
        .append_column("message", pa.array(messages, pa.string()))
    )
