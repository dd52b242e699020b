"""Frames of videos as rows of a run: listed by their times, and read a range of one video at once.

A row's URI is that of its video and ``#t=12.480``, its time in seconds (W3C Media Fragments). What
reading it gives is a PNG, so that a frame goes the way of every image from there on.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import av
import pyarrow as pa
from PIL import Image

from segbatch import storage
from segbatch.errors import Incomplete, SourceError
from segbatch.images.diagnose import Undecodable
from segbatch.images.video import opened, picture_of, upright
from segbatch.jobimages import VIDEO_EXTENSIONS
from segbatch.uris import shown

FRAME_COLUMNS = [pa.field("frame", pa.int64()), pa.field("time_s", pa.float64())]
_ROWS_PER_BATCH = 65_536
_FRAGMENT = re.compile(rf".+\.({'|'.join(VIDEO_EXTENSIONS)})#t=-?\d+\.\d{{3}}", re.S | re.I)
_SEEK_BEFORE_S = 0.5  # frames are stored in another order than they are shown in


def is_frame(uri: str) -> bool:
    return _FRAGMENT.fullmatch(uri) is not None


def frame_uri(video: str, time_s: float) -> str:
    return f"{video}#t={time_s:.3f}"


def expand(batch: pa.RecordBatch, every: float | None) -> Iterator[pa.RecordBatch]:
    """A row for each frame of the videos in ``batch``, with ``frame`` (from 0) and ``time_s``.

    ``every`` takes the first frame of each so many seconds. A video that cannot be read keeps its
    one row, without a frame, in which the run will say why. Raises ``Incomplete`` where storage
    does not answer.
    """
    for row, video in enumerate(batch.column("uri").to_pylist()):
        try:
            times: Sequence[float | None] = times_of(video)
        except SourceError:
            times = [None]
        numbers = _chosen(times, every)
        for start in range(0, len(numbers), _ROWS_PER_BATCH):
            part = numbers[start : start + _ROWS_PER_BATCH]
            chosen = [times[number] for number in part]
            repeated = batch.take(pa.array([row] * len(part)))
            columns = dict(zip(batch.schema.names, repeated.columns, strict=True))
            columns["uri"] = pa.array(
                [video if time is None else frame_uri(video, time) for time in chosen]
            )
            known = [None if time is None else n for n, time in zip(part, chosen, strict=True)]
            columns["frame"] = pa.array(known, pa.int64())
            columns["time_s"] = pa.array(chosen, pa.float64())
            yield pa.RecordBatch.from_pydict(columns)


def _chosen(times: Sequence[float | None], every: float | None) -> list[int]:
    """Numbers of the frames that are taken."""
    if every is None:
        return list(range(len(times)))
    taken: dict[int, int] = {}
    for number, time in enumerate(times):
        taken.setdefault(int((time or 0.0) / every), number)
    return list(taken.values())


def times_of(uri: str) -> list[float]:
    """When each frame of a video is shown, in seconds, in the order in which they are.

    From the packets alone, which takes reading and no decoding, where they say it. Raises as
    :func:`~segbatch.images.video.opened`, and ``SourceError`` for a video without any frame.
    """
    times: list[float | None] = []
    with opened(uri) as video:
        picture = picture_of(video)
        try:
            for packet in video.demux(picture):
                if packet.size and not packet.is_discard:
                    pts = packet.pts
                    times.append(None if pts is None else float(pts * packet.time_base))
        except av.FFmpegError:
            pass  # what comes after it is in no row: it cannot be counted
    if None in times:
        with opened(uri) as video:
            times = [frame.time for frame, _ in _decoded(video, None)]
    known = sorted(time for time in times if time is not None)
    if not known:
        raise SourceError(f"{shown(uri)}: no frame in it")
    return known


def read_frames(uris: Sequence[str]) -> list[bytes | Undecodable | storage.Unreadable]:
    """PNG of each frame, or why not, in the order of ``uris``; each video is opened once for all
    that follow each other. Raises nothing for what storage answers.
    """
    contents: list[bytes | Undecodable | storage.Unreadable] = []
    for video, group in groupby(uris, key=lambda uri: uri.rpartition("#t=")[0]):
        wanted = [uri.rpartition("#t=")[2] for uri in group]
        try:
            found = _found(video, wanted)
            missing = Undecodable("undecodable", "this frame cannot be decoded")
            contents += [found.get(time, missing) for time in wanted]
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


def _found(video: str, wanted: Sequence[str]) -> dict[str, bytes]:
    """Those of the frames that can be decoded, by their times."""
    found: dict[str, bytes] = {}
    times = [float(time) for time in wanted]
    # From just before; and where that was not enough to decode all of them, from the beginning.
    for start in (min(times) - _SEEK_BEFORE_S, None):
        if len(found) == len(set(wanted)):
            break
        with opened(video) as container:
            for frame, time in _decoded(container, start):
                text = f"{time:.3f}"
                if text in wanted and text not in found and not frame.is_corrupt:
                    found[text] = _as_png(frame)
                if time > max(times) or len(found) == len(set(wanted)):
                    break
    return found


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
    buffer = io.BytesIO()
    Image.fromarray(upright(frame)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
