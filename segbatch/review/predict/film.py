"""Writes films of overlays: pictures are encoded, sound and subtitles are copied.

Each picture is shown when its source frame was: time stamps are kept, so variable frame rates stay
as they were and sound stays in step. Colours keep the matrix and the tags of their video.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.video.stream import VideoStream
from PIL import Image

from segbatch import storage
from segbatch.console import say
from segbatch.errors import InputError

if TYPE_CHECKING:
    from av.container import OutputContainer

_H264 = ("libx264", {"crf": "20", "preset": "medium"})
_VP9 = ("libvpx-vp9", {"crf": "30", "b": "0", "row-mt": "1", "cpu-used": "4"})

# Encoder and its options by file extension. Neither AVI nor GIF: they store no time stamps.
ENCODERS = {".mp4": _H264, ".mov": _H264, ".mkv": _H264, ".webm": _VP9}

# Numbers of ITU-T H.273, which FFmpeg uses.
_BT709, _LIMITED_RANGE = 1, 1

_COMMON_TIME_BASE = Fraction(1, 90_000)


@contextmanager
def staged_file(output: str) -> Iterator[Path]:
    """A local path for the block to write to; its file moves to ``output`` when the block ends.

    If the block fails, nothing is left. Raises :class:`~segbatch.errors.InputError` if ``output``
    cannot be written, :class:`~segbatch.errors.Incomplete` if storage fails.
    """
    local = storage.is_local(output)
    suffix = PurePosixPath(output).suffix.lower()
    with _naming_output(output):
        folder = storage.local_path(output).parent if local else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix, f".{storage.name_of(output)}.", folder)
        os.close(handle)
    path = Path(name)
    try:
        yield path
        with storage.translate_errors("cannot write", InputError):
            storage.upload(path, output)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _naming_output(output: str) -> Iterator[None]:
    """Turns the block's errors into :class:`~segbatch.errors.InputError` that names ``output``."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        why = error.strerror or storage.one_line(error)
        raise InputError(f"{output}: cannot be written: {why}") from error


class Film:
    """A film that is written to ``path``, with an extension of :data:`ENCODERS`; a context manager.

    ``name`` is its final name, for messages; ``rate`` its declared rate in frames per second;
    ``aspect`` the pixel aspect ratio, width ÷ height. ``others`` are the other streams of the
    source video: sound is copied, or re-encoded if the format does not take its codec; subtitles
    are copied; a stream that is left out is reported.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        rate: Fraction | None,
        others: Sequence[av.stream.Stream] = (),
        aspect: Fraction | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.rate = rate
        self.others = others
        self.aspect = aspect
        self._container: OutputContainer | None = None
        self._streams: dict[int, Any] = {}  # copies of other streams, by the source stream's index
        self._last_pts = -1

    def __enter__(self) -> Self:
        return self

    def add(
        self,
        frames: Sequence[av.VideoFrame],
        pictures: Sequence[Image.Image],
        packets: Sequence[av.Packet[Any]] = (),
    ) -> None:
        """Write ``pictures``, RGB of one size, shown when ``frames`` were.

        ``packets`` belong to the other streams. Raises :class:`~segbatch.errors.InputError` if the
        film cannot be written.
        """
        with _naming_output(self.name):
            if self._container is None:
                self._container = self._open(frames[0], pictures[0].size)
            for packet in packets:
                self._copy(packet, self._container)
            for frame, picture in zip(frames, pictures, strict=True):
                self._container.mux(self._picture.encode(self._video_frame(frame, picture)))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._container is None:
            return
        with _naming_output(self.name), self._container:
            if kind is None:
                for stream in [*self._streams.values(), self._picture]:
                    if stream.codec_context.is_encoder:
                        self._container.mux(stream.encode(None))

    def _open(self, frame: av.VideoFrame, size: tuple[int, int]) -> OutputContainer:
        """Open the file with all of its streams; their properties come from the first frame."""
        suffix = self.path.suffix
        options = {"movflags": "faststart"} if suffix in (".mp4", ".mov") else {}
        container = av.open(str(self.path), "w", container_options=options)
        encoder, encoder_options = ENCODERS[suffix]
        picture = container.add_stream(encoder, self.rate, options=encoder_options)
        assert isinstance(picture, VideoStream)
        self._picture, context = picture, picture.codec_context
        context.width, context.height = size
        # Colours at half the resolution need even sides.
        context.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        context.time_base = frame.time_base or _COMMON_TIME_BASE
        context.flags |= Flags.frame_duration
        if self.aspect:
            is_turned = size != (frame.width, frame.height)
            context.sample_aspect_ratio = 1 / self.aspect if is_turned else self.aspect
        context.colorspace = self._matrix = frame.colorspace or _BT709
        context.color_range = _LIMITED_RANGE
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        for stream in self.others:
            copied = _add_stream(container, stream, suffix)
            if copied is None:
                say(f"left out: {stream.type} stream {stream.index}, which {suffix} does not take")
            else:
                copied.metadata.update(stream.metadata)
                self._streams[stream.index] = copied
        return container

    def _video_frame(self, frame: av.VideoFrame, picture: Image.Image) -> av.VideoFrame:
        """The picture with the time of ``frame``; without one, or out of order, it comes next."""
        made = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        made.time_base = frame.time_base
        made.duration = frame.duration
        made.pts = self._last_pts + 1 if frame.pts is None else max(frame.pts, self._last_pts + 1)
        self._last_pts = made.pts
        return made.reformat(
            format=self._picture.codec_context.pix_fmt,
            dst_colorspace=self._matrix,
            dst_color_range=_LIMITED_RANGE,
        )

    def _copy(self, packet: av.Packet[Any], container: OutputContainer) -> None:
        """Write a packet of another stream, re-encoded if its stream is."""
        stream = self._streams.get(packet.stream.index)
        if stream is None:
            return
        if stream.codec_context.is_encoder:
            for sound in packet.decode():
                container.mux(stream.encode(sound))
        elif packet.dts is not None:
            packet.stream = stream
            container.mux(packet)


def _add_stream(container: OutputContainer, stream: av.stream.Stream, suffix: str) -> Any:
    """Add a stream that takes the content of ``stream``; ``None`` if the format has no such one."""
    name = "" if stream.codec_context is None else stream.codec_context.name
    # FFmpeg writes raw sound into MP4 only if it knows the speaker layout, and few players read it.
    is_copied = not (suffix == ".mp4" and name.startswith("pcm_"))
    if is_copied and stream.type in ("audio", "subtitle"):
        try:
            return container.add_stream_from_template(stream)
        except (ValueError, av.FFmpegError):
            pass  # this format has no place for this codec
    if stream.type != "audio":
        return None
    assert isinstance(stream, AudioStream)
    say(f"sound is re-encoded: stream {stream.index} is {name}")
    sound = container.add_stream(container.default_audio_codec)
    assert isinstance(sound, AudioStream)
    sound.codec_context.layout = f"{stream.codec_context.channels}c"
    return sound
