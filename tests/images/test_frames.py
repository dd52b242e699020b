"""Videos as images of a run: a row per frame, each read from its video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segbatch import storage
from segbatch.images import manifest
from segbatch.images.decode import decode
from segbatch.images.fetch import fetch
from segbatch.jobimages import Video, source_of
from segbatch.results.schema import RESERVED_COLUMNS
from tests.films import ODD_TIMES, STEADY, film

LIMITS = storage.ReadLimits()


def rows(tmp_path: Path, *sources: Any) -> pa.Table:
    """The frozen manifest of ``sources``."""
    frozen = manifest.freeze(
        [source_of(source) for source in sources],
        str(tmp_path / "run" / "manifest"),
        reserved=RESERVED_COLUMNS,
        leave_out=str(tmp_path / "run"),
    )
    [file] = frozen.files
    return manifest.read(str(tmp_path / "run" / "manifest"), file)


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


def test_images_alone_get_no_new_columns(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    table = rows(tmp_path, str(tmp_path / "photo.png"))
    assert table.column_names == ["image_id", "uri"]


def test_a_video_that_cannot_be_read_has_one_row_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table = rows(tmp_path, str(tmp_path / "broken.mp4"))
    assert table["frame"].to_pylist() == [None]
    decoded = decode(fetch(table, LIMITS), max_pixels=10, long_side=None, budget_bytes=10)
    assert decoded["error"].to_pylist() != [None]


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
