"""Videos as sources of images: a row for each frame, and the frames as image files.

A row's URI is that of its video followed by ``#t=12.480``, the frame's time in seconds (W3C Media
Fragments), or by ``#t=0``, the whole video, where its frames are not known. The fragment alone
makes it a frame: every other URI is a file.
Frames are read as image files and take the same way as every other image from there on.

PyAV reads any format that it opens, from any storage. A video is read by ranges while it is
decoded, so its length costs no memory. A file that only lists other files (a playlist) cannot make
FFmpeg open any of them.
"""

from __future__ import annotations

import io
import math
import re
import shlex
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from segbatch.images.columns import BATCH_ROWS
from segbatch.images.faults import Content, Undecodable, why_unreadable
from segbatch.images.listing import local_copy, reading_source
from segbatch.images.place import Part
from segbatch.storage.failures import NoCredentials
from segbatch.storage.uris import without_query

if TYPE_CHECKING:
    from av.container import InputContainer

FRAME_COLUMNS = [pa.field("frame", pa.int64()), pa.field("time_s", pa.float64())]
FRAGMENT = r"#t=(?:-?\d+\.\d{3}|0)"  # at the end of a frame's URI
WHOLE = "0"  # instead of the time of a frame
_FRAME_URI = re.compile(rf"(.+){FRAGMENT}", re.S)

DEFAULT_RATE = 25  # frames a second of a stream that says nothing, as FFmpeg assumes
_READ_BYTES = 1 << 20  # at a time: each is a request to object storage
_ROUNDING = 1e-6  # of an interval: 0.3 / 0.1 is 2.9999999999999996
_SEEK_BEFORE_S = 0.5  # because frames are not stored in the order in which they are shown

# A header may overstate the length of an intact video by this much: in many of them the duration of
# the last frame is a guess. The times in which the frames of one recording are stored go back less.
_TOLERANCE_S = 1.0
# Formats whose header declares the length of the video. For other formats FFmpeg estimates it from
# the file's size, so a video that was cut off never looks too short.
_DECLARING_FORMATS = ("mov", "matroska")

_NO_FRAME = Undecodable("undecodable", "this frame cannot be decoded")
_AFTER_THE_END = Undecodable("truncated", "the video breaks off before this frame")
_UNLISTED = Undecodable(
    "undecodable",
    "the video can be read now, and could not when the images were listed: choose a new output",
)


def is_frame(uri: str) -> bool:
    """Whether ``uri`` is that of a frame, as :func:`frame_uri` writes it.

    ``photo.jpg#t=1.000`` is not: a photograph may have that name.
    """
    frame = _FRAME_URI.fullmatch(uri)
    return frame is not None and not is_photograph_name(frame[1])


def frame_uri(video: str, time_s: float | None) -> str:
    """The URI of the frame of ``video`` that is shown at ``time_s``; ``None`` for all of it."""
    return f"{video}#t={WHOLE if time_s is None else f'{time_s:.3f}'}"


# ----------------------------------------------------------------------------------- listing frames


def expand_videos(batch: pa.RecordBatch, every: float | None) -> Iterator[pa.RecordBatch]:
    """A row for each frame of the videos in ``batch``, with ``frame`` (from 0) and ``time_s``.

    ``every`` takes the first frame in each interval of so many seconds. A video that breaks off has
    one row more, for the frame that would come next. One that cannot be read has one row, with
    neither number nor time. Reading these rows gives the reason. A photograph, by its name, passes
    through. Raises ``Incomplete`` where storage does not answer, and ``SourceError`` where it
    refuses our credentials: the other frames would be lost.
    """
    for row, video in enumerate(batch.column("uri").to_pylist()):
        times: list[float | None] = [None]
        numbers = [0]
        is_photograph = is_photograph_name(video)
        if not is_photograph:
            try:
                known_times, end = frame_times(video)
                times, numbers = [*known_times], _sampled(known_times, every)
                if end is not None:
                    numbers.append(len(times))
                    times.append(end)
            except SourceError as error:
                if isinstance(error.__cause__, NoCredentials):
                    raise
        for start in range(0, len(numbers), BATCH_ROWS):
            part = numbers[start : start + BATCH_ROWS]
            chosen = [times[number] for number in part]
            repeated = batch.take(pa.array([row] * len(part)))
            columns = dict(zip(batch.schema.names, repeated.columns, strict=True))
            columns["uri"] = pa.array(
                [video if is_photograph else frame_uri(video, time) for time in chosen]
            )
            known = [None if time is None else n for n, time in zip(part, chosen, strict=True)]
            columns["frame"] = pa.array(known, pa.int64())
            columns["time_s"] = pa.array(chosen, pa.float64())
            yield pa.RecordBatch.from_pydict(columns)


