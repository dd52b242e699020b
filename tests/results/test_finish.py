"""Finishing a run: sorted statistics in bounded memory, and a folder without leftovers."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch.masks.classes import Classes
from segbatch.results import finish
from segbatch.results.ledger import Ledger
from segbatch.results.schema import rows_schema, stats_schema
from segbatch.results.table import Table, file_name
from segbatch.results.write import Account, write_file

SCHEMA = rows_schema(Classes(["wall", "window"]))


def finished(run: Path, id_lists: list[list[int]]) -> tuple[Table, Table, Ledger]:
    """The tables of a run with these ids in its files of rows, and its statistics written."""
    rows = Table.create(str(run / "rows"), SCHEMA)
    ledger = Ledger(rows, 10_000, "driver")
    for ids in id_lists:
        columns = {
            "image_id": pa.array(sorted(ids), pa.int64()),
            "uri": pa.array([f"{image_id}.jpg" for image_id in sorted(ids)]),
            "status": pa.array(["ok"] * len(ids)),
        }
        arrays = [columns.get(f.name, pa.nulls(len(ids), f.type)) for f in SCHEMA]
        written = write_file(pa.table(arrays, schema=SCHEMA), rows.uri, ledger.epoch, "ok")
        assert ledger.enter(Account("ok", sorted(ids), file=written))
    ledger.commit()
    stats = Table.create(str(run / "stats"), stats_schema(SCHEMA))
    finish.write_stats(rows, stats, ledger.epoch)
    return rows, stats, ledger


def test_statistics_are_sorted_over_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "PART_BYTES", 4000)
    monkeypatch.setattr(finish, "READERS", 3)
    ids = list(range(600))
    random.Random(1).shuffle(ids)
    spread, ordered = ids[:200], sorted(ids[200:])
    lists = [spread[:100], spread[100:], *(ordered[n : n + 20] for n in range(0, 400, 20))]
    _, stats, _ = finished(tmp_path, lists)
    files = stats.files()
    assert len(files) > 3
    assert all(a.last_id < b.first_id for a, b in pairwise(files))
    parts = [pq.read_table(f"{stats.uri}/{file.name}") for file in files]
    assert max(part.nbytes for part in parts[:-1]) < 20 * 4000
    whole = pa.concat_tables(parts)
    assert whole["image_id"].to_pylist() == list(range(600))
    for row in whole.take([0, 17, 300, 599]).to_pylist():
        source = pq.read_table(f"{tmp_path}/rows/{row['file']}")
        assert source["uri"][row["file_row"]].as_py() == row["uri"]


def test_statistics_written_again_replace_the_older_ones(tmp_path: Path) -> None:
    rows, stats, ledger = finished(tmp_path, [[0, 1, 2]])
    [older] = stats.files()
    finish.write_stats(rows, stats, ledger.epoch)
    [newer] = stats.files()
    assert newer.name != older.name
    assert finish.sweep(str(tmp_path), rows, stats, ledger.epoch) == 1
    assert not (tmp_path / "stats" / older.name).exists()


def test_only_files_that_killed_processes_left_are_swept(tmp_path: Path) -> None:
    rows, stats, ledger = finished(tmp_path, [[0, 1, 2]])
    (tmp_path / "manifest").mkdir()
    old = [
        f"rows/.{file_name(ledger.epoch, 'ok')}.a1b2c3d4",
        f"stats/.{file_name(ledger.epoch, 'stats')}.a1b2c3_4",
        ".run.json.abcdefgh",
        ".lease.json.abcdefgh",
        "manifest/.00000.parquet.abcdefgh",
        f"preflight-{'0' * 32}",
    ]
    others = [
        f"rows/.{file_name(ledger.epoch + 1, 'ok')}.a1b2c3d4",
        "rows/.DS_Store",
        ".notes.txt.abcdefgh",
        "preflight-notes",
    ]
    young = ".run.json.12345678"
    for name in [*old, *others, young]:
        (tmp_path / name).write_bytes(b"half")
    for name in [*old, *others]:
        os.utime(tmp_path / name, (1, 1))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert finish.sweep(str(tmp_path), rows, stats, ledger.epoch) == len(old)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert before - after == {tmp_path / name for name in old}
