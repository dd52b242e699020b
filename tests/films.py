"""Makes small videos with PyAV: moving pictures, a tone, and the given time stamps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from segbatch.model.patches import Pixels
from tests.model.conftest import picture

MILLISECONDS = Fraction(1, 1000)
STEADY = tuple(range(0, 480, 40))  # twelve frames, 25 a second
ODD_TIMES = (0, 40, 50, 200, 233, 300, 501, 502, 700, 1100, 1101, 1500)


def film(
    path: Path,
    times: Sequence[int] = STEADY,
    *,
    size: tuple[int, int] = (48, 64),
    sound: str | None = "aac",
    rotation: int = 0,
    codec: str = "libx264",
) -> list[Pixels]:
    """Write a video whose frames are shown at ``times`` in milliseconds; returns its pictures.

    ``size`` is height and width, ``rotation`` the angle by which a player turns it, anticlockwise.
    """
    height, width = size
    pictures = [picture(height, width, seed) for seed in range(len(times))]
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", container_options=options) as made:
        stream = made.add_stream(codec, 25, options={"crf": "5", "g": "4"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.codec_context.time_base = MILLISECONDS
        if rotation:
            stream.set_display_rotation(rotation)
        tone = None
        if sound:
            tone = made.add_stream(sound, 48_000)
            assert isinstance(tone, AudioStream)
        for pixels, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = time, MILLISECONDS
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
        if tone is not None:
            for start in range(0, times[-1] * 48, 960):
                wave = np.sin(np.arange(start, start + 960) / 20, dtype=np.float32) / 2
                samples = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
                samples.pts, samples.sample_rate = start, 48_000
                samples.time_base = Fraction(1, 48_000)
                made.mux(tone.encode(samples))
            made.mux(tone.encode(None))
    return pictures
