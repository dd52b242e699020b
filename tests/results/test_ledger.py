"""The ledger and its table: each id is committed once, by one driver at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from segbatch.errors import Damaged, Fenced
from segbatch.masks.classes import Classes
from segbatch.results.ledger import IdSet, Ledger
from segbatch.results.schema import FAILED, OK, rows_schema
from segbatch.results.table import Table, epoch_of, kind_in_name
from segbatch.results.write import Account, write_file

SCHEMA = rows_schema(Classes(["wall", "window"]))


def rows_of(ids: list[int], error: str | None = None) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "image_id": pa.array(ids, pa.int64()),
        "uri": pa.array([f"s3://b/{image_id}.jpg" for image_id in ids]),
        "status": pa.array([OK if error is None else FAILED] * len(ids)),
        "error": pa.array([error] * len(ids), pa.string()),
    }
    arrays = [columns.get(f.name, pa.nulls(len(ids), f.type)) for f in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "rows")
    return str(request.getfixturevalue("s3").uri("rows"))


def written(ledger: Ledger, ids: list[int], error: str | None = None) -> Account:
    kind = error or OK
    file = write_file(rows_of(ids, error), ledger.table.uri, ledger.epoch, kind)
    return Account(kind, ids, file=file)


def reopened(uri: str) -> Table:
    table = Table.open(uri)
    assert table is not None
    return table


def committed_ids(uri: str) -> list[int]:
    dataset = reopened(uri)._delta.to_pyarrow_dataset()
    return sorted(dataset.to_table(columns=["image_id"])["image_id"].to_pylist())


def test_an_id_set_is_a_set_of_ids() -> None:
    taken = IdSet(1001)
    ids = np.array([0, 7, 8, 1000])
    taken.add(ids)
    taken.add(ids)
    assert taken.count() == 4
    assert taken.contains(np.array([0, 1, 7, 8, 9, 1000])).tolist() == [1, 0, 1, 1, 0, 1]
    assert taken.missing(5, 10).tolist() == [5, 6, 9]
    assert 1001 - len(taken.missing(0, 1001)) == 4


def test_a_resumed_ledger_knows_every_committed_id(uri: str) -> None:
    first = Ledger(Table.create(uri, SCHEMA), 100, "one")
    assert first.enter(written(first, [0, 1, 2]))
    assert first.enter(written(first, [10, 20, 30]))
    assert first.enter(written(first, [5], "not_found"))
    first.commit()
    assert first.enter(written(first, [50]))  # entered, but never committed

    second = Ledger(reopened(uri), 100, "two")
    assert second.epoch > first.epoch
    assert second.taken.count() == 7
    assert second.kinds == {"ok": 6, "not_found": 1}
    assert 50 in second.taken.missing(0, 100)
    assert committed_ids(uri) == [0, 1, 2, 5, 10, 20, 30]


def test_a_file_with_an_id_that_is_taken_is_refused(uri: str) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    assert ledger.enter(written(ledger, [0, 1]))
    assert not ledger.enter(written(ledger, [1, 2])), "1 is entered already"
    ledger.commit()
    assert not ledger.enter(written(ledger, [0])), "0 is committed already"
    assert ledger.enter(written(ledger, [2]))
    ledger.commit()
    assert committed_ids(uri) == [0, 1, 2]


def test_a_newer_driver_fences_off_an_older_one(uri: str) -> None:
    older = Ledger(Table.create(uri, SCHEMA), 10, "older")
    older.enter(written(older, [0]))
    newer = Ledger(reopened(uri), 10, "newer")
    with pytest.raises(Fenced, match="newer"):
        older.commit()
    newer.enter(written(newer, [0, 1]))
    newer.commit()
    with pytest.raises(Fenced):
        older.table.commit()
    assert committed_ids(uri) == [0, 1]


def test_two_drivers_that_create_the_table_at_once_have_one_winner(uri: str) -> None:
    Table.create(uri, SCHEMA)
    with pytest.raises(Fenced):
        Table.create(uri, SCHEMA)


def test_a_commit_without_anything_entered_adds_no_version(uri: str) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    version = ledger.table.version
    ledger.commit()
    assert ledger.table.version == version


def test_a_file_name_contains_epoch_and_kind(uri: str) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    account = written(ledger, [3], "timeout")
    assert account.file is not None
    assert kind_in_name(account.file.name) == "timeout"
    assert epoch_of(account.file.name) == ledger.epoch
    assert epoch_of("strange.parquet") is None


def test_removing_files_keeps_the_others(uri: str) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    ledger.enter(written(ledger, [0, 1]))
    ledger.enter(written(ledger, [2], "timeout"))
    ledger.enter(written(ledger, [3], "not_found"))
    ledger.commit()
    table = reopened(uri)
    table.commit(remove=[f for f in table.files() if kind_in_name(f.name) == "timeout"])
    assert committed_ids(uri) == [0, 1, 3]


def test_every_commit_notes_the_checksums_of_its_files(uri: str) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    account = written(ledger, [0])
    ledger.enter(account)
    ledger.commit()
    assert account.file is not None
    newest = reopened(uri).newest.note
    assert newest["sha256"] == {account.file.name: account.file.sha256}
    assert newest["driver"] == "one"


def test_an_interrupted_commit_is_not_taken_for_another_drivers(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(Table.create(uri, SCHEMA), 10, "one")
    ledger.enter(written(ledger, [0, 1]))
    move_on = Table._move_on

    def interrupted(*arguments: object) -> int:
        monkeypatch.setattr(Table, "_move_on", move_on)
        raise KeyboardInterrupt  # a signal, right after the log's entry was written

    monkeypatch.setattr(Table, "_move_on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.commit()
    ledger.commit()
    ledger.enter(written(ledger, [2]))
    ledger.commit()
    assert committed_ids(uri) == [0, 1, 2]


def test_no_table_is_none_and_a_broken_log_is_an_error(tmp_path: Path) -> None:
    assert Table.open(str(tmp_path / "nothing")) is None
    table = Table.create(str(tmp_path / "rows"), SCHEMA)
    table.commit()
    (tmp_path / "rows" / "_delta_log" / f"{0:020d}.json").write_text("{")
    with pytest.raises(Damaged, match=r"0\.json: is damaged.* segbatch run JOB --repair"):
        Table.open(str(tmp_path / "rows"))
