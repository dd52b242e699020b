"""Video: what a model sees in a film, as a film of the same length, rate, size and sound.

Frames go through the model in batches, and memory holds one of them, whatever the length. A film
is written under a temporary name and moved when it is whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch import masks, storage
from segbatch.console import Bar, say
from segbatch.errors import JobFailed
from segbatch.images.scaling import downscale
from segbatch.images.video import is_cut_off, opened, picture_of, upright
from segbatch.masks.drawing import legend
from segbatch.model.predict import Model
from segbatch.review.predict.film import Film, written

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from segbatch.model.predict import Model

# Overlays of a film: its frames under the colours of their classes, batch by batch.
#
# The legend stands in a corner of the picture, so that the film keeps its size, and names every
# class of the model at the same place in every frame: one that follows what is seen would flicker.


class Overlays:
    """Makes overlays of the frames of one film, which all have one size."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._legend: Image.Image | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Image.Image]:
        """RGB pictures of the size of ``frames``, ``(height, width, 3)`` uint8 RGB each."""
        long_side = self.model.long_side
        scaled = [np.asarray(downscale(Image.fromarray(frame), long_side)) for frame in frames]
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        predictions = self.model.predict_batch(scaled, sizes)
        return [
            self._labelled(masks.overlay(frame, prediction.mask, self.model.classes))
            for frame, prediction in zip(frames, predictions, strict=True)
        ]

    def _labelled(self, picture: Image.Image) -> Image.Image:
        if self._size != picture.size:
            self._size, self._legend = picture.size, legend(self.model.classes, picture.size)
        if self._legend is not None:
            picture.paste(self._legend, (0, picture.height - self._legend.height), self._legend)
        return picture


BATCH_FRAMES = 8


@dataclass
class Piece:
    """Some frames in their order, and the packets of other streams that were read beside them."""

    frames: list[av.VideoFrame] = field(default_factory=list)
    packets: list[av.Packet[Any]] = field(default_factory=list)


def predict_video(source: str, model: Model, output: str) -> int:
    """Write the overlay of a video, and return how many frames it has.

    ``output`` ends in one of :data:`~segbatch.review.predict.film.ENCODERS`. Raises ``SourceError``
    for what is no video, ``Incomplete`` where storage does not answer,
    :class:`~segbatch.errors.InputError` where ``output`` cannot be written, and
    :class:`~segbatch.errors.JobFailed` with the frame's number for a video that breaks; after any
    of them, nothing is written.
    """
    overlays = Overlays(model)
    name, num_frames = storage.name_of(source), 0
    damaged: list[int] = []
    with written(output) as path, opened(source) as given:
        picture = picture_of(given)
        others = [stream for stream in given.streams if stream.index != picture.index]
        total = _expected(given, picture)
        film = Film(path, output, picture.average_rate, others, picture.sample_aspect_ratio)
        with film, Bar(name, total) as bar:
            for piece in pieces(given, picture, source):
                damaged += [
                    number
                    for number, frame in enumerate(piece.frames, num_frames)
                    if frame.is_corrupt
                ]
                pictures = overlays([upright(frame) for frame in piece.frames])
                film.add(piece.frames, pictures, piece.packets)
                num_frames += len(pictures)
                pace = f"{num_frames / (time.monotonic() - bar.started):.1f} frames/s"
                if bar.move(num_frames, pace):
                    bar.line(f"frames={num_frames}/{total} pace={pace}", f"video={name} ")
    if damaged:
        say(
            f"{source}: damaged frames: {len(damaged)}, the first is {damaged[0]} (counted from 0);"
            " they are shown as the decoder mended them"
        )
    return num_frames


def pieces(given: InputContainer, picture: VideoStream, source: str) -> Iterator[Piece]:
    """All of a video, ``BATCH_FRAMES`` frames at a time; the first piece has a frame.

    Raises :class:`~segbatch.errors.JobFailed` where it breaks.
    """
    picture.thread_type = "AUTO"
    piece, num_frames, end_s, torn = Piece(), 0, 0.0, False
    packets = given.demux()
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != picture.index:
                piece.packets.append(packet)
                continue
            torn = packet.is_corrupt if packet.size else torn
            frames = picture.decode(packet)
        except av.FFmpegError as error:
            raise _broken(source, num_frames, end_s, str(error.strerror)) from error
        for frame in frames:
            piece.frames.append(frame)
            num_frames += 1
            if len(piece.frames) == BATCH_FRAMES:
                yield piece
                piece = Piece()
    if torn or is_cut_off(given, end_s):
        raise _broken(source, num_frames, end_s, "the file ends there and was longer")
    if not num_frames:
        raise _broken(source, 0, 0.0, "no frame can be decoded")
    yield piece


def _broken(source: str, num_frames: int, end_s: float, why: str) -> JobFailed:
    return JobFailed(
        f"{source}: breaks at frame {num_frames} (the first is 0), about {end_s:.2f} s in: {why};"
        " nothing was written: `ffmpeg -i BROKEN -c copy MENDED` keeps what is whole"
    )


def _expected(given: InputContainer, picture: VideoStream) -> int:
    """About how many frames there will be; 0 where nothing says it."""
    seconds = (given.duration or 0) / av.time_base
    return picture.frames or round(seconds * (picture.average_rate or 0))
