"""Storage faults: a proxy in front of the S3 server breaks requests and answers."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch import storage
from segbatch.errors import Fenced
from segbatch.jobs import passes
from segbatch.jobs.segment import segment
from segbatch.results.table import DataFile, Table
from segbatch.storage import ReadLimits, Unreadable, clients
from tests.collection import jpeg
from tests.conftest import S3, job

SLOW_DOWN = {"kind": "error", "status": 503, "code": "SlowDown"}
INTERNAL = {"kind": "error", "status": 500, "code": "InternalError"}
RESET = {"kind": "reset"}
LOST = {"kind": "lost"}
LOST_ERROR = {"kind": "lost_error", "status": 500, "code": "InternalError"}
STALL = {"kind": "stall", "seconds": 1.0}
STALL_BODY = {"kind": "stall_body", "seconds": 1.0}
BODIES: list[dict[str, Any]] = [{"kind": kind} for kind in ("cut", "reset_body", "long", "short")]
OF_READS = [SLOW_DOWN, INTERNAL, RESET, LOST, STALL, STALL_BODY, *BODIES]


def limits(fault: dict[str, Any], retries: int) -> ReadLimits:
    """Limits with a short timeout only for the faults that must run into it."""
    return ReadLimits(timeout_s=0.5 if fault["kind"].startswith("stall") else 30, retries=retries)


def named(fault: dict[str, Any]) -> str:
    return str(fault.get("code", fault["kind"]))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits before retries, in this process but not in Ray's workers."""
    monkeypatch.setattr(clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(clients, "MAX_BACKOFF_S", 0.1)


@pytest.fixture(autouse=True)
def heal(s3: S3) -> Iterator[None]:
    yield
    s3.break_down()


@pytest.fixture(scope="module")
def objects(s3: S3) -> dict[str, bytes]:
    """Sixty objects of different sizes and contents, by URI."""
    root = s3.uri("objects")
    contents = {f"{root}/{n:02d}.bin": hashlib.sha256(b"%d" % n).digest() * 40 * n
                for n in range(60)}  # fmt: skip
    for uri, data in contents.items():
        s3.put(uri, data)
    return contents


# --------------------------------------------------------------------------------------- the proxy


def test_the_proxy_counts_what_it_breaks_and_each_fault_breaks_others(
    s3: S3, objects: dict[str, bytes]
) -> None:
    uris = list(objects)[1:]  # of the first one, which is empty, nothing can be cut off
    broken = []
    for fault in (SLOW_DOWN, INTERNAL, RESET, BODIES[0]):
        s3.break_down({"method": "GET", "part": "objects/", "rate": 0.3, "times": 1, **fault})
        storage.read_many(uris, ReadLimits(retries=3))
        asked = s3.requests("GET", "objects/")
        assert s3.broken() == sum(asked.values()) - len(uris) > 0, "each costs one request more"
        broken.append({path for path, number in asked.items() if number > 1})
        storage.exists(uris[0])  # a request that is not broken
        assert s3.broken() == sum(asked.values()) - len(uris)
    assert all(one != other for one, other in combinations(broken, 2))
    s3.break_down()
    assert s3.broken() == 0


# ----------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("fault", OF_READS, ids=named)
def test_transient_faults_cost_a_few_requests_and_no_byte(
    s3: S3, objects: dict[str, bytes], fault: dict[str, Any]
) -> None:
    s3.break_down({"method": "GET", "rate": 0.3, "times": 4, **fault})
    contents = storage.read_many(list(objects), limits(fault, retries=5))
    assert contents == list(objects.values())
    asked = s3.requests("GET", "objects/")
    assert len(asked) == len(objects)
    assert max(asked.values()) <= 5
    assert len(objects) < sum(asked.values()) < 2 * len(objects)


@pytest.mark.parametrize("fault", OF_READS, ids=named)
def test_a_lasting_fault_uses_up_the_retries(
    s3: S3, objects: dict[str, bytes], fault: dict[str, Any]
) -> None:
    uris = list(objects)[1:9]
    s3.break_down({"method": "GET", **fault})
    contents = storage.read_many(uris, limits(fault, retries=2))
    kind = "timeout" if fault["kind"].startswith("stall") else "unavailable"
    assert [c.kind if isinstance(c, Unreadable) else c for c in contents] == [kind] * 8
    assert set(s3.requests("GET", "objects/").values()) == {3}


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET, STALL, BODIES[0], BODIES[2]], ids=named)
def test_a_key_that_only_fsspec_accepts_is_retried_too(s3: S3, fault: dict[str, Any]) -> None:
    uri = s3.uri("odd") + "//a.bin"
    s3.put(uri, b"content" * 1000)
    s3.break_down({"method": "GET", "times": 2, **fault})
    assert storage.read_many([uri], limits(fault, retries=3)) == [b"content" * 1000]
    s3.break_down({"method": "GET", **fault})
    [content] = storage.read_many([uri], limits(fault, retries=3))
    assert isinstance(content, Unreadable)
    # aiohttp itself repeats a request that was reset on a reused connection.
    assert sum(s3.requests("GET", "odd/").values()) <= 2 * 4


