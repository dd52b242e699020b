"""Audits find every kind of damage to a run, and report nothing else as damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from segbatch import storage
from segbatch.errors import Incomplete
from segbatch.results.audit import Audit
from segbatch.results.runinfo import read_info, write_info
from segbatch.results.table import Table
from segbatch.results.write import write_file
from segbatch.run import Run, open_run
from tests.conftest import EVERYTHING, S3, job


@pytest.fixture
def run(whole_run: Run, tmp_path: Path) -> Path:
    """A copy of a finished run of 21 images, to be damaged."""
    return Path(shutil.copytree(whole_run.uri, tmp_path / "run"))


def audited(run: Path | str, *, deep: bool = False) -> Audit:
    return open_run(str(run)).audit(deep=deep)


def table_of(run: Path, name: str = "rows") -> Table:
    table = Table.open(str(run / name))
    assert table is not None
    return table


def files_of(run: Path, name: str = "rows") -> list[Path]:
    return [run / name / file.name for file in table_of(run, name).files()]


def say_running(run: Path) -> None:
    info = read_info(str(run))
    assert info is not None
    write_info(str(run), info.model_copy(update={"status": "running"}))


def contents(run: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in run.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_an_intact_run_is_clean_and_an_audit_changes_nothing(run: Path) -> None:
    before = contents(run)
    result = audited(run, deep=True)
    assert result == Audit(str(run), "complete", images=21, rows=21)
    assert result.exit_code == 0
    assert contents(run) == before


def test_lost_rows_are_found_and_named(run: Path) -> None:
    table = table_of(run)
    [first, *_] = table.files()
    ids = pq.read_table(run / "rows" / first.name)["image_id"].to_pylist()
    table.commit(remove=[first])
    result = audited(run)
    assert (result.missing, result.missing_ids) == (len(ids), ids)
    assert result.exit_code == 1


def test_missing_rows_are_no_loss_before_the_run_is_finished(run: Path) -> None:
    table = table_of(run)
    table.commit(remove=table.files()[:1])
    say_running(run)
    result = audited(run, deep=True)
    assert result.missing > 0
    assert result.exit_code == 3


def test_an_id_that_is_there_twice_is_found_and_named(run: Path) -> None:
    table = table_of(run)
    rows = pq.read_table(files_of(run)[0]).slice(0, 1)
    table.commit([write_file(rows, table.uri, 1, "ok")])
    result = audited(run)
    assert (result.twice, result.twice_ids) == (1, rows["image_id"].to_pylist())
    assert result.exit_code == 1


def test_an_id_that_the_manifest_does_not_hold_is_found(run: Path) -> None:
    table = table_of(run)
    rows = pq.read_table(files_of(run)[0]).slice(0, 1)
    strange = rows.set_column(0, rows.schema.field("image_id"), [[21]])
    table.commit([write_file(strange, table.uri, 1, "ok")])
    result = audited(run)
    assert (result.unknown, result.twice) == (1, 0)
    assert result.exit_code == 1


@pytest.mark.parametrize("folder", ["rows", "stats"])
def test_a_file_that_is_gone_is_damage(run: Path, folder: str) -> None:
    victim = files_of(run, folder)[0]
    victim.unlink()
    result = audited(run, deep=True)
    assert result.damaged == [str(victim)]
    assert result.exit_code == 1


def test_a_truncated_file_is_found_without_a_deep_audit(run: Path) -> None:
    victim = files_of(run)[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    result = audited(run)
    assert result.damaged == [str(victim)]
    assert result.exit_code == 1


@pytest.mark.parametrize("folder", ["rows", "stats", "manifest"])
def test_a_deep_audit_finds_one_flipped_bit(run: Path, folder: str) -> None:
    victim = files_of(run, folder)[0] if folder != "manifest" else run / "manifest/00000.parquet"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    result = audited(run, deep=True)
    assert result.damaged == [str(victim)]
    assert result.exit_code == 1


def test_missing_statistics_are_damage_of_a_finished_run(run: Path) -> None:
    table = table_of(run, "stats")
    table.commit(remove=table.files())
    result = audited(run)
    assert result.damaged == [str(run / "stats")]


@pytest.mark.parametrize("folder", ["rows", "stats"])
def test_a_stray_file_is_named_and_deleted_by_running_again(
    run: Path, folder: str, whole_run: Run, model_uri: str, collection: Path
) -> None:
    from segbatch.jobs.segment import segment

    stray = run / folder / f"00000001-ok-{'0' * 32}.parquet"
    shutil.copy(files_of(run)[0], stray)
    result = audited(run, deep=True)
    assert result.uncommitted == [str(stray)]
    assert result.exit_code == 0, "no table refers to it, so no reader of the table sees it"
    before = contents(run)
    segment(job(f"{collection}/", model_uri, str(run), **EVERYTHING))
    assert contents(run).keys() == before.keys() - {str(stray)}
    assert audited(run, deep=True).uncommitted == []


def test_a_stray_file_of_a_newer_epoch_is_not_ours_to_delete(
    run: Path, model_uri: str, collection: Path
) -> None:
    from segbatch.jobs.segment import segment

    stray = run / "rows" / f"99999999-ok-{'0' * 32}.parquet"
    stray.write_bytes(b"of a driver that took over at this moment")
    (run / "rows" / "notes.parquet").write_bytes(b"nobody knows whose")
    segment(job(f"{collection}/", model_uri, str(run), **EVERYTHING))
    assert stray.exists()
    assert (run / "rows" / "notes.parquet").exists()


def test_a_storage_failure_during_an_audit_is_not_damage(s3: S3, whole_run: Run) -> None:
    uri = s3.uri("run")
    for file in storage.list_files(whole_run.uri):
        s3.put(uri + file.uri.removeprefix(whole_run.uri), storage.read_bytes(file.uri))
    assert audited(uri, deep=True).exit_code == 0
    victim = Path(files_of(Path(whole_run.uri))[0]).name
    faults: list[dict[str, Any]] = [
        {"part": victim, "status": 403, "code": "AccessDenied"},
        {"part": "manifest/", "status": 403, "code": "AccessDenied"},
        {"part": "stats/0", "status": 403, "code": "AccessDenied"},
    ]
    try:
        for fault in faults:
            s3.break_down(fault)
            with pytest.raises(Incomplete, match="audit stopped") as caught:
                audited(uri, deep=True)
            assert caught.value.exit_code == 3
    finally:
        s3.break_down()
    assert audited(uri, deep=True).exit_code == 0
