"""Tar shards: an image in an archive is an image of a run."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset
import yaml

from segbatch import storage
from segbatch.config.images import Shards, parse_source
from segbatch.errors import SourceError
from segbatch.images import archive, shards
from segbatch.images.parts import Content, read_images, read_parts
from segbatch.images.place import PLACE, parts_of
from tests.collection import jpeg
from tests.conftest import S3
from tests.images.frozen import frozen

LIMITS = storage.ReadLimits()
Files = Sequence[tuple[str, bytes]]


def tar(files: Files, **options: Any) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return sink.getvalue()


def photographs(number: int, first: int = 0) -> list[tuple[str, bytes]]:
    return [(f"a/{row:04d}.jpg", jpeg(row)) for row in range(first, first + number)]


def contents(rows: pa.Table, limits: storage.ReadLimits = LIMITS) -> list[Content]:
    """What is read of the rows of a manifest; their URIs alone must give the same."""
    found = read_parts(parts_of(rows), limits)
    assert read_images(rows["uri"].to_pylist(), limits) == found
    return found


def names(rows: pa.Table) -> list[str]:
    return [uri.partition("#member=")[2] for uri in rows["uri"].to_pylist()]


# ---------------------------------------------------------------------------------- what is listed


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_every_image_in_a_shard_is_a_row(root: str, tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix != ".tar" else bytes
    storage.write_bytes(f"{root}/s-0{suffix}", pack(tar(photographs(5))))
    storage.write_bytes(f"{root}/s-1{suffix}", pack(tar(photographs(3, first=5))))
    rows = frozen(tmp_path, f"{root}/*{suffix}")
    assert rows.column_names == ["image_id", "uri", PLACE.name]
    assert rows["uri"][6].as_py() == f"{root}/s-1{suffix}#member=a/0006.jpg"
    assert contents(rows) == [jpeg(row) for row in range(8)]
    some = rows.take([7, 3, 3, 0])
    assert contents(some) == [jpeg(row) for row in (7, 3, 3, 0)]


def test_a_glob_of_shards_matches_no_system_file(root: str, tmp_path: Path) -> None:
    for name in ("0.tar", "._0.tar", "@eaDir/0.tar"):
        storage.write_bytes(f"{root}/{name}", tar(photographs(1)))
    rows = frozen(tmp_path, f"{root}/**/*.tar")
    assert rows["uri"].to_pylist() == [f"{root}/0.tar#member=a/0000.jpg"]
    assert frozen(tmp_path, f"{root}/._*.tar", "named").num_rows == 1


def test_what_webdataset_writes_becomes_rows_and_columns(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with webdataset.ShardWriter(f"{tmp_path}/data/%06d.tar", maxcount=3, verbose=0) as writer:
        for row in range(5):
            described = {"city": f"city {row}", "height_m": row + 0.5, "tags": ["a"], "url": None}
            writer.write(
                {
                    "__key__": f"{row:04d}",
                    "jpg": jpeg(row),
                    "json": described if row != 3 else {"city": "city 3", "floors": 12},
                    "txt": f"house {row}\n",
                    "cls": row % 2,
                    "npy": b"\0",
                }
            )
    rows = frozen(tmp_path, f"{tmp_path}/data/{{000000..000001}}.tar")
    assert rows.num_rows == 5
    assert contents(rows) == [jpeg(row) for row in range(5)]
    columns = {name: rows[name].to_pylist() for name in ("city", "txt", "cls", "floors")}
    assert columns == {
        "city": [f"city {row}" for row in range(5)],
        "txt": [f"house {row}" for row in range(5)],
        "cls": [0, 1, 0, 1, 0],
        "floors": [None, None, None, 12, None],
    }
    assert rows["height_m"].to_pylist() == [0.5, 1.5, 2.5, None, 4.5]
    assert "tags" not in rows.column_names


def test_columns_are_chosen_and_renamed(tmp_path: Path) -> None:
    files = [
        file
        for row in range(4)
        for file in (
            (f"{row}.jpg", jpeg(row)),
            (
                f"{row}.json",
                json.dumps({"key": f"k{row}", "status": "success", "uri": "x"}).encode(),
            ),
        )
    ]
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(files))
    source = {"shards": f"{tmp_path}/data"}
    with pytest.raises(SourceError, match=r"belongs to segbatch.*rename: ") as caught:
        frozen(tmp_path, source, "refused")
    advised = parse_source({**source, "rename": _advice(caught.value), "where": "key > 'k1'"})
    rows = frozen(tmp_path, advised)
    assert rows["key"].to_pylist() == ["k2", "k3"]
    assert rows["source_status"].to_pylist() == ["success"] * 2
    assert contents(rows) == [jpeg(2), jpeg(3)]


def _advice(error: Exception) -> Any:
    return yaml.safe_load(str(error).rpartition("rename: ")[2])


def test_several_images_of_a_sample_are_rows_with_its_columns(tmp_path: Path) -> None:
    files = [("7.left.jpg", jpeg(1)), ("7.json", b'{"city": "Bern"}'), ("7.right.png", jpeg(2))]
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(files))
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/0.tar"})
    assert names(rows) == ["7.left.jpg", "7.right.png"]
    assert rows["city"].to_pylist() == ["Bern", "Bern"]


def test_images_whose_names_have_dots_have_their_own_columns(tmp_path: Path) -> None:
    files = [("2024.05.00_x.jpg", jpeg(9)), ("2024.05.04_x.jpg", jpeg(4))]
    for row in range(1, 4):
        name = f"2024.05.{row:02d}_house"
        described = json.dumps({"latitude": 46 + row, "id": row}).encode()
        files += [(f"{name}.jpg", jpeg(row)), (f"{name}.json", described)]
        files += [(f"{name}.txt", b"house %d" % row)]
    for number, order in enumerate((sorted(files), files, files[::-1])):
        storage.write_bytes(f"{tmp_path}/data/0.tar", tar(order))
        rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/0.tar"}, f"run-{number}")
        assert set(rows.column_names) == {"image_id", "uri", PLACE.name, "latitude", "id", "txt"}
        for row in rows.to_pylist():
            found = re.search(r"(\d\d)_house", row["uri"])
            told = (int(found[1]), f"house {int(found[1])}") if found else (None, None)
            assert (row["id"], row["txt"]) == told


def test_columns_far_from_their_images_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [(f"{row}.jpg", jpeg(row)) for row in range(3)]
    files += [(f"{row}.json", b'{"id": 1}') for row in range(3)] + [("0.txt", b"house")]
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(files))
    assert "id" not in frozen(tmp_path, {"shards": f"{tmp_path}/data/"}).column_names
    said = capsys.readouterr().err
    assert "a .json without an image of its sample next to it: sort the archive" in said
    assert "tar --sort=name (3)" in said
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(sorted(files)))
    assert frozen(tmp_path, {"shards": f"{tmp_path}/data/"}, "sorted")["id"].to_pylist() == [1] * 3
    assert "without an image" not in capsys.readouterr().err


def test_a_column_of_which_a_sample_says_two_things_is_null_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        ("7.left.jpg", jpeg(1)),
        ("7.left.json", b'{"side": "left"}'),
        ("7.right.jpg", jpeg(2)),
        ("7.a.json", b'{"city": "Bern", "floor": 1}'),
        ("7.b.json", b'{"city": "Bern", "floor": 2}'),
    ]
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(files))
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/0.tar"})
    assert rows["side"].to_pylist() == ["left", None]
    assert rows["city"].to_pylist() == ["Bern", "Bern"]
    assert rows["floor"].to_pylist() == [None, None]
    assert "floor, of which files of a sample disagree (2)" in capsys.readouterr().err


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    "name", ["Türe/画像 1.jpg", "n" * 90 + "/" + "m" * 200 + ".jpg", "100%&#t=1.jpg"]
)
def test_names_of_any_kind(tmp_path: Path, format: int, name: str) -> None:
    storage.write_bytes(
        f"{tmp_path}/data/0.tar", tar([(name, jpeg(1)), ("b.jpg", jpeg(2))], format=format)
    )
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/"})
    assert contents(rows) == [jpeg(1), jpeg(2)]
    assert shards._split(rows["uri"][0].as_py())[1] == name


def test_names_that_are_no_utf8_stay_readable(tmp_path: Path) -> None:
    data = tar([("T\udcfcre.jpg", jpeg(1))], format=tarfile.GNU_FORMAT, errors="surrogateescape")
    storage.write_bytes(f"{tmp_path}/data/0.tar", data)
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/"})
    assert names(rows) == ["T%FCre.jpg"]
    assert contents(rows) == [jpeg(1)]


def test_members_of_one_name_are_rows_of_their_own(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar([("a.jpg", jpeg(n)) for n in range(3)]))
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/"})
    assert names(rows) == ["a.jpg", "a.jpg&occurrence=2", "a.jpg&occurrence=3"]
    assert contents(rows) == [jpeg(n) for n in range(3)]


def test_system_files_are_left_out_and_odd_paths_are_not(tmp_path: Path) -> None:
    odd = ["./a.jpg", "../../b.jpg", "/etc/c.jpg"]
    files = [(name, jpeg(n)) for n, name in enumerate([*odd, "._a.jpg", "__MACOSX/a.jpg"])]
    storage.write_bytes(f"{tmp_path}/data/0.tar", tar(files))
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/"})
    assert names(rows) == odd
    assert contents(rows) == [jpeg(n) for n in range(3)]


# ----------------------------------------------------------------------------------------- requests


def counted(s3: S3) -> tuple[int, int]:
    return sum(s3.requests("GET", ".tar").values()), sum(s3.requests("HEAD", ".tar").values())


def test_a_pass_over_a_shard_takes_one_request_a_block(tmp_path: Path, s3: S3) -> None:
    root = s3.uri("data")
    storage.write_bytes(f"{root}/0.tar", tar(photographs(200)))
    rows = frozen(tmp_path, f"{root}/0.tar")
    s3.break_down()
    for start in range(0, 200, 100):
        found = read_parts(parts_of(rows.slice(start, 100)), LIMITS)
        assert found == [jpeg(row) for row in range(start, start + 100)]
    assert counted(s3) == (2, 0)


def test_large_members_are_not_read_to_list_them(tmp_path: Path, s3: S3) -> None:
    root = s3.uri("data")
    files = [(f"{n}.jpg", jpeg(n) + bytes(1 << 20)) for n in range(20)]
    storage.write_bytes(f"{root}/0.tar", tar(files))
    read: list[int] = []

    class Counting(archive.RangeReader):
        def read(self, size: int) -> bytes:
            before = self._held
            data = super().read(size)
            read.extend([len(self._held)] if self._held and self._held is not before else [])
            return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "RangeReader", Counting)
        rows = frozen(tmp_path, f"{root}/0.tar")
    assert rows.num_rows == 20
    assert sum(read) < 500_000
    assert len(read) <= 21


def test_small_members_are_listed_with_few_requests(tmp_path: Path, s3: S3) -> None:
    root = s3.uri("data")
    storage.write_bytes(f"{root}/0.tar", tar(photographs(1000)))
    s3.break_down()
    assert frozen(tmp_path, f"{root}/0.tar").num_rows == 1000
    gets, heads = counted(s3)
    assert gets <= 12
    assert heads <= 3


# ------------------------------------------------------------------------------------------- damage


def test_a_shard_that_is_cut_gives_what_is_there_and_one_reason(root: str, tmp_path: Path) -> None:
    whole = tar(photographs(4))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        third = archive.getmembers()[2]
    for place, there, reason in [
        (third.offset_data + 700, ["a/0000.jpg", "a/0001.jpg", "a/0002.jpg"], "truncated"),
        (third.offset_data, ["a/0000.jpg", "a/0001.jpg", "a/0002.jpg"], "truncated"),
        (third.offset + 100, ["a/0000.jpg", "a/0001.jpg", ""], "truncated"),
        (third.offset, ["a/0000.jpg", "a/0001.jpg", ""], "truncated"),
    ]:
        storage.write_bytes(f"{root}/0.tar", whole[:place])
        rows = frozen(tmp_path, f"{root}/0.tar", f"run-{place}")
        assert names(rows) == there
        *read, last = contents(rows)
        assert read == [jpeg(0), jpeg(1)]
        assert getattr(last, "kind", None) == reason
    packed = gzip.compress(whole)
    storage.write_bytes(f"{root}/0.tar.gz", packed[: len(packed) // 2])
    *read, last = contents(frozen(tmp_path, f"{root}/0.tar.gz", "packed"))
    assert read
    assert read == [jpeg(row) for row in range(len(read))]
    assert getattr(last, "kind", None) == "truncated"


@pytest.mark.parametrize("name", ["c.npy", "c.json", "c.jpg"])
def test_whatever_a_shard_breaks_off_in_one_row_says_so(tmp_path: Path, name: str) -> None:
    whole = tar([("a.jpg", jpeg(0)), (name, bytes(3000))])
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive_:
        inside = archive_.getmembers()[1].offset_data + 1000
    storage.write_bytes(f"{tmp_path}/data/0.tar", whole[:inside])
    rows = frozen(tmp_path, {"shards": f"{tmp_path}/data/0.tar"})
    found, reason = contents(rows)
    assert found == jpeg(0)
    assert getattr(reason, "kind", None) == "truncated"


def test_a_damaged_header_ends_the_shard_with_a_reason(root: str, tmp_path: Path) -> None:
    whole = bytearray(tar(photographs(4)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        third = archive.getmembers()[2].offset
    whole[third : third + 512] = b"x" * 512
    storage.write_bytes(f"{root}/0.tar", bytes(whole))
    rows = frozen(tmp_path, f"{root}/0.tar")
    assert names(rows) == ["a/0000.jpg", "a/0001.jpg", ""]
    reason = contents(rows)[2]
    assert (getattr(reason, "kind", ""), getattr(reason, "message", "")) == (
        "undecodable",
        "the archive is damaged here",
    )


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_archives_that_were_joined_are_read_to_their_end(tmp_path: Path, suffix: str) -> None:
    root = f"{tmp_path}/data"
    pack = gzip.compress if suffix == ".tar.gz" else bytes
    long = [(f"{'n' * 120}.jpg", jpeg(3))]  # its header has an extension
    parts = [tar(photographs(1)), tar(photographs(2, first=1)), tar(long), tar([])]
    for blocks in range(4, 8):  # of one small file: zeros of any number up to a record
        parts.append(tar([(f"{blocks}.jpg", jpeg(4) + bytes(512 * blocks))]))
    storage.write_bytes(f"{root}/0{suffix}", b"".join(map(pack, parts)))
    rows = frozen(tmp_path, {"shards": f"{root}/0{suffix}"})
    assert len(names(rows)) == 8
    assert [content[:99] for content in contents(rows) if isinstance(content, bytes)] == [
        jpeg(row)[:99] for row in (0, 1, 2, 3, 4, 4, 4, 4)
    ]
    storage.write_bytes(f"{root}/0{suffix}", b"".join(map(pack, [*parts, b"no archive" * 99])))
    assert len(frozen(tmp_path, {"shards": f"{root}/0{suffix}"}, "with more")) == 8
    cut = b"".join(map(pack, parts[:2])) + pack(parts[1][:1600])
    storage.write_bytes(f"{root}/0{suffix}", cut)
    *_, reason = contents(frozen(tmp_path, {"shards": f"{root}/0{suffix}"}, "cut"))
    assert getattr(reason, "kind", None) == "truncated"


@pytest.mark.parametrize("data", [b"", b"<html>404</html>" * 100, jpeg(1)])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_what_is_no_archive_is_one_failed_row(tmp_path: Path, data: bytes, suffix: str) -> None:
    storage.write_bytes(f"{tmp_path}/data/0{suffix}", data)
    storage.write_bytes(f"{tmp_path}/data/1.tar", tar(photographs(1)))
    failed, found = contents(frozen(tmp_path, {"shards": f"{tmp_path}/data"}))
    assert getattr(failed, "kind", None) in ("undecodable", "truncated")
    assert found == jpeg(0)


def test_links_and_sparse_files_are_rows_that_say_so(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        photo = tarfile.TarInfo("a.jpg")
        photo.size = len(jpeg(0))
        archive.addfile(photo, io.BytesIO(jpeg(0)))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
        sparse = tarfile.TarInfo("c.jpg")
        sparse.pax_headers = {"GNU.sparse.map": "0,3", "GNU.sparse.size": "9"}
        sparse.size = 3
        archive.addfile(sparse, io.BytesIO(b"abc"))
        pipe = tarfile.TarInfo("d.jpg")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    storage.write_bytes(f"{tmp_path}/data/0.tar", sink.getvalue())
    found = contents(frozen(tmp_path, {"shards": f"{tmp_path}/data"}))
    assert found[0] == jpeg(0)
    assert [getattr(reason, "kind", None) for reason in found[1:]] == ["unsupported"] * 3


def test_a_shard_that_was_replaced_gives_no_other_images(root: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{root}/0.tar", tar(photographs(3)))
    rows = frozen(tmp_path, f"{root}/0.tar")
    storage.write_bytes(f"{root}/0.tar", tar(photographs(3, first=5)))
    assert read_parts(parts_of(rows), LIMITS) == [storage.REPLACED] * 3
    storage.delete([f"{root}/0.tar"])
    for reason in read_parts(parts_of(rows), LIMITS):
        assert getattr(reason, "kind", None) == "not_found"


def test_a_shard_that_was_replaced_by_a_smaller_one_gives_no_other_images(
    root: str, tmp_path: Path, s3: S3
) -> None:
    files = [(f"{n}.jpg", jpeg(n) + bytes(300_000)) for n in range(3)]
    storage.write_bytes(f"{root}/0.tar", tar(files))
    rows = frozen(tmp_path, f"{root}/0.tar")
    storage.write_bytes(f"{root}/0.tar", tar(files[:1]))
    s3.break_down()
    parts = parts_of(rows)
    for asked in (parts, parts[1:], parts[2:]):
        assert read_parts(asked, LIMITS) == [storage.REPLACED] * len(asked)
    assert sum(s3.requests("GET", "0.tar").values()) <= 6, "it asks again for what is not there"


def test_a_shard_of_a_numbered_row_that_is_missing_is_refused(root: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{root}/0.tar", tar(photographs(1)))
    storage.write_bytes(f"{root}/2.tar", tar(photographs(1, first=2)))
    with pytest.raises(SourceError, match=r"1\.tar: no such file"):
        frozen(tmp_path, f"{root}/{{0..2}}.tar")


def header(size: bytes = b"0" * 11, kind: bytes = b"0", name: bytes = b"a.jpg") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def hostile() -> Iterator[tuple[str, bytes]]:
    good, end = tar(photographs(1))[: 512 + 512 * (-(-len(jpeg(0)) // 512))], bytes(1024)
    huge = b"\x80" + (10 << 30).to_bytes(11, "big")
    negative = b"\xff" + (-1024).to_bytes(11, "big", signed=True)
    yield "ten gigabytes", good + header(huge) + b"x" * 1000
    yield "a name of ten gigabytes", good + header(huge, b"L", b"././@LongLink") + b"x" * 1000
    yield "extensions of ten gigabytes", good + header(huge, b"x") + b"x" * 1000
    yield "below zero", good + header(negative) + end
    yield "extensions below zero", good + header(negative, b"x") + end
    yield "chained names", good + header(b"0" * 11, b"L") * 5000 + end
    yield "pax of nonsense", good + header(b"00000001000", b"x") + b"99 x=y\n" + bytes(505) + end


@pytest.mark.parametrize(("kind", "data"), list(hostile()), ids=lambda value: str(value)[:25])
def test_hostile_archives_end_with_a_reason(tmp_path: Path, kind: str, data: bytes) -> None:
    for suffix, pack in ((".tar", bytes), (".tar.gz", gzip.compress)):
        storage.write_bytes(f"{tmp_path}/{suffix}/0{suffix}", pack(data))
        first, *rest = contents(
            frozen(tmp_path, {"shards": f"{tmp_path}/{suffix}"}, f"run{suffix}")
        )
        assert first == jpeg(0)
        assert len(rest) <= 1
        for reason in rest:
            assert getattr(reason, "kind", None) in ("truncated", "undecodable", "too_large")
            assert "\n" not in getattr(reason, "message", "\n")


def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_BOMB_BYTES", 1 << 20)
    files = [*photographs(1), ("b.jpg", bytes(20 << 20)), *photographs(1, first=1)]
    storage.write_bytes(f"{tmp_path}/0.tar.gz", gzip.compress(tar(files)))
    found, reason = contents(frozen(tmp_path, f"{tmp_path}/0.tar.gz"))
    assert found == jpeg(0)
    assert getattr(reason, "kind", None) == "undecodable"
    assert "it unpacks to more than 100 times its size" in getattr(reason, "message", "")


def test_a_member_above_the_limit_is_not_read(tmp_path: Path, s3: S3) -> None:
    root = s3.uri("data")
    storage.write_bytes(f"{root}/0.tar", tar([("a.jpg", bytes(1 << 20)), ("b.jpg", jpeg(1))]))
    rows = frozen(tmp_path, f"{root}/0.tar")
    large, small = contents(rows, storage.ReadLimits(max_bytes=100_000))
    assert getattr(large, "kind", None) == "too_large"
    assert small == jpeg(1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"shards": "http://h/0.tar"}, "not read over http"),
        ({"shards": "DIR/none"}, r"no file, folder or glob with \.tar, \.tar\.gz or \.tgz"),
        ({"shards": "DIR/none.tar"}, "none.tar: no such file"),
        ({"shards": "DIR/text.tar"}, r"text.tar: no image in the shards: 1 \.npy"),
    ],
)
def test_what_holds_no_images_is_said(
    tmp_path: Path, source: Mapping[str, str], message: str
) -> None:
    storage.write_bytes(f"{tmp_path}/data/text.tar", tar([("a.npy", b"1"), ("a.json", b"{}")]))
    given = {key: value.replace("DIR", f"{tmp_path}/data") for key, value in source.items()}
    with pytest.raises(SourceError, match=message):
        frozen(tmp_path, given)


def test_a_file_that_is_called_like_a_member_stays_a_file(root: str, tmp_path: Path) -> None:
    for name in ("a.tar#member=b.jpg", "a.parquet#row=1.jpg", "a#yaw=1&pitch=0&fov=90&size=64.jpg"):
        storage.write_bytes(f"{root}/{name}", jpeg(1))
    rows = frozen(tmp_path, {"prefix": f"{root}/"})
    assert contents(rows) == [jpeg(1)] * 3


def test_a_string_that_ends_in_tar_names_shards() -> None:
    for text in ("s3://b/*.tar", "a/b.tar.gz", "s3://b/{000..123}.tgz"):
        assert parse_source(text) == Shards(shards=text)
