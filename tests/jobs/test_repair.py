"""Damage: cut or flip any byte of any file of a run. It is noticed, and repair mends it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from segbatch import storage
from segbatch.config.images import Manifest
from segbatch.config.job import SegmentJob, load_kind
from segbatch.errors import Damaged, Fenced, Incomplete, RunError
from segbatch.images import manifest
from segbatch.jobs.preflight import Prepared, Sizes, prepare
from segbatch.jobs.runstate import RunState, repair_run
from segbatch.jobs.segment import segment
from segbatch.jobs.stages import AllStages, Predicting, Stages, accounts_of
from segbatch.model.engine import EngineChoice
from segbatch.results import lease as lease_module
from segbatch.results.encode import Encoding
from segbatch.results.lease import Lease
from segbatch.results.ledger import Ledger
from segbatch.results.log import DeltaLog
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.results.table import Table
from segbatch.results.write import Account, Writing, write_file
from segbatch.run import Run, open_run
from tests.conftest import EVERYTHING, S3, job

SEED = 4


# ----------------------------------------------------------------------- a run that is made by hand


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Nobody takes the lease at the same moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "SETTLE_S", 0.0)
        yield


def nobody_else() -> None:
    """Holds the lease."""


@pytest.fixture(scope="module")
def work(model_uri: str, collection: Path) -> tuple[SegmentJob, Prepared]:
    asked = load_kind(job(f"{collection}/", model_uri, "unused", **EVERYTHING), SegmentJob)
    return asked, prepare(asked)


@pytest.fixture(scope="module")
def finished(work: tuple[SegmentJob, Prepared], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 21 images, with many commits, whose truncated images were retried."""
    asked, prepared = work
    run = tmp_path_factory.mktemp("damage") / "run"
    frozen = manifest.freeze(
        asked.sources, str(run / "manifest"), reserved=RESERVED_COLUMNS, leave_out=str(run)
    )
    RunState.new(str(run), asked, prepared, frozen).write("running")
    with Lease(str(run), print) as lease:
        state, ledger = opened(run, work, lease.driver)
        encoding = Encoding(prepared.config.classes, ledger.table.schema, prepared.formulas)
        predicting = Predicting(asked.model, prepared.options, "cpu", 2, True, True)
        writing = Writing(lease.worker_lease, ledger.epoch, ledger.table.schema, last_pass=True)
        stages = AllStages(Stages(prepared.reading, predicting, encoding, writing))
        for start in range(0, 21, 6):
            ids = np.arange(start, min(start + 6, 21))
            for account in accounts_of(stages.run(state.images_of(ids))):
                assert ledger.enter(account)
            ledger.commit()
        state.finish(ledger, asked)
    rows = rows_of(open_run(str(run)))
    read(run).reset_failed("another driver", ["truncated", "undecodable"])
    resume(run, work, rows)
    return run


@pytest.fixture(scope="module")
def rows(finished: Path) -> pa.Table:
    """What the rows of the run are."""
    return rows_of(open_run(str(finished)))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def opened(
    uri: Path | str, work: tuple[SegmentJob, Prepared], driver: str
) -> tuple[RunState, Ledger]:
    asked, prepared = work
    state = read(uri)
    state.refuse_damaged_logs()
    ledger = state.open_ledger(state.schema(asked, prepared.config.classes), driver)
    choice = EngineChoice("openvino", "fp32")
    state.begin_start(ledger, "cpu", choice, workers="1", sizes=Sizes(6, 6))
    return state, ledger


def resume(uri: Path | str, work: tuple[SegmentJob, Prepared], rows: pa.Table) -> None:
    """What ``segment`` does, where the images' rows are known already."""
    state = read(uri)
    if state.finished:
        state.close(work[0])
        return
    with Lease(str(uri), print) as lease:
        state, ledger = opened(uri, work, lease.driver)
        missing = ledger.taken.missing(0, state.num_images)
        for start in range(0, len(missing), 6):
            ids = missing[start : start + 6]
            chosen = rows.filter(pc.is_in(rows["image_id"], pa.array(ids)))
            assert state.images_of(ids)["uri"].to_pylist() == chosen["uri"].to_pylist()
            kinds = pc.fill_null(chosen["error"], "ok")
            for kind in pc.unique(kinds).to_pylist():
                mine = chosen.filter(pc.equal(kinds, kind))
                file = write_file(mine, ledger.table.uri, ledger.epoch, kind)
                assert ledger.enter(Account(kind, mine["image_id"].to_pylist(), file=file))
            ledger.commit()
        state.finish(ledger, work[0])


