"""Videos as images of a run: a row per frame, each read from its video."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from av.audio.stream import AudioStream
from PIL import Image

from segbatch import storage
from segbatch.config.images import Glob, Video, parse_source
from segbatch.images import manifest
from segbatch.images.decode import decode
from segbatch.images.faults import HEAD_BYTES, is_video
from segbatch.images.fetch import fetch
from segbatch.images.place import Part, parts_of
from segbatch.images.video import _sampled, frame_times, frame_uri, read_frames
from segbatch.results.schema import RESERVED_COLUMNS
from tests.collection import jpeg
from tests.conftest import S3
from tests.films import ODD_TIMES, STEADY, film

LIMITS = storage.ReadLimits()


def rows(tmp_path: Path, *sources: Any) -> pa.Table:
    """The frozen manifest of ``sources``."""
    frozen = manifest.freeze(
        [parse_source(source) for source in sources],
        str(tmp_path / "run" / "manifest"),
        reserved=RESERVED_COLUMNS,
        leave_out=str(tmp_path / "run"),
    )
    [file] = frozen.files
    return manifest.read_rows(str(tmp_path / "run" / "manifest"), file)


def pictures(table: pa.Table) -> list[np.ndarray[Any, Any]]:
    fetched = fetch(table, LIMITS)
    decoded = decode(fetched, max_pixels=10**6, long_side=None, budget_bytes=10**8).to_pylist()
    return [
        np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)
        for row in decoded
    ]


def test_a_video_has_a_row_for_each_of_its_frames(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", ODD_TIMES)
    table = rows(tmp_path, str(tmp_path / "clip.mp4"))
    assert table["frame"].to_pylist() == list(range(len(ODD_TIMES)))
    assert table["time_s"].to_pylist() == pytest.approx([time / 1000 for time in ODD_TIMES])
    assert table["uri"][3].as_py() == f"{tmp_path}/clip.mp4#t=0.200"
    assert table.schema.field("frame").type == pa.int64()
    assert table.schema.field("time_s").type == pa.float64()


@pytest.mark.parametrize("part", [slice(0, 12), slice(5, 9), slice(11, 12)])
def test_each_row_gives_its_own_frame_wherever_a_block_begins(tmp_path: Path, part: slice) -> None:
    shown = film(tmp_path / "clip.mp4", STEADY)[part]
    table = rows(tmp_path, {"video": str(tmp_path / "clip.mp4")})
    for ours, theirs in zip(pictures(table[part]), shown, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 10


def test_a_folder_of_videos_and_single_images_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "drives").mkdir()
    film(tmp_path / "drives" / "a.mkv", STEADY[:2], sound=None)
    film(tmp_path / "drives" / "b.mp4", STEADY[:3], sound=None)
    (tmp_path / "photo.png").write_bytes(b"")
    table = rows(tmp_path, {"video": f"{tmp_path}/drives/"}, str(tmp_path / "photo.png"))
    assert table["frame"].to_pylist() == [0, 1, 0, 1, 2, None]
    assert len(pictures(table[:5])) == 5


def test_a_manifest_of_videos_repeats_its_columns(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", STEADY, sound=None)
    (tmp_path / "drives.csv").write_text(f"uri,city\n{tmp_path}/a.mp4,Bern\n")
    table = rows(tmp_path, Video(video=str(tmp_path / "drives.csv"), every=0.2))
    assert table["frame"].to_pylist() == [0, 5, 10]
    assert table["city"].to_pylist() == ["Bern"] * 3


@pytest.mark.parametrize(
    ("every", "rate"), [(0.1, 10), (0.2, 5), (0.05, 20), (0.04, 25), (1.0, 1), (1 / 30, 30)]
)
def test_an_interval_as_long_as_a_frame_takes_every_frame(every: float, rate: int) -> None:
    times = [number / rate for number in range(1000)]
    assert _sampled(times, every) == list(range(1000))
    assert _sampled(times, 10 * every) == list(range(0, 1000, 10))


def test_a_frame_before_the_beginning_is_in_an_interval_of_its_own() -> None:
    assert _sampled([-0.04, 0.0, 0.5, 1.0], 1.0) == [0, 1, 3]


def test_images_alone_get_no_new_columns(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    table = rows(tmp_path, str(tmp_path / "photo.png"))
    assert table.column_names == ["image_id", "uri"]


def test_a_video_that_cannot_be_read_has_one_row_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table = rows(tmp_path, str(tmp_path / "broken.mp4"))
    assert table["uri"].to_pylist() == [f"{tmp_path}/broken.mp4#t=0"]
    assert table["frame"].to_pylist() == [None]
    decoded = decode(fetch(table, LIMITS), max_pixels=10, long_side=None, budget_bytes=10)
    assert decoded["error"].to_pylist() == ["undecodable"]
    assert "no video" in decoded["message"][0].as_py()
    # Whoever mends it gets no run that calls itself complete with one frame of it.
    film(tmp_path / "broken.mp4", range(0, 400, 40), sound=None)
    fetched = fetch(table, LIMITS)
    assert fetched["error"].to_pylist() == ["undecodable"]
    assert "can be read now" in fetched["message"][0].as_py()
    # Runs of earlier versions have the frame at the beginning there.
    earlier = table.set_column(1, "uri", pa.array([f"{tmp_path}/broken.mp4#t=0.000"]))
    assert fetch(earlier, LIMITS)["error"].to_pylist() == [None]


def test_a_video_with_nothing_but_sound_is_not_said_to_be_listed_wrongly(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as made:
        tone = made.add_stream("aac", 48_000)
        assert isinstance(tone, AudioStream)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.float32), "fltp", "mono")
        samples.sample_rate = 48_000
        made.mux(tone.encode(samples))
        made.mux(tone.encode(None))
    [row] = fetch(rows(tmp_path, str(tmp_path / "sound.mp4")), LIMITS).to_pylist()
    assert row["error"] == "undecodable"
    assert "only sound" in row["message"]


@pytest.mark.parametrize("name", ["a.jpg#t=1.000", "a.mov", "a.ts", "a#t=1.jpg"])
def test_a_photograph_may_be_called_like_a_video_or_a_frame(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "list.csv").write_text(f"uri\n{tmp_path}/{name}\n")
    [picture] = pictures(rows(tmp_path, str(tmp_path / "list.csv")))
    assert picture.ndim == 3


def test_photographs_among_the_videos_of_a_glob_stay_photographs(tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "a.jpg").write_bytes(jpeg(1))
    film(tmp_path / "card" / "b.mp4", STEADY[:2], sound=None)
    table = rows(tmp_path, {"video": f"{tmp_path}/card/*"})
    assert table["frame"].to_pylist() == [None, 0, 1]
    assert table["uri"][0].as_py() == f"{tmp_path}/card/a.jpg"
    assert len(pictures(table)) == 3


@pytest.mark.parametrize("every", [None, 5.0])
def test_a_video_that_breaks_off_has_a_row_that_says_so(
    tmp_path: Path, every: float | None
) -> None:
    film(tmp_path / "whole.mp4", range(0, 4000, 40), sound=None)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) // 2])
    table = rows(tmp_path, {"video": str(tmp_path / "clip.mp4"), "every": every})
    assert 2 <= len(table) < 100
    fetched = fetch(table, LIMITS).to_pylist()
    assert fetched[0]["error"] is None
    assert fetched[-1]["error"] == "truncated"
    assert fetched[-1]["message"] == "the video breaks off before this frame"


@pytest.mark.parametrize("extension", ["ts", "vob"])
def test_joined_recordings_are_a_row_that_says_so(tmp_path: Path, extension: str) -> None:
    parts = [tmp_path / f"{name}.{extension}" for name in ("short", "long")]
    for path, frames in zip(parts, (30, 45), strict=True):
        film(path, range(0, 40 * frames, 40), sound=None)
        assert len(frame_times(str(path))[0]) == frames
    joined = tmp_path / f"all [1].{extension}"
    for first, second in (parts, parts[::-1]):
        joined.write_bytes(first.read_bytes() + second.read_bytes())
        table = rows(tmp_path, {"video": str(joined)})
        assert table["uri"].to_pylist() == [f"{joined}#t=0"]
        [row] = fetch(table, LIMITS).to_pylist()
        assert row["error"] == "undecodable"
        assert "joined byte by byte" in row["message"]
        assert f"ffmpeg -i 'all [1].{extension}' -map" in row["message"]


def test_a_block_opens_its_video_once_and_reads_it_in_few_requests(tmp_path: Path, s3: S3) -> None:
    film(tmp_path / "clip.mp4", range(0, 4000, 40))
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    video = f"{s3.uri('films')}/clip.mp4"
    storage.write_bytes(video, data)
    table = rows(tmp_path, video)
    data[len(data) // 2 : len(data) // 2 + 4000] = np.random.default_rng(0).bytes(4000)
    for content in (bytes(data), data[: len(data) // 2]):  # damaged, cut off
        storage.write_bytes(video, bytes(content))
        s3.break_down()  # also resets the counts of requests
        fetched = fetch(table[40:80], LIMITS)
        assert 0 < fetched["error"].null_count <= 40
        assert sum(s3.requests("HEAD", "clip.mp4").values()) == 1, "it asks for its size each time"
        assert sum(s3.requests("GET", "clip.mp4").values()) < 10


def test_sound_that_goes_on_after_the_picture_is_no_break(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", [*STEADY, 9000])  # and the sound with it
    assert frame_times(str(tmp_path / "clip.mp4"))[1] is None


@pytest.mark.parametrize("name", ["clip", "CLIP.MTS", "clip.bin"])
@pytest.mark.parametrize("place", ["here", "s3"])
def test_a_video_may_have_any_name(tmp_path: Path, s3: S3, name: str, place: str) -> None:
    film(tmp_path / "made.ts", STEADY[:2], sound=None)
    data = (tmp_path / "made.ts").read_bytes()
    video = f"{s3.uri('films') if place == 's3' else tmp_path}/{name}"
    storage.write_bytes(video, data)
    for source in (video, video[:-1] + "*"):
        table = rows(tmp_path, {"video": source})
        assert table["frame"].to_pylist() == [0, 1]
        assert len(pictures(table)) == 2
    (tmp_path / "list.csv").write_text(f"uri\n{video}\n")
    assert len(rows(tmp_path, {"video": str(tmp_path / "list.csv")})) == 2


def test_an_address_with_a_signature_is_the_video_that_it_names() -> None:
    assert parse_source("https://host/clip.AVI?sig=a.jpg") == Video(
        video="https://host/clip.AVI?sig=a.jpg"
    )
    assert parse_source("https://host/photo.jpg?sig=a.avi") == Glob(
        glob="https://host/photo.jpg?sig=a.avi"
    )


def test_a_video_among_photographs_is_a_failed_row_that_says_what_to_write(
    tmp_path: Path,
) -> None:
    film(tmp_path / "clip.mp4", STEADY[:2], sound=None)
    film(tmp_path / "other.ts", STEADY[:8], sound=None)
    (tmp_path / "clip").write_bytes((tmp_path / "other.ts").read_bytes())
    (tmp_path / "list.csv").write_text(f"uri\n{tmp_path}/clip.mp4\n{tmp_path}/clip\n")
    fetched = fetch(rows(tmp_path, str(tmp_path / "list.csv")), LIMITS)
    decoded = decode(fetched, max_pixels=10, long_side=None, budget_bytes=10).to_pylist()
    for row in decoded:
        assert row["error"] == "unsupported"
        assert "images: {video: …}" in row["message"]


def test_a_video_among_photographs_is_read_no_further_than_photographs_are(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", STEADY, sound=None)
    table = pa.table({"uri": [f"{tmp_path}/clip.mp4"]})
    assert fetch(table, storage.ReadLimits(max_bytes=1000))["error"].to_pylist() == ["too_large"]


@pytest.mark.parametrize(
    "extension", ["mp4", "mov", "mkv", "avi", "ts", "m2ts", "wmv", "flv", "f4v", "3gp"]
)
def test_a_video_is_known_by_its_beginning(tmp_path: Path, extension: str) -> None:
    film(tmp_path / f"clip.{extension}", STEADY[:2], sound=None)
    assert is_video((tmp_path / f"clip.{extension}").read_bytes()[:HEAD_BYTES])


def test_a_frame_that_cannot_be_decoded_is_a_failed_row(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", range(0, 800, 40), sound=None)
    table = rows(tmp_path, str(tmp_path / "clip.mp4"))
    data = (tmp_path / "clip.mp4").read_bytes()
    middle = len(data) // 2
    noise = np.random.default_rng(0).bytes(4000)
    (tmp_path / "clip.mp4").write_bytes(data[:middle] + noise + data[middle + 4000 :])
    errors = fetch(table, LIMITS)["error"].to_pylist()
    assert set(errors) == {None, "undecodable"}
    assert errors[0] is None
    (tmp_path / "clip.mp4").unlink()
    assert set(fetch(table, LIMITS)["error"].to_pylist()) == {"not_found"}


@pytest.mark.parametrize(("container", "codec"), [("h264", "libx264"), ("hevc", "libx265")])
@pytest.mark.parametrize("part", [slice(None), slice(7, 9), slice(11, None)])
def test_a_stream_without_time_stamps_has_all_its_frames(
    tmp_path: Path, container: str, codec: str, part: slice
) -> None:
    path = tmp_path / f"camera.{container}"
    pictures = [np.full((64, 96, 3), 20 * number, np.uint8) for number in range(12)]
    with av.open(str(path), "w", format=container) as made:
        stream = made.add_stream(codec, 10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in pictures:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        made.mux(stream.encode())
    times, ends = frame_times(str(path))
    assert times == [number / 10 for number in range(12)]
    assert ends is None
    parts = [Part(frame_uri(str(path), time)) for time in times][part]
    for png, picture in zip(read_frames(parts), pictures[part], strict=True):
        assert isinstance(png, bytes)
        pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
        assert abs(pixels - picture).max() < 8


def test_frames_are_compressed_once_there_is_no_room_for_their_pixels(tmp_path: Path) -> None:
    [shown, *_] = film(tmp_path / "clip.mp4", STEADY[:4], sound=None)
    parts = parts_of(rows(tmp_path, str(tmp_path / "clip.mp4")))
    compressed, mixed = read_frames(parts), read_frames(parts, raw_bytes=2 * shown.size)
    pictures = []
    for files in zip(compressed, mixed, strict=True):
        opened = [Image.open(io.BytesIO(data)) for data in files if isinstance(data, bytes)]
        assert np.array_equal(*map(np.asarray, opened))
        pictures.append([picture.format for picture in opened])
    assert pictures == 2 * [["PNG", "PPM"]] + 2 * [["PNG", "PNG"]]