def _sampled(times: Sequence[float], every: float | None) -> list[int]:
    """Numbers of the frames to take."""
    if every is None:
        return list(range(len(times)))
    taken: dict[int, int] = {}
    for number, time in enumerate(times):
        taken.setdefault(math.floor(time / every + _ROUNDING), number)
    return list(taken.values())


def frame_times(uri: str) -> tuple[list[float], float | None]:
    """When each frame of a video is shown, in seconds, sorted; and where the video breaks off
    before its declared end, ``None`` if it does not.

    The times come from the packets, which takes reading but no decoding; only a video whose packets
    lack them is decoded. Raises as :func:`open_video`, and ``SourceError`` for a video without any
    frame, or of several recordings that were joined byte by byte: each of them begins its own time.
    """
    times: list[float | None] = []
    last_two = (-math.inf, -math.inf)  # one alone may be a damaged time
    end_s, picture_end_s, is_torn = 0.0, 0.0, False
    with open_video(uri) as video:
        picture = picture_stream(video)
        try:
            for packet in video.demux():  # of sound too, which may go on after the picture
                start = None if packet.pts is None else float(packet.pts * packet.time_base)
                if start is not None:
                    duration = float((packet.duration or 0) * packet.time_base)
                    end_s = max(end_s, start + duration)
                if packet.stream.index == picture.index and packet.size and not packet.is_discard:
                    times.append(start)
                    if packet.dts is not None:  # in the order of the file
                        stored_s = float(packet.dts * packet.time_base)
                        if stored_s < min(last_two) - _TOLERANCE_S:
                            raise SourceError(_joined(without_query(uri), last_two[1], stored_s))
                        last_two = last_two[1], stored_s
                    picture_end_s = max(picture_end_s, end_s if start is None else start + duration)
        except av.FFmpegError:
            is_torn = True
        is_torn = is_torn or is_cut_off(video, end_s)
    if None in times:
        with open_video(uri) as video:
            times = [time for _, time in _decode_frames(video, None)]
    known = sorted(time for time in times if time is not None)
    if not known:
        raise SourceError(f"{without_query(uri)}: no frame in it")
    return known, max(picture_end_s, known[-1] + 0.001) if is_torn else None


def _joined(name: str, end_s: float, begin_s: float) -> str:
    return (
        f"{name}: its time goes back from {end_s:.1f} s to {begin_s:.1f} s, as of recordings that"
        " were joined byte by byte: list the recordings, or continue the time with"
        f" ffmpeg -i {shlex.quote(storage.name_of(name))} -map 0:v:0 -c copy OUT.mp4"
    )


# ----------------------------------------------------------------------------------- reading frames


def read_frames(
    parts: Sequence[Part], limits: storage.ReadLimits | None = None, raw_bytes: int = 0
) -> list[Content]:
    """An image file of each frame, or why there is none, in the order of ``parts``.

    The files are PNG; as many as fit into ``raw_bytes`` are PPM, which is larger and takes no time
    to write and to read. A video is opened once for all its frames that follow each other in
    ``parts``. Raises nothing for what storage answers.
    """
    encode = _FrameEncoder(raw_bytes)
    contents: list[Content] = []
    frames = [part.uri.rpartition("#t=") for part in parts]
    for video, group in groupby(frames, key=itemgetter(0)):
        wanted = [time for _, _, time in group]
        try:
            found = _read_frames_of(video, wanted, encode)
            contents += [found.get(time, _NO_FRAME) for time in wanted]
        except (SourceError, Incomplete) as error:
            contents += [why_unreadable(error)] * len(wanted)
    return contents


Frames = dict[str, bytes | Undecodable]  # by their times, as written in their URIs