def test_a_notebook_whose_own_event_loop_is_running_reads_too(objects: dict[str, bytes]) -> None:
    async def cell() -> list[bytes | Unreadable]:
        return storage.read_many([*objects], ReadLimits())

    assert asyncio.run(cell()) == [*objects.values()]


def test_a_process_that_ends_right_after_reading_keeps_its_exit_code(s3: S3) -> None:
    """obstore's threads, which hand over the bytes by a call of Python, are slow to return."""
    uri = s3.uri("last") + "/object.bin"
    storage.write_bytes(uri, b"content")
    program = f"""
import sys, time
from asyncio.selector_events import BaseSelectorEventLoop
from segbatch import storage

wake_up = BaseSelectorEventLoop._write_to_self

def wake_up_slowly(loop):
    wake_up(loop)
    for _ in range(200):
        time.sleep(0.001)  # the GIL is let go and taken again

BaseSelectorEventLoop._write_to_self = wake_up_slowly
assert storage.read_bytes({uri!r}) == b"content"
sys.exit(3)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_an_object_that_takes_longer_than_the_limit_arrives_in_several_requests(s3: S3) -> None:
    uri, data = s3.uri("large") + "/a.bin", bytes(range(256)) * 12_000
    s3.put(uri, data)
    # Half of each answer arrives in time: 1.5 MB, then half of the rest.
    s3.break_down({"method": "GET", "kind": "stall_body", "seconds": 1.0, "times": 2})
    assert storage.read_many([uri], ReadLimits(timeout_s=0.5, retries=2)) == [data]
    assert list(s3.requests("GET", "large/").values()) == [3]


@pytest.mark.parametrize("place", ["disk", "s3", "odd", "memory"])
def test_pieces_are_as_long_as_their_object_is(s3: S3, tmp_path: Path, place: str) -> None:
    roots = {"disk": str(tmp_path), "memory": f"memory://{tmp_path}"}
    uri = f"{roots.get(place) or s3.uri('pieces')}{'/' * (place == 'odd')}/a.bin"
    data = bytes(range(100))
    storage.write_bytes(uri, data)
    spans: list[tuple[int, int | None]] = [
        (0, 100), (0, 200), (10, 20), (99, 100), (99, 500), (100, 101), (100, None), (500, 900),
        (500, None), (7, 7), (500, 500), (0, 0), (90, None),
    ]  # fmt: skip
    pieces = [storage.Piece(uri, start, end) for start, end in spans]
    s3.break_down()
    assert storage.read_many(pieces, ReadLimits(retries=2)) == [data[a:b] for a, b in spans]
    if place == "s3":
        assert sum(s3.requests("GET", "a.bin").values()) == len(spans) - 3
        assert sum(s3.requests("HEAD", "a.bin").values()) == 4
    version = storage.version_of(uri)
    storage.write_bytes(uri, data[:50])
    pieces = [storage.Piece(uri, start, start + 10, version) for start in (0, 45, 50, 80)]
    assert storage.read_many(pieces, ReadLimits()) == [storage.REPLACED] * 4


def test_a_bucket_without_md5_etags_costs_one_more_request(s3: S3) -> None:
    root = s3.uri("opaque")
    uris = [f"{root}/{number}" for number in range(5)]
    for uri in uris:
        s3.put(uri, b"content")
    s3.break_down({"kind": "etag", "part": "opaque/"})
    for uri in uris:
        assert storage.read_many([uri], ReadLimits()) == [b"content"]
    assert sum(s3.requests("GET", "opaque/").values()) == 5
    assert sum(s3.requests("HEAD", "opaque/").values()) == 1


# ----------------------------------------------------------------- writing, listing, small objects


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL, RESET, LOST, LOST_ERROR], ids=named)
def test_single_requests_are_retried(s3: S3, fault: dict[str, Any]) -> None:
    """Each request fails twice; of a listing, each page."""
    root = s3.uri("small")
    s3.break_down({"times": 2, "part": root.split("/")[2], **fault})
    storage.write_bytes(f"{root}/a.bin", b"content")
    assert storage.exists(f"{root}/a.bin")
    assert not storage.exists(f"{root}/b.bin")
    assert storage.read_bytes(f"{root}/a.bin") == b"content"
    assert [file.size for file in storage.list_files(root)] == [7]
    storage.delete([f"{root}/a.bin"])
    assert list(storage.list_files(root)) == []
    assert list(s3.requests("PUT", "small/").values()) == [3]


@pytest.mark.parametrize("fault", [SLOW_DOWN, RESET, *BODIES[:2]], ids=named)
def test_pyarrow_reads_ranges_through_faults(s3: S3, fault: dict[str, Any]) -> None:
    root = s3.uri("arrow")
    table = pa.table({"image_id": range(5000), "uri": [f"{n}" * 9 for n in range(5000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=500)
    s3.put(f"{root}/a.parquet", sink.getvalue().to_pybytes())
    filesystem, path = storage.arrow_filesystem(f"{root}/a.parquet")
    s3.break_down({"method": "GET", "rate": 0.3, "part": "a.parquet", **fault})
    read = pq.read_table(path, columns=["image_id"], filesystem=filesystem)
    assert read == table.select(["image_id"])


def test_an_outage_is_not_reported_as_a_missing_file(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segbatch.storage.arrow.RETRIES", 1)
    uri = s3.uri("arrow") + "/a.parquet"
    filesystem, path = storage.arrow_filesystem(uri)
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(path)
    s3.break_down({"part": "a.parquet", "status": 400, "code": "InternalError"})
    with pytest.raises(OSError, match=r"a\.parquet") as caught:
        filesystem.open_input_file(path)
    assert not isinstance(caught.value, FileNotFoundError)


# ------------------------------------------------------------------------------------- Delta's log


def a_file(number: int) -> DataFile:
    return DataFile(f"00000000-ok-{number}.parquet", 1, 1, number, number, "ok", "0" * 64)


@pytest.mark.parametrize(
    "fault", [SLOW_DOWN, RESET, LOST, LOST_ERROR, {"kind": "stall", "seconds": 2}], ids=named
)
def test_a_commit_is_made_once_even_if_its_answer_is_lost(
    s3: S3, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TIMEOUT_S", 1)
    uri = s3.uri("log")
    table = Table.create(uri, pa.schema({"image_id": pa.int64(), "status": pa.string()}))
    other = Table.open(uri)
    assert other is not None
    s3.break_down({"method": "PUT", "part": "0001.json", "times": 1, **fault})
    for number in range(2):
        table.commit([a_file(number)])
    assert [file.first_id for file in table.files()] == [0, 1]
    newest = Table.open(uri)
    assert newest is not None
    assert newest.files() == table.files()
    with pytest.raises(Fenced):
        other.commit([a_file(2)])


# ----------------------------------------------------------------------------------- the whole job


@pytest.mark.usefixtures("ray_address")
def test_a_job_through_all_faults_at_once_loses_nothing(
    s3: S3, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "PAUSE_S", 0.01)
    root = s3.uri("images")
    for number in range(24):
        s3.put(f"{root}/{number:02d}.jpg", jpeg(number, 64, 64))
    faults = [SLOW_DOWN, INTERNAL, RESET, LOST, *BODIES]
    s3.break_down(
        {"part": "/07.jpg", "times": 1, "kind": "stall_body", "seconds": 6},
        *({"part": ".jpg", "rate": 0.02, **fault} for fault in faults),
        *({"part": ".parquet", "rate": 0.05, **fault} for fault in (RESET, LOST, LOST_ERROR)),
        {"part": f"/{root.split('/')[2]}/", "rate": 0.02, **SLOW_DOWN},
    )
    keys = {"timeout_s": 5, "max_failed_fraction": 0.0}
    run = segment(job(f"{root}/", model_uri, f"{root}/run", limits=keys, rows_per_file=8))
    asked = s3.requests("GET", ".jpg")
    s3.break_down()
    assert run.info.counts.model_dump() == {"ok": 24, "failed": {}}
    audit = run.audit(deep=True)
    assert (audit.exit_code, audit.uncommitted) == (0, [])
    assert len(asked) == 24
    # Sixteen are read by the preflight, sixteen to measure, and then all of them.
    assert max(asked.values()) <= 3 * (5 + 1)
    assert sum(asked.values()) <= 2 * (16 + 16 + 24)
