"""Overlays of a camera, without a camera: OpenCV opens a file or a network webcam instead.

Windows open on a virtual display (Xvfb).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import av
import pytest
from PIL import Image

from segbatch.errors import InputError
from segbatch.images.video import open_video, upright_pixels
from segbatch.model.predict import load_model
from segbatch.review.predict.camera import (
    Camera,
    Recording,
    Window,
    is_camera,
    predict_camera,
    show_overlays,
)
from segbatch.review.predict.film import Film
from segbatch.review.predict.overlays import FrameOverlays
from tests.films import film
from tests.webcam import webcam


@pytest.mark.parametrize("source", ["camera:0", "camera:12", "/dev/video1"])
def test_a_camera_is_named_by_number_or_device(source: str) -> None:
    assert is_camera(source)


@pytest.mark.parametrize("source", ["camera", "camera:", "photos/camera:0", "s3://b/dev/video0"])
def test_anything_else_is_not_a_camera(source: str) -> None:
    assert not is_camera(source)


def test_overlays_of_a_camera_become_a_film(model_uri: str, tmp_path: Path) -> None:
    film(tmp_path / "camera.mp4", sound=None)
    output = tmp_path / "overlay.mp4"
    overlays = FrameOverlays(load_model(model_uri, "cpu", threads=1))
    made = Film(output, "overlay.mp4", rate=None)
    with Camera(str(tmp_path / "camera.mp4")) as frames, made:
        num_frames = show_overlays(frames, overlays, Recording(made))
    assert 1 <= num_frames <= 12
    with open_video(str(output)) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == num_frames
    assert all(before.time < after.time for before, after in pairwise(shown))
    assert upright_pixels(shown[0]).shape == (48, 64, 3)


def test_a_slow_model_gets_the_newest_frame(tmp_path: Path) -> None:
    film(tmp_path / "camera.mp4", sound=None)
    with Camera(str(tmp_path / "camera.mp4")) as frames:
        reader = frames.reader
        while reader.is_alive() and frames.num_read < 12:
            reader.join(0.01)
        assert len(list(frames)) == 1


def test_a_camera_that_is_left_is_closed(tmp_path: Path) -> None:
    film(tmp_path / "camera.mp4", sound=None)
    with Camera(str(tmp_path / "camera.mp4")) as frames:
        next(iter(frames))
    assert not frames.reader.is_alive()


def test_no_camera_is_one_clear_line(model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="camera:77: no such camera"):
        predict_camera("camera:77", model_uri, str(tmp_path / "overlay.mp4"))
    assert not list(tmp_path.iterdir())


def test_a_film_of_a_camera_is_a_video(model_uri: str) -> None:
    with pytest.raises(InputError, match=r"overlay\.png: .*\.mp4"):
        predict_camera("camera:0", model_uri, "overlay.png")


def test_without_a_display_the_error_suggests_a_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(InputError, match=r"no display .* -o camera\.mp4"):
        Window("camera:0")


@pytest.fixture(scope="module")
def display() -> Iterator[None]:
    if shutil.which("Xvfb") is None:
        pytest.skip("there is no Xvfb here: apt-get install xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as answer, pytest.MonkeyPatch.context() as environment:
        environment.setenv("DISPLAY", f":{answer.readline().strip()}")
        yield
    server.terminate()
    server.wait()


class EndedWindow(Window):
    """A window that calls ``end`` after each picture: keys pressed before it has focus are lost."""

    def __init__(self, end: Callable[[Window], object]) -> None:
        super().__init__("camera")
        self._end = end

    def show(self, frame: av.VideoFrame, picture: Image.Image) -> bool:
        if super().show(frame, picture):
            self._root.focus_force()
            self._end(self)
        return self.is_open


ENDS: dict[str, Callable[[Window], object]] = {
    "q": lambda window: window._root.event_generate("<q>"),
    "Escape": lambda window: window._root.event_generate("<Escape>"),
    "closed": Window.close,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_window_shows_the_camera_until_it_is_ended(
    display: None, model_uri: str, end: str
) -> None:
    overlays = FrameOverlays(load_model(model_uri, "cpu", threads=1))
    with webcam((48, 64)) as url, Camera(url) as camera, EndedWindow(ENDS[end]) as window:
        assert show_overlays(camera, overlays, window) >= 1
        assert (window._shown.width(), window._shown.height()) == (64, 48)


def test_ctrl_c_ends_it(display: None, model_uri: str) -> None:
    def ctrl_c(window: Window) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    overlays = FrameOverlays(load_model(model_uri, "cpu", threads=1))
    with webcam((48, 64)) as url, Camera(url) as camera, EndedWindow(ctrl_c) as window:
        assert show_overlays(camera, overlays, window) == 1


def test_a_camera_that_is_switched_off_ends_it(display: None, model_uri: str) -> None:
    with webcam((48, 64), num_frames=5) as url:
        assert predict_camera(url, model_uri, None) >= 1
