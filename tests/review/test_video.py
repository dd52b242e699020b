"""The overlay of a video has the same frames, times and sound."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segbatch import storage
from segbatch.cli.main import app
from segbatch.demo.facades.facades import render_facade
from segbatch.errors import Incomplete, InputError, JobFailed, SourceError
from segbatch.images.video import open_video, picture_stream, upright_pixels
from segbatch.masks.classes import Classes
from segbatch.masks.drawing import legend
from segbatch.model.patches import Pixels
from segbatch.model.predict import Model, load_model
from segbatch.review.predict.film import staged_file
from segbatch.review.predict.images import predict_files
from segbatch.review.predict.overlays import FrameOverlays
from segbatch.review.predict.videos import BATCH_FRAMES, predict_video, read_batches
from tests.conftest import S3
from tests.films import ODD_TIMES, STEADY, film

# Grey levels, for pictures that differ by 50: noise of encoding stays below the first. Outlines of
# one pixel, whose colours a video keeps at half resolution, add some more in such small frames.
ALIKE = 10
OUTLINES_ALIKE = 15


@pytest.fixture(scope="module")
def model(model_uri: str) -> Model:
    return load_model(model_uri, "cpu", threads=1)


@dataclass
class Seen:
    """The content of a video: pictures with their times in milliseconds, packets of sound."""

    pictures: list[Pixels]
    times: list[int]
    sound: list[bytes]
    sound_codecs: list[str]
    duration_ms: float
    stream: Any


def seen(uri: str | Path) -> Seen:
    with open_video(str(uri)) as container:
        stream = picture_stream(container)
        frames, sound = [], []
        for packet in container.demux():
            if packet.stream.index == stream.index:
                frames += stream.decode(packet)
            elif packet.size:
                sound.append(bytes(packet))
        return Seen(
            [upright_pixels(frame) for frame in frames],
            [round(frame.time * 1000) for frame in frames],
            sound,
            [each.codec_context.name for each in container.streams.audio],
            (container.duration or 0) / 1000,
            stream,
        )


def difference(ours: list[Pixels], theirs: list[Any]) -> float:
    """The largest mean difference between corresponding pictures, in grey levels."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a.astype(int) - np.asarray(b).astype(int)).mean()) for a, b in pairs)


@pytest.mark.parametrize(
    ("extension", "times", "size"),
    [
        ("mp4", STEADY, (48, 64)),
        ("mov", ODD_TIMES, (48, 64)),
        ("mkv", ODD_TIMES, (47, 63)),
        ("webm", ODD_TIMES, (47, 63)),
    ],
)
def test_an_overlay_has_the_frames_times_and_size_of_its_video(
    model: Model, tmp_path: Path, extension: str, times: tuple[int, ...], size: tuple[int, int]
) -> None:
    film(tmp_path / "clip.mp4", times, size=size)
    output = tmp_path / f"overlay.{extension}"
    assert predict_video(str(tmp_path / "clip.mp4"), model, str(output)) == len(times)
    given, made = seen(tmp_path / "clip.mp4"), seen(output)
    # Matroska begins at 0, and sound starts a little before the picture: everything is shifted.
    shift = made.times[0]
    assert shift < 45
    assert [time - shift for time in made.times] == list(times) == given.times
    assert made.duration_ms == pytest.approx(given.duration_ms, abs=90)  # a shift, a frame
    assert {picture.shape for picture in made.pictures} == {(*size, 3)}
    assert difference(made.pictures, FrameOverlays(model)(given.pictures)) < OUTLINES_ALIKE
    if extension == "webm":  # which takes no AAC
        assert made.sound_codecs == ["opus"]
    else:
        assert made.sound_codecs == ["aac"]
        assert made.sound == given.sound, "copied, not re-encoded"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "clip.mp4", output])


def test_sound_that_a_format_does_not_take_is_re_encoded_and_reported(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "clip.mkv", sound="pcm_s16le")
    predict_video(str(tmp_path / "clip.mkv"), model, str(tmp_path / "overlay.mp4"))
    assert seen(tmp_path / "overlay.mp4").sound_codecs == ["aac"]
    assert "sound is re-encoded: stream 1 is pcm_s16le" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(model: Model, tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", [0])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/overlay\.mp4: cannot be written"):
        predict_video(str(tmp_path / "clip.mp4"), model, f"{tmp_path}/file/overlay.mp4")


def test_where_a_film_cannot_be_uploaded_the_exit_code_says_whose_fault_it_is(s3: S3) -> None:
    def upload(output: str) -> None:
        with staged_file(output) as path:
            path.write_bytes(b"film")

    with pytest.raises(InputError, match="cannot write s3://no-such-bucket"):
        upload("s3://no-such-bucket/a.mp4")
    where = s3.uri("films") + "/a.mp4"
    s3.break_down({"method": "PUT", "part": "a.mp4", "status": 400, "code": "InternalError"})
    with pytest.raises(Incomplete, match="run it again"):
        upload(where)
    s3.break_down()
    upload(where)
    assert storage.read_bytes(where) == b"film"