def _read_frames_of(video: str, wanted: Sequence[str], encode: _FrameEncoder) -> Frames:
    """Frames that can be decoded; :data:`_AFTER_THE_END` for those after the end of the video."""
    if WHOLE in wanted:
        frame_times(video)  # raises why it still has no frames
        return dict.fromkeys(wanted, _UNLISTED)
    first = min(map(float, wanted))
    if first > _SEEK_BEFORE_S:
        found, begins = _scan(video, wanted, encode, first - _SEEK_BEFORE_S)
        if begins is not None and begins <= first:
            return found
        # The seek went past the first frame that is wanted: read from the beginning.
    found, _ = _scan(video, wanted, encode, None)
    return found


def _scan(
    video: str, wanted: Sequence[str], encode: _FrameEncoder, start_s: float | None
) -> tuple[Frames, float | None]:
    """As :func:`_read_frames_of`, from ``start_s`` on; also the time of the first frame seen."""
    found: Frames = {}
    last, num_wanted = max(map(float, wanted)), len(set(wanted))
    begins = ends = None
    with open_video(video) as container:
        for frame, time in _decode_frames(container, start_s):
            begins, ends = (time if begins is None else begins), time
            text = f"{time:.3f}"
            if text in wanted and text not in found and not frame.is_corrupt:
                found[text] = encode(frame)
            if time > last or len(found) == num_wanted:
                break
        else:
            after = {time for time in wanted if ends is None or float(time) > ends}
            found |= dict.fromkeys(after - set(found), _AFTER_THE_END)
    return found, begins


def _decode_frames(
    container: InputContainer, start_s: float | None
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames and their times; packets that cannot be decoded are skipped.

    The frames of a stream without time stamps (raw H.264 of a camera) follow each other at its
    frame rate; it is only read from its beginning.
    """
    picture = picture_stream(container)
    rate = picture.guessed_rate or picture.average_rate or DEFAULT_RATE
    number = 0
    picture.codec_context.thread_count = 1  # tasks of one CPU read many videos at the same time
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
                elif start_s is None:
                    yield frame, float(number / rate)
                else:
                    return
                number += 1
    except av.FFmpegError:
        return  # the file ends there


class _FrameEncoder:
    """Writes frames as image files, upright: as PPM as long as there is room, then as PNG.

    PPM takes 2 ms of a CPU where PNG takes 65 (at 960×540), and four times the memory.
    """

    def __init__(self, raw_bytes: int) -> None:
        self._room = raw_bytes

    def __call__(self, frame: av.VideoFrame) -> bytes:
        pixels = upright_pixels(frame)
        self._room -= pixels.nbytes
        buffer = io.BytesIO()
        if self._room >= 0:
            Image.fromarray(pixels).save(buffer, "PPM")
        else:  # browsers and label tools open it
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


# ----------------------------------------------------------------------------------- opening videos


@contextmanager
def open_video(uri: str) -> Iterator[InputContainer]:
    """The video at ``uri``, to be read from its beginning.

    Raises ``SourceError`` if it is missing, is no video, or has no picture in it, and
    ``Incomplete`` if the storage does not answer, also while it is read.
    """
    with reading_source(uri), tempfile.TemporaryDirectory(prefix="segbatch-") as scratch:
        # Many web servers do not serve parts of a file.
        is_http = storage.scheme_of(uri) in storage.HTTP_SCHEMES
        if storage.is_local(uri):
            uri = str(storage.existing_path(uri))
        filesystem, path = storage.arrow_filesystem(local_copy(uri, scratch) if is_http else uri)
        with filesystem.open_input_file(path) as file:
            try:
                container = av.open(
                    file, options={"protocol_whitelist": "none"}, buffer_size=_READ_BYTES
                )
            except av.FFmpegError as error:
                raise SourceError(f"{without_query(uri)}: no video: {error.strerror}") from error
            with container:
                if container.streams.best("video") is None:
                    raise SourceError(
                        f"{without_query(uri)}: there is no picture in it, only sound"
                    )
                yield container


def picture_stream(container: InputContainer) -> VideoStream:
    """The stream that holds the picture of an opened video, not that of a cover."""
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)  # open_video raises if there is none
    return stream


def upright_pixels(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
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
    if declared is None or not container.format.name.startswith(_DECLARING_FORMATS):
        return False
    whole_s = (declared + (container.start_time or 0)) / av.time_base
    return end_s < whole_s - _TOLERANCE_S
