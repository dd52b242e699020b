"""A source that grows: the run says so, and takes the new images up behind the old ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from segbatch import storage
from segbatch.errors import Damaged, RunError, SourceError
from segbatch.jobs import segment as segment_module
from segbatch.jobs.segment import segment
from segbatch.results.audit import audit
from segbatch.results.log import entry_uri
from segbatch.run import Run, open_run
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.runs import rows_of, stats_of

pytestmark = pytest.mark.usefixtures("ray_address")


def assert_clean(run: Run) -> None:
    assert run.status == "complete"
    assert audit(open_run(run.uri), deep=True).exit_code == 0


@pytest.mark.parametrize("weeks", [1, pytest.param(5, marks=pytest.mark.long)])
def test_a_run_extended_every_week_has_each_image_once_under_its_first_id(
    s3: S3, model_uri: str, capsys: pytest.CaptureFixture[str], weeks: int
) -> None:
    root = s3.uri(f"weekly-{weeks}")
    work = job(f"{root}/photos/", model_uri, f"{root}/run")
    s3.put(f"{root}/photos/50.jpg", jpeg(0))
    run = segment(work)
    before = rows_of(run)
    for week in range(1, weeks + 1):
        s3.put(f"{root}/photos/{50 - week}.jpg", jpeg(week))
        s3.put(f"{root}/photos/{50 + week}.jpg", jpeg(week))
        segment(work)
        printed = capsys.readouterr().err
        assert "already complete; nothing to do" in printed
        assert f"the source has {1 + 2 * week} now: to add the new ones, run it again" in printed
        run = segment(work, extend=True)
        assert_clean(run)
    rows = rows_of(run)
    assert rows.slice(0, 1) == before
    names = [storage.name_of(uri) for uri in rows["uri"].to_pylist()]
    order = [50, *(50 + step for week in range(1, weeks + 1) for step in (-week, week))]
    assert names == [f"{number}.jpg" for number in order]
    assert stats_of(run)["image_id"].to_pylist() == list(range(1 + 2 * weeks))
    assert [e.rows for e in run.info.manifest.extensions] == [2] * weeks
    assert segment(work, extend=True).info.updated == run.info.updated
    assert "no new images: the run has all that the source has" in capsys.readouterr().err


@pytest.fixture
def grown(tmp_path: Path, model_uri: str) -> tuple[dict[str, Any], Path]:
    """A finished run of one image, in whose folder there are two now."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "b.jpg").write_bytes(jpeg(1))
    work = job(f"{photos}/", model_uri, str(tmp_path / "run"))
    segment(work)
    (photos / "a.jpg").write_bytes(jpeg(2))
    return work, tmp_path / "run"


def test_a_killed_extension_is_resumed_without_being_asked_for(
    grown: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folder = grown
    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "work_through", _killed)
        with pytest.raises(KeyboardInterrupt):
            segment(work, extend=True)
    interrupted = open_run(str(folder))
    assert audit(interrupted).missing_ids == [1]
    assert interrupted.sql("SELECT count(*) FROM images").fetchall() == [(1,)]
    run = segment(work)
    assert_clean(run)
    assert rows_of(run)["image_id"].to_pylist() == [0, 1]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_extended_run_is_repaired_from_the_newest_copy_of_its_list(
    grown: tuple[dict[str, Any], Path],
) -> None:
    work, folder = grown
    rows = rows_of(segment(work, extend=True))
    (folder / "run.json").write_bytes(b"{")
    shutil.rmtree(folder / "stats")
    with pytest.raises(Damaged):
        segment(work)
    run = segment(work, repair=True)
    assert_clean(run)
    assert rows_of(run) == rows

    log = run.log("rows")
    assert log is not None
    copies = [version for version, entry in log.entries.items() if "run" in entry.note]
    (folder / "run.json").write_bytes(b"{")
    for version in copies[1:]:
        Path(entry_uri(log.uri, version)).write_bytes(b"")
    files = sorted(folder.rglob("*.parquet"))
    with pytest.raises(RunError, match="which images were added cannot be proved"):
        segment(work, repair=True)
    assert sorted(folder.rglob("*.parquet")) == files


def test_new_images_that_cannot_be_read_leave_the_run_as_it_is(
    grown: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    work, _ = grown
    listing = tmp_path / "list.csv"
    listing.write_text(f"uri\n{tmp_path}/photos/b.jpg\n")
    work = {**work, "images": str(listing), "output": str(tmp_path / "listed")}
    segment(work)
    listing.write_text(f"uri\n{tmp_path}/photos/b.jpg\n{tmp_path}/gone.jpg\n")
    with pytest.raises(SourceError, match=re.escape("gone.jpg: not_found")):
        segment(work, extend=True)
    assert_clean(open_run(work["output"]))
    listing.unlink()
    assert segment(work).status == "complete"
