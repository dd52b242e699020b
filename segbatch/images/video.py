"""Videos: whatever PyAV opens → RGB frames as a viewer sees them, from any storage.

A video is read by ranges as it is decoded, so that its length costs no memory. Files that are only
lists of other files (playlists) find none of them: what is opened is the file that was named.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from av.buffer import Buffer
from av.video.stream import VideoStream

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.images.listing import local_copy, reading
from segbatch.storage.uris import shown

if TYPE_CHECKING:
    from av.container import InputContainer

_READ_BYTES = 1 << 20  # at a time: each is a request to object storage

# What a header may say too much without the file being cut off: the last frame's duration is a
# guess in many of them.
_TOLERANCE_S = 1.0
# Formats whose header says how long the video is; of the others, FFmpeg works it out from the
# file's size, and one that was cut off is as long as it is.
_DECLARING = ("mov", "matroska")


@contextmanager
def opened(uri: str) -> Iterator[InputContainer]:
    """The video at ``uri``, to be read from its beginning.

    Raises ``SourceError`` if it is not there, is no video, or has no picture in it, and
    ``Incomplete`` if the storage does not answer, also while it is read.
    """
    with reading(uri), tempfile.TemporaryDirectory(prefix="segbatch-") as scratch:
        # Many a web server gives no parts of a file.
        is_http = storage.scheme_of(uri) in storage.HTTP_SCHEMES
        filesystem, path = storage.arrow_filesystem(local_copy(uri, scratch) if is_http else uri)
        with filesystem.open_input_file(path) as file:
            try:
                container = av.open(
                    file, options={"protocol_whitelist": "none"}, buffer_size=_READ_BYTES
                )
            except av.FFmpegError as error:
                raise SourceError(f"{shown(uri)}: no video: {error.strerror}") from error
            with container:
                if container.streams.best("video") is None:
                    raise SourceError(f"{shown(uri)}: there is no picture in it, only sound")
                yield container


def picture_of(container: InputContainer) -> VideoStream:
    """The stream of a video that holds its picture, not one of a cover."""
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)  # or it would not have been opened
    return stream


def upright(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """The pixels of a frame as a player shows them: ``(height, width, 3)`` uint8 RGB, contiguous,
    turned and mirrored as the video's display matrix says (by quarters; other angles are ignored).
    """
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if isinstance(matrix, Buffer):
        # x' = a·x + c·y, y' = b·x + d·y
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
        if abs(b) > abs(a):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


def is_cut_off(container: InputContainer, end_s: float) -> bool:
    """Whether a video that was read to its end, at ``end_s``, is shorter than its header says."""
    declared = container.duration
    if declared is None or not container.format.name.startswith(_DECLARING):
        return False
    whole_s = (declared + (container.start_time or 0)) / av.time_base
    return end_s < whole_s - _TOLERANCE_S
