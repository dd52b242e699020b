"""A camera: what a model sees in it while it looks, in a window or in a file.

Frames come from OpenCV, because PyAV's packages for Linux are built without cameras. A model may
be slower than the camera: it always gets the newest frame, and those in between are never seen.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

import av
import numpy as np
from PIL import Image

from segbatch.console import say
from segbatch.errors import InputError, JobFailed
from segbatch.images.video import upright
from segbatch.model.predict import load_model
from segbatch.review.predict.film import ENCODERS, Film, written
from segbatch.review.predict.video import Overlays

_MILLISECONDS = Fraction(1, 1000)


def is_camera(source: str) -> bool:
    """Whether ``source`` is ``camera:0`` or a device: ``/dev/video0``."""
    return re.fullmatch(r"camera:\d+|/dev/video\d+", source) is not None


def predict_camera(source: str, model_uri: str, output: str | None) -> int:
    """Show what a model sees in a camera, or write it to ``output``; returns how many frames.

    It ends when the window is closed, with Ctrl-C, or when the camera gives nothing more. Each
    frame of a film is shown as long as the model took for the next one. Raises
    :class:`~segbatch.errors.InputError` where there is no such camera, nothing to show it on, or
    ``output`` cannot be written, and :class:`~segbatch.errors.JobFailed` where no frame comes.
    """
    if output is not None and PurePosixPath(output).suffix.lower() not in ENCODERS:
        raise InputError(f"{output}: a camera's film is written as {', '.join(ENCODERS)}")
    with ExitStack() as open_ones:
        camera = open_ones.enter_context(Camera(source))
        screen: Window | Recording
        if output is None:
            screen = open_ones.enter_context(Window(f"{source} - segbatch"))
        else:
            path = open_ones.enter_context(written(output))
            screen = Recording(open_ones.enter_context(Film(path, output, rate=None)))
        num_frames = watch(camera, Overlays(load_model(model_uri)), screen)
        if not num_frames:
            raise JobFailed(f"{source}: not one frame came of it; nothing was written")
        return num_frames


def watch(camera: Camera, overlays: Overlays, screen: Window | Recording) -> int:
    """Bring the camera's frames to the screen until one of them ends, or Ctrl-C; their number."""
    say("Ctrl-C ends it")
    num_frames = 0
    with suppress(KeyboardInterrupt):
        for frame in camera:
            [picture] = overlays([upright(frame)])
            num_frames += 1
            if not screen.show(frame, picture):
                break
    return num_frames


class Camera:
    """Frames of a camera, the newest each time one is asked for; their time is that since begun.

    ``source`` is as :func:`is_camera` takes it, or anything else that OpenCV opens. Raises
    :class:`~segbatch.errors.InputError` where it does not.
    """

    def __init__(self, source: str) -> None:
        import cv2  # a tenth of a second that whoever predicts no camera need not wait

        cv2.utils.logging.setLogLevel(0)  # what it would say is said here, in one line
        number = re.fullmatch(r"camera:(\d+)", source)
        self._capture = cv2.VideoCapture(int(number[1]) if number else source)
        if not self._capture.isOpened():
            raise InputError(f"{source}: no such camera, or another program has it")
        self._newest: queue.Queue[av.VideoFrame | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self.num_read = 0
        self.reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self.reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        while self.reader.is_alive():
            self._forget()
            self.reader.join(0.05)
        self._capture.release()

    def __iter__(self) -> Iterator[av.VideoFrame]:
        while (frame := self._newest.get()) is not None:
            yield frame

    def _read(self) -> None:
        started = time.monotonic()
        while not self._stopped.is_set():
            is_there, pixels = self._capture.read()
            if not is_there:
                break
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="bgr24")
            frame.pts = round((time.monotonic() - started) * 1000)
            frame.time_base = _MILLISECONDS
            self._forget()
            self._newest.put(frame)
            self.num_read += 1
        self._newest.put(None)  # once the last frame is taken

    def _forget(self) -> None:
        with suppress(queue.Empty):
            self._newest.get_nowait()


class Window:
    """A window with a picture in it. Raises ``InputError`` where there is no display."""

    def __init__(self, title: str) -> None:
        import tkinter

        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise InputError(
                "there is no display for a window here: write a film, -o camera.mp4"
            ) from error
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda event: self.close())
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self.is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._root.destroy()

    def show(self, frame: av.VideoFrame, picture: Image.Image) -> bool:
        """Show a picture; whether the window is still open."""
        from PIL import ImageTk

        self._shown = ImageTk.PhotoImage(picture)  # Tk itself keeps no picture alive
        self._label.configure(image=self._shown)
        self._root.update()  # in which keys are heard
        return self.is_open


class Recording:
    """A film of what would be in the window."""

    def __init__(self, film: Film) -> None:
        self.film = film

    def show(self, frame: av.VideoFrame, picture: Image.Image) -> bool:
        self.film.add([frame], [picture])
        return True
