"""``segbatch predict`` on a live camera: overlays in a window or in a film.

Frames come from OpenCV, because PyAV's packages for Linux are built without cameras. A model may
be slower than the camera: it always gets the newest frame, and the frames in between are dropped.
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
from typing import Self

import av
import numpy as np
from PIL import Image

from segbatch.console import say
from segbatch.errors import InputError, JobFailed
from segbatch.images.video import upright_pixels
from segbatch.masks import FILL
from segbatch.model.predict import load_model
from segbatch.review.predict.film import ENCODERS, Film, staged_file
from segbatch.review.predict.overlays import FrameOverlays

_MILLISECONDS = Fraction(1, 1000)


def is_camera(source: str) -> bool:
    """Whether ``source`` names a camera: ``camera:0``, or a device, ``/dev/video0``."""
    return re.fullmatch(r"camera:\d+|/dev/video\d+", source) is not None


def predict_camera(source: str, model_uri: str, output: str | None, fill: float = FILL) -> int:
    """Show a camera's overlays in a window, or write them to ``output``; returns how many.

    ``fill`` is the opacity of the class colours, 0 to 1.

    Ends when the window is closed, on Ctrl-C, or when the camera stops. A film shows each overlay
    for as long as the model took for the next one. Raises :class:`~segbatch.errors.InputError` if
    the camera cannot be opened, there is no display, or ``output`` cannot be written, and
    :class:`~segbatch.errors.JobFailed` if the camera gives no frame.
    """
    if output is not None and PurePosixPath(output).suffix.lower() not in ENCODERS:
        raise InputError(f"{output}: a film of a camera is written as {', '.join(ENCODERS)}")
    with ExitStack() as stack:
        camera = stack.enter_context(Camera(source))
        screen: Window | Recording
        if output is None:
            screen = stack.enter_context(Window(f"{source} - segbatch"))
        else:
            path = stack.enter_context(staged_file(output))
            screen = Recording(stack.enter_context(Film(path, output, rate=None)))
        num_frames = show_overlays(camera, FrameOverlays(load_model(model_uri), fill), screen)
        if not num_frames:
            raise JobFailed(f"{source}: the camera gave no frame; nothing was written")
        return num_frames


def show_overlays(camera: Camera, overlays: FrameOverlays, screen: Window | Recording) -> int:
    """Show overlays until the camera stops, the screen closes, or Ctrl-C; returns how many."""
    say("press Ctrl-C to stop")
    num_frames = 0
    with suppress(KeyboardInterrupt):
        for frame in camera:
            [picture] = overlays([upright_pixels(frame)])
            num_frames += 1
            if not screen.show(frame, picture):
                break
    return num_frames


class Camera:
    """Iterates over a camera's frames, always giving the newest; their times count from the start.

    ``source`` is a camera as in :func:`is_camera`, or anything else that OpenCV opens. Raises
    :class:`~segbatch.errors.InputError` if it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        import cv2  # takes 0.1 s to import

        cv2.utils.logging.setLogLevel(0)  # errors are reported below, in one line
        number = re.fullmatch(r"camera:(\d+)", source)
        self._capture = cv2.VideoCapture(int(number[1]) if number else source)
        if not self._capture.isOpened():
            raise InputError(f"{source}: no such camera, or another program uses it")
        self._newest: queue.Queue[av.VideoFrame | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self.num_read = 0
        self.reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self.reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        while self.reader.is_alive():
            self._drop_frame()
            self.reader.join(0.05)
        self._capture.release()

    def __iter__(self) -> Iterator[av.VideoFrame]:
        while (frame := self._newest.get()) is not None:
            yield frame

    def _read(self) -> None:
        started = time.monotonic()
        while not self._stopped.is_set():
            is_read, pixels = self._capture.read()
            if not is_read:
                break
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="bgr24")
            frame.pts = round((time.monotonic() - started) * 1000)
            frame.time_base = _MILLISECONDS
            self._drop_frame()
            self._newest.put(frame)
            self.num_read += 1
        self._newest.put(None)  # waits until the last frame is taken

    def _drop_frame(self) -> None:
        with suppress(queue.Empty):
            self._newest.get_nowait()


class Window:
    """A window that shows pictures. Raises ``InputError`` if there is no display."""

    def __init__(self, title: str) -> None:
        import tkinter

        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise InputError(
                "there is no display for a window; write a film with -o camera.mp4"
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
        """Show a picture; returns whether the window is still open."""
        from PIL import ImageTk

        self._shown = ImageTk.PhotoImage(picture)  # a reference, because Tk keeps none
        self._label.configure(image=self._shown)
        self._root.update()  # handles keys
        return self.is_open


class Recording:
    """Writes what a window would show into a film."""

    def __init__(self, film: Film) -> None:
        self.film = film

    def show(self, frame: av.VideoFrame, picture: Image.Image) -> bool:
        self.film.add([frame], [picture])
        return True
