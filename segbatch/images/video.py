"""Videos: whatever PyAV opens → RGB frames as a viewer sees them, from any storage.

A video is read by ranges as it is decoded, so that its length costs no memory. Files that are only
lists of other files (playlists) find none of them: what is opened is the file that was named.
"""

from __future__ import annotations

import io
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from av.buffer import Buffer
from av.video.stream import VideoStream
from PIL import Image

from segbatch import storage
from segbatch.config.images import is_photograph_name
from segbatch.errors import Incomplete, SourceError
from segbatch.images.faults import Undecodable
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


# Frames of videos as rows of a run: listed by their times, and read a range of one video at once.
#
# A row's URI is that of its video and ``#t=12.480``, its time in seconds (W3C Media Fragments).
# That alone makes it a frame: whatever else is listed is a file, called as it may be. What reading
# a frame gives is a PNG, so that it goes the way of every image from there on.


FRAME_COLUMNS = [pa.field("frame", pa.int64()), pa.field("time_s", pa.float64())]


_ROWS_PER_BATCH = 65_536


FRAGMENT = r"#t=-?\d+\.\d{3}"  # at the end of a frame's URI


_FRAME = re.compile(rf"(.+){FRAGMENT}", re.S)


_SEEK_BEFORE_S = 0.5  # frames are stored in another order than they are shown in


_MISSING = Undecodable("undecodable", "this frame cannot be decoded")


_BROKEN_OFF = Undecodable("truncated", "the video breaks off before this frame")


def is_frame(uri: str) -> bool:
    """Whether ``uri`` is that of a frame, as :func:`frame_uri` writes it.

    Not so ``photo.jpg#t=1.000``: a photograph may be called that.
    """
    frame = _FRAME.fullmatch(uri)
    return frame is not None and not is_photograph_name(frame[1])


def frame_uri(video: str, time_s: float) -> str:
    return f"{video}#t={time_s:.3f}"


def expand(batch: pa.RecordBatch, every: float | None) -> Iterator[pa.RecordBatch]:
    """A row for each frame of the videos in ``batch``, with ``frame`` (from 0) and ``time_s``.

    ``every`` takes the first frame of each so many seconds. A video that breaks off has one row
    more, for the frame that would come next; one that cannot be read has one row, for whatever
    would be seen at its beginning, with neither number nor time. In these the run will say why. A
    photograph, by its name, stays what it is. Raises ``Incomplete`` where storage does not answer.
    """
    for row, video in enumerate(batch.column("uri").to_pylist()):
        times: list[float | None] = [None]
        numbers = [0]
        is_photograph = is_photograph_name(video)
        if not is_photograph:
            with suppress(SourceError):
                known_times, end = times_of(video)
                times, numbers = [*known_times], _chosen(known_times, every)
                if end is not None:
                    numbers.append(len(times))
                    times.append(end)
        for start in range(0, len(numbers), _ROWS_PER_BATCH):
            part = numbers[start : start + _ROWS_PER_BATCH]
            chosen = [times[number] for number in part]
            repeated = batch.take(pa.array([row] * len(part)))
            columns = dict(zip(batch.schema.names, repeated.columns, strict=True))
            columns["uri"] = pa.array(
                [video if is_photograph else frame_uri(video, time or 0.0) for time in chosen]
            )
            known = [None if time is None else n for n, time in zip(part, chosen, strict=True)]
            columns["frame"] = pa.array(known, pa.int64())
            columns["time_s"] = pa.array(chosen, pa.float64())
            yield pa.RecordBatch.from_pydict(columns)


def _chosen(times: Sequence[float], every: float | None) -> list[int]:
    """Numbers of the frames that are taken."""
    if every is None:
        return list(range(len(times)))
    taken: dict[int, int] = {}
    for number, time in enumerate(times):
        taken.setdefault(int(time / every), number)
    return list(taken.values())