def repaired(uri: Path | str, work: tuple[SegmentJob, Prepared], rows: pa.Table) -> Run:
    repair_run(str(uri), *work, "repairing driver", nobody_else)
    resume(uri, work, rows)
    return open_run(str(uri))


def read(uri: Path | str) -> RunState:
    state = RunState.read(str(uri))
    assert state is not None
    return state


def rows_of(run: Run) -> pa.Table:
    """Every committed row, by its image, as who goes through the table reads them."""
    table = run.table("rows")
    assert table is not None
    files = [storage.join(table.uri, file.name) for file in table.files()]
    parts = [pq.read_table(pa.BufferReader(storage.read_bytes(file))) for file in files]
    return pa.concat_tables(parts).sort_by("image_id")


def stats_of(run: Run) -> pa.Table:
    table = run.table("stats")
    assert table is not None
    files = [storage.join(table.uri, file.name) for file in table.files()]
    parts = [pq.read_table(pa.BufferReader(storage.read_bytes(file))) for file in files]
    return pa.concat_tables(parts).drop_columns(["file", "file_row"])


def assert_whole(run: Run, rows: pa.Table) -> None:
    audit = run.audit(deep=True)
    assert (audit.exit_code, audit.rows, audit.uncommitted) == (0, 21, []), audit
    assert run.status == "complete"
    assert rows_of(run) == rows
    assert stats_of(run) == rows.drop_columns(["mask"])


def contents(run: Path) -> dict[str, bytes]:
    paths = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def damages(data: bytes, number: int) -> Iterator[bytes]:
    """``number`` copies with one byte changed, and as many cut short, at random places."""
    dice = random.Random(SEED)
    for _ in range(number):
        place = dice.randrange(len(data))
        yield data[:place] + bytes([data[place] ^ dice.randrange(1, 256)]) + data[place + 1 :]
        yield data[: dice.randrange(len(data))]


# ----------------------------------------------------------------------------------------- noticing


def test_a_run_that_was_retried_is_whole(run: Path, rows: pa.Table) -> None:
    assert_whole(open_run(str(run)), rows)
    log = open_run(str(run)).log("rows")
    assert log is not None
    assert log.version > 8, "otherwise the tests below say little"


def test_whichever_byte_is_changed_or_cut_it_is_noticed(
    run: Path,
) -> None:
    for name, whole in contents(run).items():
        for data in damages(whole, 3):
            (run / name).write_bytes(data)
            if name == "run.json":
                with pytest.raises(Damaged, match=r"run\.json: is damaged.*--repair"):
                    open_run(str(run))
            else:
                audit = open_run(str(run)).audit(deep=True)
                assert str(run / name) in audit.damaged
                if "rows/_delta_log" not in name:  # there, files that were removed may come back
                    assert len(audit.damaged) == 1
                assert audit.exit_code == 1
        (run / name).write_bytes(whole)
    assert open_run(str(run)).audit(deep=True).exit_code == 0


def test_every_byte_of_the_log_and_of_run_json_counts(run: Path) -> None:
    """Of the newest entry too, whose SHA-256 no other entry notes, but run.json."""
    noted = read(run).info.log["rows"]
    newest = max(map(int, noted))
    for version in (newest - 3, newest):
        path = run / "rows" / "_delta_log" / f"{version:020d}.json"
        whole = path.read_bytes()
        for place in range(0, len(whole), 37):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            log = DeltaLog.read(str(run / "rows"), noted)
            assert log is not None
            assert log.damaged == [version]
        path.write_bytes(whole)
    whole = (run / "run.json").read_bytes()
    for place in range(0, len(whole), 17):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        (run / "run.json").write_bytes(changed)
        with pytest.raises(Damaged):
            open_run(str(run))


