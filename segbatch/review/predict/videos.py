"""``segbatch predict`` on a video: a film of its overlays, of the same length, size and sound.

Frames go through the model in batches, and memory holds one batch for a video of any length. The
film is written under a temporary name and moved once it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import av

from segbatch import storage
from segbatch.console import Bar, say
from segbatch.errors import JobFailed
from segbatch.images.video import is_cut_off, open_video, picture_stream, upright_pixels
from segbatch.masks import FILL
from segbatch.review.predict.film import Film, staged_file
from segbatch.review.predict.overlays import FrameOverlays
from segbatch.storage.uris import without_query

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from segbatch.model.predict import Model

BATCH_FRAMES = 8


def predict_video(source: str, model: Model, output: str, fill: float = FILL) -> int:
    """Write the overlay of a video; returns its number of frames.

    ``fill`` is the opacity of the class colours, 0 to 1.

    ``output`` ends in one of :data:`~segbatch.review.predict.film.ENCODERS`. Raises ``SourceError``
    if ``source`` is not a video, ``Incomplete`` if storage does not answer,
    :class:`~segbatch.errors.InputError` if ``output`` cannot be written, and
    :class:`~segbatch.errors.JobFailed` with the frame number for a video that breaks off. After any
    error, nothing is written.
    """
    overlays = FrameOverlays(model, fill)
    name, num_frames = storage.name_of(source), 0
    damaged: list[int] = []
    with staged_file(output) as path, open_video(source) as video:
        picture = picture_stream(video)
        others = [stream for stream in video.streams if stream.index != picture.index]
        total = _expected_frames(video, picture)
        film = Film(path, output, picture.average_rate, others, picture.sample_aspect_ratio)
        with film, Bar(name, total) as bar:
            for batch in read_batches(video, picture, source):
                damaged += [
                    number
                    for number, frame in enumerate(batch.frames, num_frames)
                    if frame.is_corrupt
                ]
                pictures = overlays([upright_pixels(frame) for frame in batch.frames])
                film.add(batch.frames, pictures, batch.packets)
                num_frames += len(pictures)
                pace = f"{num_frames / (time.monotonic() - bar.started):.1f} frames/s"
                if bar.move(num_frames, pace):
                    bar.line(f"frames={num_frames}/{total} pace={pace}", f"video={name} ")
    if damaged:
        say(
            f"{without_query(source)}: damaged frames: {len(damaged)}, the first is {damaged[0]}"
            " (counted from 0); they are shown as the decoder repaired them"
        )
    return num_frames


@dataclass
class FrameBatch:
    """Consecutive frames, and the packets of other streams that were read between them."""

    frames: list[av.VideoFrame] = field(default_factory=list)
    packets: list[av.Packet[Any]] = field(default_factory=list)


def read_batches(video: InputContainer, picture: VideoStream, source: str) -> Iterator[FrameBatch]:
    """The whole video, ``BATCH_FRAMES`` frames at a time; the first batch has a frame.

    Raises :class:`~segbatch.errors.JobFailed` if the video breaks off.
    """
    picture.thread_type = "AUTO"
    batch, num_frames, end_s, torn = FrameBatch(), 0, 0.0, False
    packets = video.demux()
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != picture.index:
                batch.packets.append(packet)
                continue
            torn = packet.is_corrupt if packet.size else torn
            frames = picture.decode(packet)
        except av.FFmpegError as error:
            raise _broken(source, num_frames, end_s, str(error.strerror)) from error
        for frame in frames:
            batch.frames.append(frame)
            num_frames += 1
            if len(batch.frames) == BATCH_FRAMES:
                yield batch
                batch = FrameBatch()
    if torn or is_cut_off(video, end_s):
        raise _broken(source, num_frames, end_s, "the file ends there but should be longer")
    if not num_frames:
        raise _broken(source, 0, 0.0, "no frame can be decoded")
    yield batch


def _broken(source: str, num_frames: int, end_s: float, why: str) -> JobFailed:
    return JobFailed(
        f"{without_query(source)}: breaks at frame {num_frames} (the first is 0), about"
        f" {end_s:.2f} s in: {why}; nothing was written. `ffmpeg -i BROKEN -c copy REPAIRED`"
        " keeps what can be read"
    )


def _expected_frames(video: InputContainer, picture: VideoStream) -> int:
    """The approximate number of frames; 0 if unknown."""
    seconds = (video.duration or 0) / av.time_base
    return picture.frames or round(seconds * (picture.average_rate or 0))
