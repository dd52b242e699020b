"""A film that is written: pictures are encoded anew, sound and subtitles are copied as they are.

Each picture is shown when the frame was that it was made of: time stamps are kept and not counted
anew, so that variable rates stay what they were and sound stays in step. Colours travel as they
came: with the matrix of their video, and marked as it was.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
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

# Encoder and its options by the extension of the file. No AVI and no GIF: they count frames, and
# cannot say when one is shown.
ENCODERS = {".mp4": _H264, ".mov": _H264, ".mkv": _H264, ".webm": _VP9}

# Numbers of ITU-T H.273, which FFmpeg counts by.
_BT709, _LIMITED_RANGE = 1, 1

_COMMON_TIME_BASE = Fraction(1, 90_000)


@contextmanager
def written(output: str) -> Iterator[Path]:
    """A local path to write to; what stands there goes to ``output`` when the block is through.

    After an error of the block nothing is left. Raises :class:`~segbatch.errors.InputError` where
    ``output`` cannot be written, :class:`~segbatch.errors.Incomplete` where storage fails.
    """
    local = storage.is_local(output)
    suffix = PurePosixPath(output).suffix.lower()
    with _writing(output):
        folder = storage.local_path(output).parent if local else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix, f".{storage.name_of(output)}.", folder)
        os.close(handle)
    path = Path(name)
    try:
        yield path
        with storage.writing_output():
            storage.upload(path, output)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(output: str) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        why = error.strerror or storage.one_line(error)
        raise InputError(f"{output}: cannot be written: {why}") from error


class Film:
    """A film at ``path``, whose extension is one of :data:`ENCODERS`; entered, and then added to.

    ``name`` is what it will be called, for messages, and ``rate`` what it is said to have, in
    frames per second. ``others`` are streams of the video that it is made of: sound is copied, or
    encoded anew where the format does not take it; subtitles are copied; what is left out is said.
    ``aspect`` is the shape of the frames' pixels, width ÷ height.
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
        self._made: OutputContainer | None = None
        self._streams: dict[int, Any] = {}  # that are written, by the index of what they copy
        self._last = -1  # time stamp of the last picture

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._made is None:
            return
        with _writing(self.name), self._made:
            if kind is None:
                for stream in [*self._streams.values(), self._picture]:
                    if stream.codec_context.is_encoder:
                        self._made.mux(stream.encode(None))

    def add(
        self,
        frames: Sequence[av.VideoFrame],
        pictures: Sequence[Image.Image],
        packets: Sequence[av.Packet[Any]] = (),
    ) -> None:
        """Write ``pictures``, RGB of one size, shown when ``frames`` were; ``packets`` of others.

        Raises :class:`~segbatch.errors.InputError` where it cannot be written.
        """
        with _writing(self.name):
            if self._made is None:
                self._made = self._opened(frames[0], pictures[0].size)
            for packet in packets:
                self._copy(packet, self._made)
            for frame, picture in zip(frames, pictures, strict=True):
                self._made.mux(self._picture.encode(self._shown(frame, picture)))

    def _opened(self, frame: av.VideoFrame, size: tuple[int, int]) -> OutputContainer:
        """Only the first frame says how large pictures are, and all streams must be there first."""
        suffix = self.path.suffix
        options = {"movflags": "faststart"} if suffix in (".mp4", ".mov") else {}
        made = av.open(str(self.path), "w", container_options=options)
        encoder, encoder_options = ENCODERS[suffix]
        picture = made.add_stream(encoder, self.rate, options=encoder_options)
        assert isinstance(picture, VideoStream)
        self._picture, context = picture, picture.codec_context
        context.width, context.height = size
        # Colours at half the size need sides that can be halved.
        context.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        context.time_base = frame.time_base or _COMMON_TIME_BASE
        context.flags |= Flags.frame_duration
        if self.aspect:
            is_turned = size != (frame.width, frame.height)
            context.sample_aspect_ratio = 1 / self.aspect if is_turned else self.aspect
        context.colorspace = self._matrix = frame.colorspace or _BT709  # pictures are no longer RGB
        context.color_range = _LIMITED_RANGE
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        for stream in self.others:
            copied = _added(made, stream, suffix)
            if copied is None:
                say(f"left out: {stream.type} stream {stream.index}, which {suffix} does not take")
            else:
                copied.metadata.update(stream.metadata)
                self._streams[stream.index] = copied
        return made

    def _shown(self, frame: av.VideoFrame, picture: Image.Image) -> av.VideoFrame:
        """The picture to encode. A frame of no time, or of one before the last, comes next."""
        made = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        made.time_base = frame.time_base
        made.duration = frame.duration
        made.pts = self._last + 1 if frame.pts is None else max(frame.pts, self._last + 1)
        self._last = made.pts
        return made.reformat(
            format=self._picture.codec_context.pix_fmt,
            dst_colorspace=self._matrix,
            dst_color_range=_LIMITED_RANGE,
        )

    def _copy(self, packet: av.Packet[Any], made: OutputContainer) -> None:
        stream = self._streams.get(packet.stream.index)
        if stream is None:
            return
        if stream.codec_context.is_encoder:
            for sound in packet.decode():
                made.mux(stream.encode(sound))
        elif packet.dts is not None:
            packet.stream = stream
            made.mux(packet)


def _added(made: OutputContainer, stream: av.stream.Stream, suffix: str) -> Any:
    """The stream of ``made`` that holds what ``stream`` does; ``None`` where there can be none."""
    name = "" if stream.codec_context is None else stream.codec_context.name
    # FFmpeg's MP4 takes raw sound only if it knows where its speakers are, and few players any.
    is_copied = not (suffix == ".mp4" and name.startswith("pcm_"))
    if is_copied and stream.type in ("audio", "subtitle"):
        try:
            return made.add_stream_from_template(stream)
        except (ValueError, av.FFmpegError):
            pass  # this format has no place for this codec
    if stream.type != "audio":
        return None
    assert isinstance(stream, AudioStream)
    say(f"sound is encoded anew: stream {stream.index} is {name}")
    sound = made.add_stream(made.default_audio_codec)
    assert isinstance(sound, AudioStream)
    sound.codec_context.layout = f"{stream.codec_context.channels}c"
    return sound