def test_what_the_newest_entry_says_is_proved_without_a_hash_of_it(run: Path) -> None:
    """Of a run that is not finished: nothing notes the SHA-256 of the newest entry yet."""
    path = sorted((run / "rows" / "_delta_log").glob("*.json"))[-2]
    newest = int(path.stem)
    (path.parent / f"{newest + 1:020d}.json").unlink()
    whole = path.read_text()
    changes = {
        "-truncated-": "-truncaTed-",
        "numRecords": "numrecords",
        '"size":': '"size":1',
        '"log"': '"lag"',
        '"add"': '"adb"',
    }
    for old, new in changes.items():
        assert old in whole, whole
        path.write_text(whole.replace(old, new, 1))
        log = DeltaLog.read(str(run / "rows"), {})
        assert log is not None
        assert log.damaged == [newest]


# ---------------------------------------------------------------------------------------- repairing


def test_any_file_that_is_damaged_is_moved_away_and_the_run_is_whole_again(
    run: Path, finished: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    for name, whole in contents(run).items():
        shutil.rmtree(run)
        shutil.copytree(finished, run)
        [_, cut, changed, *_] = damages(whole, 2)
        for data in (cut, changed):
            (run / name).write_bytes(data)
            mended = repaired(run, work, rows)
            assert_whole(mended, rows)
            kept = [p.read_bytes() for p in (run / "quarantine").rglob("*") if p.is_file()]
            assert data in kept, name
            if not (run / name).exists():
                break


def test_several_damages_at_once_are_mended_together(
    run: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    for name, whole in contents(run).items():
        if "_delta_log/0000000000000000000" in name or name.startswith("stats/0"):
            [changed, cut] = damages(whole, 1)
            (run / name).write_bytes(changed if "1.json" in name else cut)
    next((run / "rows").glob("*-ok-*.parquet")).unlink()
    assert_whole(repaired(run, work, rows), rows)


def test_a_run_without_its_run_json_is_made_again_from_its_log(
    run: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(run).info
    (run / "run.json").unlink()
    with pytest.raises(Damaged, match=r"it is gone.*--repair"):
        read(run)
    mended = repaired(run, work, rows)
    assert_whole(mended, rows)
    same = ("run_id", "created", "job", "identity", "model", "manifest", "precision", "counts")
    before_json, after_json = before.to_json(), mended.info.to_json()
    assert {key: after_json[key] for key in same} == {key: before_json[key] for key in same}
    assert not (run / "quarantine").exists()


def test_each_thing_that_was_found_is_said_in_one_line(
    run: Path, work: tuple[SegmentJob, Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(whole[:-5])
    (run / "manifest" / "00000.parquet").write_bytes(b"")
    victim = next((run / "stats").glob("*.parquet"))
    victim.unlink()
    repair_run(str(run), *work, "driver", nobody_else)
    assert capsys.readouterr().err.splitlines() == [
        "run.json: is damaged; moved to quarantine/run.json",
        "manifest/00000.parquet: is damaged; moved to quarantine/manifest/00000.parquet",
        f"stats/{victim.name}: is gone",
        "manifest/00000.parquet: rebuilt from the rows",
    ]


def test_a_whole_run_is_left_as_it_is(
    run: Path,
    finished: Path,
    work: tuple[SegmentJob, Prepared],
    rows: pa.Table,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repaired(run, work, rows)
    assert "nothing is damaged" in capsys.readouterr().err
    assert contents(run) == contents(finished)


def test_what_cannot_be_proved_any_more_is_refused_and_nothing_is_changed(
    run: Path, work: tuple[SegmentJob, Prepared]
) -> None:
    first = run / "rows" / "_delta_log" / f"{0:020d}.json"
    listed = run / "manifest" / "00000.parquet"
    for damaged in ([listed, next((run / "rows").glob("*-ok-*"))], [run / "run.json", first]):
        wholes = {path: path.read_bytes() for path in damaged}
        for path, whole in wholes.items():
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        before = contents(run)
        with pytest.raises(RunError, match=r"cannot be proved any more: choose a new output"):
            repair_run(str(run), *work, "driver", nobody_else)
        assert contents(run) == before
        for path, whole in wholes.items():
            path.write_bytes(whole)


def test_another_jobs_run_is_not_repaired(run: Path, work: tuple[SegmentJob, Prepared]) -> None:
    (run / "run.json").write_bytes(b"{")
    before = contents(run)
    other = work[0].model_copy(update={"masks": "none"})
    with pytest.raises(RunError, match="masks was original and is none now"):
        repair_run(str(run), other, work[1], "driver", nobody_else)
    assert contents(run) == before


def test_a_torn_beginning_starts_over(tmp_path: Path, work: tuple[SegmentJob, Prepared]) -> None:
    (tmp_path / "run.json").write_text('{"form')
    with pytest.raises(Damaged):
        RunState.read(str(tmp_path))
    repair_run(str(tmp_path), *work, "driver", nobody_else)
    assert RunState.read(str(tmp_path)) is None
    assert contents(tmp_path) == {"quarantine/run.json": b'{"form'}


# ---------------------------------------------------------------- drivers that meet what is damaged


def test_a_driver_commits_and_deletes_nothing_where_a_log_is_damaged(
    run: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    for table in ("rows", "stats"):
        entry = run / table / "_delta_log" / f"{2:020d}.json"
        whole = entry.read_bytes()
        entry.write_bytes(whole.replace(b'"path":"0', b'"path":"1', 1))
        before = contents(run)
        with pytest.raises(Damaged, match=rf"{table}.*2\.json: is damaged.*run JOB --repair"):
            resume(run, work, rows)  # which deletes what no table holds
        state = read(run)
        with state.note_end(), pytest.raises(Damaged):
            state.refuse_damaged_logs()
        assert contents(run) == before
        entry.write_bytes(whole)


def test_a_driver_does_not_take_a_damaged_file_for_a_whole_one(
    run: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    """Page by page, as it reads them: for the ids it resumes from, and for the statistics."""
    state = read(run)
    state.write("running")
    table = Table.open(str(run / "rows"))
    assert table is not None
    [victim] = [file for file in table.files() if "-not_found-" in file.name] or table.files()[:1]
    path = run / "rows" / victim.name
    whole = path.read_bytes()
    pages = pq.ParquetFile(path).metadata.row_group(0)
    places = [pages.column(index).data_page_offset for index in range(pages.num_columns)]
    place = places[1] + 40  # a URI
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(Damaged, match=rf"{victim.name}: is damaged.*--repair"):
        resume(run, work, rows)
    path.write_bytes(whole[:-50])
    with pytest.raises(Damaged, match=rf"{victim.name}: is damaged.*--repair"):
        resume(run, work, rows)
    assert_whole(repaired(run, work, rows), rows)


def test_a_manifest_that_is_not_what_was_frozen_is_not_read(run: Path) -> None:
    listed = run / "manifest" / "00000.parquet"
    images = pq.read_table(listed)
    pq.write_table(images.set_column(1, "uri", images["uri"].take(list(range(20, -1, -1)))), listed)
    with pytest.raises(Damaged, match=r"manifest/00000\.parquet: is damaged.*--repair"):
        read(run).images_of(np.arange(3))


def test_a_checkpoint_that_does_not_fit_the_log_is_moved_away(
    run: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    """None of them is ours: other programs make them, and readers go by them."""
    table = DeltaTable(str(run / "rows"))
    table.create_checkpoint()
    assert open_run(str(run)).audit(deep=True).exit_code == 0
    [checkpoint] = (run / "rows" / "_delta_log").glob("*.checkpoint.parquet")
    older = DeltaTable(str(run / "rows"), version=5)
    checkpoint.unlink()
    older.create_checkpoint()
    next((run / "rows" / "_delta_log").glob("*.checkpoint.parquet")).rename(checkpoint)
    audit = open_run(str(run)).audit()
    assert str(checkpoint) in audit.damaged
    assert_whole(repaired(run, work, rows), rows)
    assert list((run / "rows" / "_delta_log").glob("*checkpoint*")) == []


# ------------------------------------------------------------------------------ storage that fails


def test_storage_that_fails_while_looking_changes_nothing(
    s3: S3, finished: Path, work: tuple[SegmentJob, Prepared], rows: pa.Table
) -> None:
    uri = s3.uri("run")
    for name, data in contents(finished).items():
        s3.put(f"{uri}/{name}", data)
    victim = next((finished / "rows").glob("*-ok-*.parquet")).name
    s3.put(f"{uri}/rows/{victim}", b"damaged")
    before = {file.uri: file.size for file in storage.list_files(uri)}
    refused = {"status": 403, "code": "AccessDenied"}
    try:
        for part in (
            "run.json",
            "manifest/",
            "rows/0",
            "rows/_delta_log/00000000000000000003",
            "stats/0",
        ):
            s3.break_down({"part": part, **refused})
            with pytest.raises((Incomplete, OSError)) as caught:
                repair_run(uri, *work, "driver", nobody_else)
            assert not isinstance(caught.value, RunError)
            s3.break_down()
            assert {file.uri: file.size for file in storage.list_files(uri)} == before
    finally:
        s3.break_down()
    assert_whole(repaired(uri, work, rows), rows)
    assert storage.read_bytes(f"{uri}/quarantine/rows/{victim}") == b"damaged"


def test_a_log_that_storage_does_not_give_is_not_taken_for_a_damaged_one(
    s3: S3, finished: Path
) -> None:
    uri = s3.uri("rows")
    for name, data in contents(finished / "rows").items():
        s3.put(f"{uri}/{name}", data)
    table = Table.open(uri)
    assert table is not None
    try:
        for status, code in ((403, "AccessDenied"), (404, "NoSuchBucket"), (400, "ExpiredToken")):
            s3.break_down({"part": "_delta_log", "status": status, "code": code})
            for look in (lambda: Table.open(uri), lambda: DeltaLog.read(uri, {}), table.commit):
                with pytest.raises(OSError, match=uri):
                    look()
    finally:
        s3.break_down()
    version = table.version
    assert table.commit() == version + 1


# ------------------------------------------------------------------------------- torn beginnings


def frozen(run: Path, images: list[str], **options: Any) -> manifest.FrozenManifest:
    source = run.parent / "list.csv"
    source.write_text("\n".join(["uri", *images]))
    return manifest.freeze(
        [Manifest(manifest=str(source))],
        str(run / "manifest"),
        reserved=RESERVED_COLUMNS,
        leave_out=str(run),
        **options,
    )


def test_a_beginning_that_was_torn_never_lets_ids_point_at_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver is killed while it freezes the list, which is another one at the next start."""
    monkeypatch.setattr("segbatch.images.manifest.ROWS_PER_FILE", 4)
    run = tmp_path / "run"
    frozen(run, [f"old-{number}.jpg" for number in range(14)])  # its run.json is never written
    assert len(list((run / "manifest").iterdir())) == 4
    images = [f"new-{number}.jpg" for number in range(6)]
    again = frozen(run, images)
    assert [file.name for file in again.files] == ["00000.parquet", "00001.parquet"]
    plain = pq.read_table(run / "manifest").sort_by("image_id")
    assert plain["uri"].to_pylist() == images
    for file in again.files:
        read_back = manifest.read_rows(str(run / "manifest"), file).to_pylist()
        assert all(row["uri"] == images[row["image_id"]] for row in read_back)


def test_a_driver_that_slept_while_it_froze_leaves_the_next_ones_list_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segbatch.images.manifest.ROWS_PER_FILE", 4)
    run = tmp_path / "run"
    asked = count()
    newer: dict[str, bytes] = {}

    def confirm() -> None:
        if next(asked) == 1:  # it has written one file; meanwhile another driver took over
            frozen(run, ["new-0.jpg", "new-1.jpg"])
            newer.update(contents(run))
        if newer:
            raise Fenced("taken over")

    with pytest.raises(Fenced):
        frozen(run, [f"old-{number}.jpg" for number in range(14)], confirm=confirm)
    assert contents(run) == newer


# -------------------------------------------------------------------------------- with everything


def test_a_damaged_run_is_mended_by_running_its_job_with_repair(
    whole_run: Run, model_uri: str, collection: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole_run.uri, tmp_path / "run"))
    (run / "run.json").write_bytes((run / "run.json").read_bytes()[:-1])
    victim = next((run / "rows").glob("*-ok-*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-7])
    statistics = next((run / "stats").glob("*.parquet"))
    statistics.unlink()
    again = job(f"{collection}/", model_uri, str(run), **EVERYTHING)
    with pytest.raises(Damaged) as caught:
        segment(again)
    assert caught.value.exit_code == 2
    mended = segment(again, repair=True)
    audit = mended.audit(deep=True)
    assert (audit.exit_code, audit.rows, audit.uncommitted) == (0, 21, [])
    same = ["image_id", "uri", "status", "error", "width", "height"]
    assert rows_of(mended).select(same) == rows_of(whole_run).select(same)
    kept = {str(path.relative_to(run)) for path in (run / "quarantine").rglob("*.*")}
    assert kept == {"quarantine/run.json", f"quarantine/rows/{victim.name}"}