def test_a_video_without_sound_has_none_afterwards(model: Model, tmp_path: Path) -> None:
    film(tmp_path / "clip.avi", sound=None, codec="mpeg4")
    predict_video(str(tmp_path / "clip.avi"), model, str(tmp_path / "overlay.mp4"))
    made = seen(tmp_path / "overlay.mp4")
    assert made.times == seen(tmp_path / "clip.avi").times
    assert not made.sound_codecs


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_video_that_players_turn_is_upright_for_the_model_and_for_the_eye(
    model: Model, tmp_path: Path, rotation: int
) -> None:
    pictures = film(tmp_path / "clip.mp4", STEADY[:3], sound=None, rotation=rotation)
    turned = [np.rot90(picture, rotation // 90) for picture in pictures]
    given = seen(tmp_path / "clip.mp4")
    assert difference(given.pictures, turned) < ALIKE
    predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "overlay.mp4"))
    made = seen(tmp_path / "overlay.mp4")
    assert difference(made.pictures, FrameOverlays(model)(given.pictures)) < OUTLINES_ALIKE
    with open_video(str(tmp_path / "overlay.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0, "it is not turned twice"


def test_colours_are_those_of_the_video(tmp_path: Path, model: Model) -> None:
    """Without an overlay, pictures come out as they went in."""

    class Nothing(FrameOverlays):
        def __call__(self, frames: Any) -> Any:
            return [Image.fromarray(frame) for frame in frames]

    film(tmp_path / "clip.mp4", sound=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segbatch.review.predict.videos.FrameOverlays", Nothing)
        predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "same.mp4"))
    given, made = seen(tmp_path / "clip.mp4"), seen(tmp_path / "same.mp4")
    assert difference(made.pictures, given.pictures) < ALIKE


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_video_that_is_cut_off_says_where_and_leaves_nothing(
    model: Model, tmp_path: Path, extension: str
) -> None:
    times = range(0, 6000, 400)
    film(tmp_path / f"whole.{extension}", times)
    data = (tmp_path / f"whole.{extension}").read_bytes()
    clip = tmp_path / f"clip.{extension}"
    clip.write_bytes(data[: len(data) // 2])
    output = tmp_path / "made" / "overlay.mp4"
    with pytest.raises(JobFailed, match=r"clip.*breaks at frame \d+ .* s in: .*nothing was writ"):
        predict_video(str(clip), model, str(output))
    assert not list(output.parent.iterdir())


def damage(clip: Path, num_bytes: int) -> None:
    """Put noise into the middle of a file."""
    data = clip.read_bytes()
    noise = np.random.default_rng(0).bytes(num_bytes)
    middle = len(data) // 2
    clip.write_bytes(data[:middle] + noise + data[middle + num_bytes :])


def test_damaged_frames_that_the_decoder_mends_are_said(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "clip.mp4", range(0, 800, 40), sound=None)
    damage(tmp_path / "clip.mp4", 200)
    assert predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "overlay.mp4")) == 20
    assert "damaged frames: 1, the first is 9" in capsys.readouterr().err


def test_a_video_that_breaks_in_the_middle_says_at_which_frame(
    model: Model, tmp_path: Path
) -> None:
    film(tmp_path / "clip.mp4", range(0, 800, 40), sound=None)
    damage(tmp_path / "clip.mp4", 4000)
    with pytest.raises(JobFailed, match=r"clip\.mp4: breaks at frame \d+ .*: Invalid data"):
        predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "overlay.mp4"))
    assert not (tmp_path / "overlay.mp4").exists()


def test_what_an_output_was_stays_where_a_video_cannot_be_read(
    model: Model, tmp_path: Path
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    (tmp_path / "overlay.mp4").write_bytes(b"of yesterday")
    with pytest.raises(SourceError, match=r"clip\.mp4: no video"):
        predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "overlay.mp4"))
    assert (tmp_path / "overlay.mp4").read_bytes() == b"of yesterday"


def test_a_playlist_opens_no_other_file(model: Model, tmp_path: Path) -> None:
    film(tmp_path / "secret.mp4")
    (tmp_path / "clip.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n")
    with pytest.raises(SourceError, match="no video"):
        predict_video(str(tmp_path / "clip.mp4"), model, str(tmp_path / "overlay.mp4"))