def times_of(uri: str) -> tuple[list[float], float | None]:
    """When each frame of a video is shown, in seconds, in the order in which they are; and where
    it breaks off before the end that it says it has, else ``None``.

    From the packets alone, which takes reading and no decoding, where they say it. Raises as
    :func:`~segbatch.images.video.opened`, and ``SourceError`` for a video without any frame.
    """
    times: list[float | None] = []
    end_s, picture_end_s, is_torn = 0.0, 0.0, False
    with opened(uri) as video:
        picture = picture_of(video)
        try:
            for packet in video.demux():  # of sound too: it may go on after the picture
                start = None if packet.pts is None else float(packet.pts * packet.time_base)
                if start is not None:
                    duration = float((packet.duration or 0) * packet.time_base)
                    end_s = max(end_s, start + duration)
                if packet.stream.index == picture.index and packet.size and not packet.is_discard:
                    times.append(start)
                    picture_end_s = max(picture_end_s, end_s if start is None else start + duration)
        except av.FFmpegError:
            is_torn = True
        is_torn = is_torn or is_cut_off(video, end_s)
    if None in times:
        with opened(uri) as video:
            times = [frame.time for frame, _ in _decoded(video, None)]
    known = sorted(time for time in times if time is not None)
    if not known:
        raise SourceError(f"{shown(uri)}: no frame in it")
    return known, max(picture_end_s, known[-1] + 0.001) if is_torn else None


def read_frames(uris: Sequence[str]) -> list[bytes | Undecodable | storage.Unreadable]:
    """PNG of each frame, or why not, in the order of ``uris``; each video is opened once for all
    that follow each other. Raises nothing for what storage answers.
    """
    contents: list[bytes | Undecodable | storage.Unreadable] = []
    parts = [uri.rpartition("#t=") for uri in uris]
    for video, group in groupby(parts, key=itemgetter(0)):
        wanted = [time for _, _, time in group]
        try:
            found = _found(video, wanted)
            contents += [found.get(time, _MISSING) for time in wanted]
        except (SourceError, Incomplete) as error:
            contents += [_why_none(error)] * len(wanted)
    return contents


def _why_none(error: SourceError | Incomplete) -> Undecodable | storage.Unreadable:
    message = storage.one_line(error)
    if isinstance(error, Incomplete):
        return storage.Unreadable("unavailable", message)
    if isinstance(error.__cause__, FileNotFoundError):
        return storage.Unreadable("not_found", message)
    if isinstance(error.__cause__, PermissionError):
        return storage.Unreadable("forbidden", message)
    return Undecodable("undecodable", message)


def _found(video: str, wanted: Sequence[str]) -> dict[str, bytes | Undecodable]:
    """Those of the frames that can be decoded, by their times; and those behind a video's end."""
    found: dict[str, bytes | Undecodable] = {}
    first, last = min(map(float, wanted)), max(map(float, wanted))
    start = first - _SEEK_BEFORE_S if first > _SEEK_BEFORE_S else None
    while True:
        begins = ends = None
        with opened(video) as container:
            for frame, time in _decoded(container, start):
                begins, ends = (time if begins is None else begins), time
                text = f"{time:.3f}"
                if text in wanted and text not in found and not frame.is_corrupt:
                    found[text] = _as_png(frame)
                if time > last or len(found) == len(set(wanted)):
                    break
            else:
                behind = [time for time in wanted if ends is None or float(time) > ends]
                found |= dict.fromkeys(set(behind) - set(found), _BROKEN_OFF)
        # A seek that led behind the first frame of all that are wanted was no use.
        if start is None or (begins is not None and begins <= first):
            return found
        found, start = {}, None


def _decoded(
    container: av.container.InputContainer, start_s: float | None
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames and their times; packets that cannot be decoded are passed over."""
    picture = picture_of(container)
    picture.codec_context.thread_count = 1  # many videos are read at a time, in tasks of one CPU
    try:
        if start_s is not None and start_s > 0:
            container.seek(round(start_s * av.time_base))
        for packet in container.demux(picture):
            try:
                frames = picture.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                if frame.pts is not None:
                    yield frame, frame.time
    except av.FFmpegError:
        return  # the file ends there


def _as_png(frame: av.VideoFrame) -> bytes:
    """PPM would take 2 ms of a CPU there and back where this takes 65 (of 960×540), but 4 times the
    memory of large frames: a block has as many as fit into it at the model's size, and what they
    take before that is bounded by nothing. Browsers and label tools open a PNG besides.
    """
    buffer = io.BytesIO()
    Image.fromarray(upright(frame)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
