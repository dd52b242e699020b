"""A camera's frames go the way of a video's. Here is none: OpenCV opens a file in its place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from segbatch.camera import Camera, Recording, Window, is_camera, predict_camera, watch
from segbatch.errors import InputError
from segbatch.film import Film
from segbatch.images.video import opened, upright
from segbatch.model.predict import load_model
from segbatch.overlays import Overlays
from tests.films import film


@pytest.mark.parametrize("source", ["camera:0", "camera:12", "/dev/video1"])
def test_a_camera_is_named_by_number_or_device(source: str) -> None:
    assert is_camera(source)


@pytest.mark.parametrize("source", ["camera", "camera:", "photos/camera:0", "s3://b/dev/video0"])
def test_anything_else_is_none(source: str) -> None:
    assert not is_camera(source)


def test_what_a_model_sees_in_a_camera_becomes_a_film(model_uri: str, tmp_path: Path) -> None:
    film(tmp_path / "camera.mp4", sound=None)
    output = tmp_path / "overlay.mp4"
    overlays = Overlays(load_model(model_uri, "cpu", threads=1))
    made = Film(output, "overlay.mp4", rate=None)
    with Camera(str(tmp_path / "camera.mp4")) as frames, made:
        num_frames = watch(frames, overlays, Recording(made))
    assert 1 <= num_frames <= 12
    with opened(str(output)) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == num_frames
    assert all(before.time < after.time for before, after in pairwise(shown))
    assert upright(shown[0]).shape == (48, 64, 3)


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


def test_without_a_display_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(InputError, match=r"no display .* -o camera\.mp4"):
        Window("camera:0")