def test_memory_holds_one_batch_of_frames(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", range(0, 1000, 40))
    with open_video(str(tmp_path / "clip.mp4")) as container:
        sizes = [
            len(p.frames) for p in read_batches(container, picture_stream(container), "clip.mp4")
        ]
    assert sizes == [BATCH_FRAMES] * 3 + [1]


def test_videos_are_read_from_storage_and_written_to_it(
    model: Model, s3: S3, tmp_path: Path
) -> None:
    film(tmp_path / "clip.mp4")
    bucket = s3.uri("films")
    storage.write_bytes(f"{bucket}/clip.mp4", (tmp_path / "clip.mp4").read_bytes())
    predict_video(f"{bucket}/clip.mp4", model, f"{bucket}/made/overlay.mp4")
    assert seen(f"{bucket}/made/overlay.mp4").times == list(STEADY)
    with pytest.raises(SourceError, match=r"none\.mp4"):
        predict_video(f"{bucket}/none.mp4", model, str(tmp_path / "overlay.mp4"))


def test_a_folder_of_photographs_and_videos_becomes_a_folder_of_overlays(
    model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    [photo] = film(source / "deep" / "clip.MP4", [0], sound=None)
    Image.fromarray(photo).save(source / "photo.jpg")
    (source / "broken.mov").write_bytes(b"nothing")
    with pytest.raises(JobFailed, match="1 of 3"):
        predict_files(str(source), model_uri, str(tmp_path / "out"))
    assert "broken.mov: no video" in capsys.readouterr().err
    assert (tmp_path / "out" / "photo.png").exists()
    assert seen(tmp_path / "out" / "deep" / "clip.mp4").times == [0]


def test_overlays_lie_as_the_files_do_however_the_folder_is_written(
    model_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [b"a.jpg", b"a.png", b"deep/b.jpg", b"T\xfc.jpg", b"T\xe4.jpg", b"T\xf6.jpg"]
    for name in [*names, b"._a.jpg"]:
        path = Path(".cache/in", os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path, "PNG")
    assert predict_files(".cache/in", model_uri, "out") == len(names)
    made = {str(path.relative_to("out")) for path in Path("out").rglob("*.png")}
    assert len(made) == len(names)
    assert made >= {"a.png", "a.png.png", "deep/b.png"}
    assert capfd.readouterr().err == "left out 1 system file (._*)\n"


def test_overlays_inside_the_source_are_made_again_from_the_originals(
    model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Path("photos/overlays")
    names = {"a.png", "overlays-of-last-year/b.png"}
    for path in (folder / name for folder in (Path("photos"), made) for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
    assert predict_files("photos/", model_uri, str(tmp_path / made)) == len(names)
    assert {str(path.relative_to(made)) for path in made.rglob("*.*")} == names


def test_a_video_is_no_picture(model_uri: str, tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", [0])
    with pytest.raises(InputError, match=r"overlay\.png: a video is written as \.mp4"):
        predict_files(str(tmp_path / "clip.mp4"), model_uri, str(tmp_path / "overlay.png"))


def test_a_video_that_is_not_there_is_said(model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4: no such file"):
        predict_files(str(tmp_path / "none.mp4"), model_uri, str(tmp_path / "overlay.mp4"))
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(SourceError, match="no image and no video there"):
        predict_files(str(tmp_path), model_uri, str(tmp_path / "overlays"))


def test_no_original_is_written_over(model_uri: str, tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", [0])
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for source in (tmp_path, *before):
        with pytest.raises(InputError, match="is one of the originals"):
            predict_files(str(source), model_uri, f"{tmp_path}/")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_command_line_takes_a_video(model_uri: str, tmp_path: Path) -> None:
    film(tmp_path / "clip.mkv")
    arguments = [str(tmp_path / "clip.mkv"), "--model", model_uri, "-o", f"{tmp_path}/made/"]
    said = CliRunner().invoke(app, ["predict", *arguments])
    assert said.exit_code == 0
    assert "1 overlay in" in said.stderr
    assert seen(tmp_path / "made" / "clip.mp4").times == list(STEADY)


def test_outlines_alone_leave_the_photograph_as_it_is_elsewhere(
    model_uri: str, tmp_path: Path
) -> None:
    photograph = render_facade(3, 128).image
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    changed = {}
    for fill in ("0", "0.5"):
        output = tmp_path / f"overlay-{fill}.png"
        arguments = [str(tmp_path / "photo.png"), "--model", model_uri, "-o", str(output)]
        assert CliRunner().invoke(app, ["predict", *arguments, "--fill", fill]).exit_code == 0
        height, width, _ = photograph.shape
        drawn = np.asarray(Image.open(output).convert("RGB"))[:height, :width]
        changed[fill] = (drawn != photograph).any(2).mean()
    assert 0 < changed["0"] < 0.5 * changed["0.5"]


def test_a_legend_names_every_class_in_the_corner_of_every_frame(model: Model) -> None:
    dark, light = np.zeros((300, 400, 3), np.uint8), np.full((300, 400, 3), 255, np.uint8)
    sheet = legend(model.classes, (400, 300))
    assert sheet is not None
    pictures = [np.asarray(picture) for picture in FrameOverlays(model)([dark, light])]
    for picture in pictures:
        assert picture.shape == (300, 400, 3)
        corner = picture[-sheet.height :, : sheet.width]
        colors = {tuple(color) for color in corner.reshape(-1, 3).tolist()}
        assert {each.color for each in model.classes} <= colors


def test_a_legend_that_does_not_fit_is_left_out() -> None:
    assert legend(Classes([f"class {n}" for n in range(150)]), (1920, 1080)) is None
    assert legend(Classes(["wall", "window"]), (40, 30)) is None
