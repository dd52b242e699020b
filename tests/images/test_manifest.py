import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segbatch import storage
from segbatch.config.images import Inventory, is_glob, parse_source
from segbatch.errors import SourceError
from segbatch.images import manifest
from segbatch.images.fetch import fetch
from segbatch.images.manifest import FrozenManifest, freeze, read_rows, user_columns
from tests.collection import encoded, jpeg
from tests.films import film

RESERVED = {"image_id", "uri", "status", "mask", "width"}


class Run:
    """A run's folder, into which sources are frozen, and the rows that came out."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.manifest = storage.join(folder, "manifest")

    def freeze(self, *sources: Any) -> FrozenManifest:
        return freeze(
            [parse_source(source) for source in sources],
            self.manifest,
            reserved=RESERVED,
            leave_out=self.folder,
        )

    def rows(self, *sources: Any) -> pa.Table:
        files = self.freeze(*sources).files
        return pa.concat_tables([read_rows(self.manifest, file) for file in files])

    def uris(self, *sources: Any) -> list[str]:
        return self.rows(*sources)["uri"].to_pylist()

    def refusal(self, *sources: Any) -> str:
        with pytest.raises(SourceError) as caught:
            self.freeze(*sources)
        assert "\n" not in str(caught.value)
        assert list(storage.list_files(self.manifest)) == []
        return str(caught.value)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def put(root: str | Path, *names: str) -> str:
    """Files without content under ``root``, which is a local folder or a prefix."""
    for name in names:
        storage.write_bytes(storage.join(str(root), name), b"")
    return str(root)


def parquet(path: Path | str, **columns: Any) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(str(path), sink.getvalue().to_pybytes())
    return str(path)


def text(path: Path | str, content: str) -> str:
    data = content.encode()
    storage.write_bytes(str(path), gzip.compress(data) if str(path).endswith(".gz") else data)
    return str(path)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Somewhere to put sources: on disk and in a bucket."""
    if request.param == "local":
        return str(tmp_path / "source")
    return str(request.getfixturevalue("s3").uri("source"))


# ----------------------------------------------------------------------------------------- freezing


def test_rows_are_numbered_in_order_over_all_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 1000)
    monkeypatch.setattr(manifest, "ROWS_PER_GROUP", 300)
    uris = [f"s3://b/{n:05d}.jpg" for n in range(2500)]
    result = run.freeze(parquet(tmp_path / "m.parquet", uri=uris, n=range(2500)))
    assert [(f.first_id, f.rows) for f in result.files] == [
        (0, 1000),
        (1000, 1000),
        (2000, 500),
    ]
    for file in result.files:
        data = storage.read_bytes(storage.join(run.manifest, file.name))
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        layout = pq.ParquetFile(pa.BufferReader(data)).metadata
        assert layout.row_group(0).num_rows == 300
        assert layout.row_group(0).column(1).compression == "ZSTD"
    table = pa.concat_tables([read_rows(run.manifest, file) for file in result.files])
    assert table["image_id"].to_pylist() == list(range(2500))
    assert table["uri"].to_pylist() == uris
    assert table["n"].to_pylist() == list(range(2500))
    assert (result.rows, result.duplicates) == (2500, 0)


def test_a_file_of_wide_rows_ends_early(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 1000)
    monkeypatch.setattr(manifest, "ROWS_PER_GROUP", 100)
    monkeypatch.setattr(manifest, "_MAX_FILE_BYTES", 300_000)
    wide = [np.random.default_rng(n).bytes(1000) for n in range(1200)]
    files = run.freeze(
        parquet(tmp_path / "m.parquet", uri=[f"{n}" for n in range(1200)], wide=wide)
    ).files
    assert [file.rows for file in files] == [300, 300, 300, 100, 200]
    assert [file.first_id for file in files] == [0, 300, 600, 900, 1000]


def test_a_frozen_file_gives_single_rows_back(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 10)
    source = parquet(tmp_path / "m.parquet", uri=[str(n) for n in range(20)], city=["x"] * 20)
    file = run.freeze(source).files[1]
    table = read_rows(run.manifest, file, np.array([17, 11]))
    assert table["uri"].to_pylist() == ["17", "11"]
    assert [field.name for field in user_columns(table.schema)] == ["city"]
    with pytest.raises(IndexError):
        read_rows(run.manifest, file, [5])


def test_a_torn_beginning_is_deleted(run: Run, tmp_path: Path) -> None:
    put(run.manifest, "00000.parquet", "00007.parquet")
    run.freeze(parquet(tmp_path / "m.parquet", uri=["a"]))
    assert [storage.name_of(file.uri) for file in storage.list_files(run.manifest)] == [
        "00000.parquet"
    ]


def test_what_a_user_keeps_in_the_runs_folder_is_not_deleted(run: Run) -> None:
    source = parquet(storage.join(run.manifest, "mine.parquet"), uri=["a", "b"])
    assert run.freeze(source).rows == 2
    assert storage.exists(source)


def test_a_manifest_is_frozen_in_a_bucket(s3: Any) -> None:
    root = s3.uri("m.parquet")
    run = Run(s3.uri("run"))
    parquet(root, uri=["a", "b"], city=["x", None])
    assert run.rows(root).to_pylist() == [
        {"image_id": 0, "uri": "a", "city": "x"},
        {"image_id": 1, "uri": "b", "city": None},
    ]


def test_duplicates_stay_and_are_counted(run: Run, tmp_path: Path) -> None:
    result = run.freeze(parquet(tmp_path / "m.parquet", uri=["a", "b", "a", "a"]))
    assert (result.rows, result.duplicates) == (4, 2)


def test_several_sources_are_one_list(run: Run, tmp_path: Path) -> None:
    first = parquet(tmp_path / "1.parquet", uri=["a"], city=["x"], none=pa.nulls(1))
    second = text(tmp_path / "2.csv", "uri,floors,none\nb,3,1.5\n")
    prefix = put(tmp_path / "photos", "c.jpg")
    assert run.rows(first, second, prefix).to_pylist() == [
        {"image_id": 0, "uri": "a", "city": "x", "none": None, "floors": None},
        {"image_id": 1, "uri": "b", "city": None, "none": 1.5, "floors": 3},
        {"image_id": 2, "uri": f"{prefix}/c.jpg", "city": None, "none": None, "floors": None},
    ]


def test_a_column_of_nulls_takes_its_type_from_another_source(run: Run, tmp_path: Path) -> None:
    first = parquet(tmp_path / "1.parquet", uri=["a"], box=pa.nulls(1))
    second = parquet(tmp_path / "2.parquet", uri=["b"], box=[{"x": 1}])
    assert run.rows(first, second)["box"].to_pylist() == [None, {"x": 1}]


def test_sources_that_disagree_are_refused(run: Run, tmp_path: Path) -> None:
    first = parquet(tmp_path / "1.parquet", uri=["a"], floors=["3"])
    second = parquet(tmp_path / "2.parquet", uri=["b"], floors=[3])
    third = parquet(tmp_path / "3.parquet", uri=["b"], Floors=["3"])
    assert "column floors is int64, but string in" in run.refusal(first, second)
    assert "rename: {Floors: floors}" in run.refusal(first, third)


# ----------------------------------------------------------------------------------------- prefixes


def test_numbers_of_several_types_become_one_that_holds_all(run: Run, tmp_path: Path) -> None:
    for number, (floors, area) in enumerate([([2], 1), ([None, 3.0], 2), ([4], 2**40)]):
        area_type = pa.int64() if area > 2 else pa.int32()
        parquet(
            tmp_path / f"parts/{number}.parquet",
            uri=[f"{number}.jpg"] * len(floors),
            floors=pa.array(floors, pa.float32() if None in floors else pa.int64()),
            area=pa.array([area] * len(floors), area_type),
        )
    rows = run.rows({"manifest": str(tmp_path / "parts")})
    assert rows["floors"].to_pylist() == [2.0, None, 3.0, 4.0]
    assert rows["area"].to_pylist() == [1, 2, 2, 2**40]
    assert rows.schema.field("area").type == pa.int64()
    whole = parquet(tmp_path / "whole.parquet", uri=["a"], floors=[2**53 + 1])
    halves = parquet(tmp_path / "halves.parquet", uri=["b"], floors=[0.5])
    assert "whole.parquet: cannot be read: column floors: Integer value" in run.refusal(
        whole, halves
    )
    texts = parquet(tmp_path / "texts.parquet", uri=["c"], floors=["two"])
    assert "list them as two sources" in run.refusal(halves, texts)
    renamed = {"manifest": texts, "rename": {"floors": "words"}}
    assert run.rows(halves, renamed)["words"].to_pylist() == [None, "two"]


def test_a_prefix_takes_images_in_any_case_and_counts_the_rest(run: Run, place: str) -> None:
    put(place, "a.JPG", "d/b.png", "d/e/c.TIFF", "notes.txt", "d/notes.TXT", "README")
    result = run.freeze(f"{place}/")
    rows = pa.concat_tables([read_rows(run.manifest, file) for file in result.files])
    assert rows["uri"].to_pylist() == [f"{place}/{n}" for n in ("a.JPG", "d/b.png", "d/e/c.TIFF")]
    assert result.skipped == {".txt": 2, "": 1}
    assert result.user_columns == []


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(run: Run, place: str) -> None:
    put(place, "a/1.jpg", "ab/2.jpg")
    assert run.uris(f"{place}/a") == [f"{place}/a/1.jpg"]


@pytest.mark.parametrize(
    ("globs", "left"),
    [
        (["*/thumbs/*"], ["a.jpg", "thumbs/b.jpg"]),
        (["**/thumbs/*"], ["a.jpg"]),
        (["thumbs/*", "[a]*"], ["x/y/thumbs/d.jpg", "x/thumbs/c.jpg"]),
    ],
)
def test_what_exclude_matches_is_left_out(
    run: Run, place: str, globs: list[str], left: list[str]
) -> None:
    put(place, "a.jpg", "thumbs/b.jpg", "x/thumbs/c.jpg", "x/y/thumbs/d.jpg")
    uris = run.uris({"prefix": place, "exclude": globs})
    assert sorted(uris) == sorted(f"{place}/{name}" for name in left)


def test_extensions_can_be_chosen(run: Run, place: str) -> None:
    put(place, "a.heic", "b.jpg")
    assert run.uris({"prefix": place, "extensions": [".HEIC"]}) == [f"{place}/a.heic"]


def test_the_run_itself_is_not_among_its_images(place: str) -> None:
    run = Run(storage.join(place, "runs/1"))
    put(place, "a.jpg", "runs/1/masks/a.png", "runs/12/b.png")
    assert run.uris(place) == [f"{place}/a.jpg", f"{place}/runs/12/b.png"]
    assert run.uris(f"{place}/**/*.png") == [f"{place}/runs/12/b.png"]


def test_a_relative_prefix_gives_absolute_paths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos", "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert run.uris("photos", "photos/*.jpg", "photos/a.jpg") == [f"{tmp_path}/photos/a.jpg"] * 3


def test_a_prefix_without_images_says_what_is_there(run: Run, place: str) -> None:
    put(place, "notes/a.txt", "notes/b.md", "notes/c.txt", "table/1.parquet", "thumbs/a.jpg")
    said = run.refusal(f"{place}/notes")
    assert "3 files, but none of them is an image: 2 .txt, 1 .md" in said
    assert f"{place}/table: holds Parquet files and no image" in run.refusal(f"{place}/table")
    assert "no such folder, or nothing in it" in run.refusal(f"{place}/nothing")
    assert "excluded" in run.refusal({"prefix": f"{place}/thumbs", "exclude": ["*"]})


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.zip", "unpack it"),
        ("a.tar.zst", "pack it as .tar"),
        ("a.TAR.XZ", "pack it as .tar"),
        ("a.tar.bz2", "pack it as .tar"),
        ("a.tsv", "name it .csv"),
        ("a.json", "jq -c '.[]' A.json > A.jsonl"),
        ("a.xlsx", "save the sheet as CSV"),
        ("a.heic", "mogrify -format jpg *.heic"),
        ("a.txt", "put a line `uri` above them"),
    ],
)
def test_a_file_that_is_no_source_comes_with_what_to_do(
    run: Run, tmp_path: Path, name: str, advice: str
) -> None:
    put(tmp_path / "files", name)
    assert advice in run.refusal(f"{tmp_path}/files/{name}")
    if "txt" not in name:
        refused = run.refusal(f"{tmp_path}/files")
        assert "1 file, but it is no image" in refused
        assert advice in refused


@pytest.mark.parametrize("folder", ["Fotos, Juni", "A [1]", "a: #2", "plain"])
def test_a_source_that_a_message_advises_can_be_typed(run: Run, place: str, folder: str) -> None:
    folder = f"{place}/{folder}"
    parquet(f"{folder}/table/a.parquet", image=[jpeg(1)])
    put(folder, "shards/a.tar", "videos/a.mp4", "photo")
    refused = [run.refusal({"manifest": f"{folder}/table/a.parquet"})]
    refused += [run.refusal({"prefix": f"{folder}/{kind}"}) for kind in ("shards", "videos")]
    if storage.is_local(place):
        refused += [run.refusal({"prefix": f"{folder}/photo"}), run.refusal({"glob": folder})]
    for message in refused:
        [advised] = re.findall(r"write (?:images: )?(\{.*?\})(?: if|$)", message)
        source = yaml.safe_load(advised)
        [location] = source.values()
        assert location.rstrip("/").startswith(folder)
        assert location.endswith(".parquet") or not is_glob(location)
        parse_source(source)


def test_a_prefix_that_is_no_folder_is_refused(run: Run, tmp_path: Path, s3: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in run.refusal(str(tmp_path / "empty"))
    assert "is a file" in run.refusal({"prefix": put(tmp_path, "x") + "/x"})
    assert "bucket" in run.refusal("s3://no-such-bucket/photos")
    assert "manifest" in run.refusal("https://example.org/photos/")


def test_other_filesystems_are_listed_too(run: Run) -> None:
    put("memory://photos", "a.jpg", "d/b.jpg", "d/thumbs/c.jpg", "run/x.jpg")
    run.folder = "memory://photos/run"
    uris = run.uris({"prefix": "memory://photos", "exclude": ["d/thumbs/*"]})
    assert uris == ["memory:///photos/a.jpg", "memory:///photos/d/b.jpg"]
    assert run.uris("memory://photos/*/*.jpg") == ["memory:///photos/d/b.jpg"]


# -------------------------------------------------------------------------------------------- globs


def test_a_glob_takes_exactly_what_it_names(run: Run, place: str) -> None:
    put(place, "a.jpg", "a.txt", "x/a.jpg", "x/y/a.jpg", "x/y/b.png")
    for glob, names in {
        "*": ["a.jpg", "a.txt"],
        "*.jpg": ["a.jpg"],
        "**/a.jpg": ["a.jpg", "x/a.jpg", "x/y/a.jpg"],
        "x/**": ["x/a.jpg", "x/y/a.jpg", "x/y/b.png"],
        "x/?/[ab].*": ["x/y/a.jpg", "x/y/b.png"],
        "x/y/b.png": ["x/y/b.png"],
    }.items():
        assert run.uris({"glob": f"{place}/{glob}"}) == [f"{place}/{name}" for name in names]


def test_a_glob_that_names_nothing_is_refused(run: Run, place: str) -> None:
    put(place, "a.jpg")
    assert "no file matches" in run.refusal(f"{place}/*.png")
    assert "no such file" in run.refusal(f"{place}/b.jpg")
    assert "not a glob" in run.refusal(f"{place}/a**/b")


def test_globs_without_meaning_are_refused(run: Run, tmp_path: Path) -> None:
    assert "prefix" in run.refusal({"glob": str(tmp_path)})
    assert "bucket" in run.refusal("s3://*/a.jpg")
    assert "manifest" in run.refusal("https://example.org/*.jpg")


def test_a_web_address_is_taken_as_it_is(run: Run) -> None:
    assert run.uris("https://example.org/a.jpg?size=[1]") == ["https://example.org/a.jpg?size=[1]"]


# ---------------------------------------------------------------------------------------- manifests


def test_user_columns_travel_in_types_that_readers_know(run: Run, tmp_path: Path) -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    naive = datetime(2024, 5, 1, 12)
    given: dict[str, tuple[pa.Array, pa.DataType, Any]] = {
        "words": (pa.array(["x"]).dictionary_encode(), pa.string(), "x"),
        "u8": (pa.array([255], pa.uint8()), pa.int16(), 255),
        "u16": (pa.array([65535], pa.uint16()), pa.int32(), 65535),
        "u32": (pa.array([2**32 - 1], pa.uint32()), pa.int64(), 2**32 - 1),
        "u64": (pa.array([2**64 - 1], pa.uint64()), pa.decimal128(20, 0), Decimal(2**64 - 1)),
        "half": (pa.array([0.5], pa.float16()), pa.float32(), 0.5),
        "ns": (pa.array([naive], pa.timestamp("ns")), pa.timestamp("us"), naive),
        "zoned": (
            pa.array([moment], pa.timestamp("ns", "Europe/Zurich")),
            pa.timestamp("us", "UTC"),
            moment,
        ),
        "nothing": (pa.nulls(1), pa.string(), None),
        "large": (pa.array(["x"], pa.large_string()), pa.string(), "x"),
        "view": (pa.array(["x"], pa.string_view()), pa.string(), "x"),
        "bytes": (pa.array([b"x"], pa.large_binary()), pa.binary(), b"x"),
        "hash": (pa.array([b"xy"], pa.binary(2)), pa.binary(), b"xy"),
        "day": (pa.array([naive.date()], pa.date64()), pa.date32(), naive.date()),
        "money": (
            pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
            pa.decimal128(9, 2),
            Decimal("1.50"),
        ),
        "flag": (pa.array([True]), pa.bool_(), True),
        "nested": (
            pa.array(
                [{"a": [1], "b": None}],
                pa.struct([("a", pa.large_list(pa.uint8())), ("b", pa.null())]),
            ),
            pa.struct([("a", pa.list_(pa.int16())), ("b", pa.string())]),
            {"a": [1], "b": None},
        ),
    }  # fmt: skip
    source = parquet(tmp_path / "m.parquet", uri=["a"], **{k: v[0] for k, v in given.items()})
    table = run.rows(source)
    for name, (_, type_, value) in given.items():
        assert table.schema.field(name).type == type_, name
        assert table[name].to_pylist() == [value], name


def test_types_that_results_cannot_hold_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "m.parquet",
        uri=["a"],
        opens=pa.array([1], pa.time64("us")),
        open_for=pa.array([1], pa.duration("s")),
        rent=pa.array([Decimal(1)], pa.decimal256(50, 0)),
        inner=pa.array([{"t": 1}], pa.struct([("t", pa.time32("s"))])),
    )
    said = run.refusal(source)
    for name in (
        "opens (time64[us])",
        "open_for (duration[s])",
        "rent (decimal256(50, 0))",
        "inner",
    ):
        assert name in said


def test_uri_column_and_rename(run: Run, tmp_path: Path) -> None:
    source = parquet(tmp_path / "m.parquet", s3_path=["a"], uri=["http://a"], IMAGE_ID=[7])
    spelled = {"manifest": source, "uri_column": "s3_path"}
    assert "rename: {uri: source_uri, IMAGE_ID: source_IMAGE_ID}" in run.refusal(spelled)
    spelled["rename"] = {"uri": "link", "IMAGE_ID": "id"}
    assert run.rows(spelled).to_pylist() == [
        {"image_id": 0, "uri": "a", "link": "http://a", "id": 7}
    ]
    renamed = {"manifest": source, "rename": {"s3_path": "uri", "uri": "link", "IMAGE_ID": "id"}}
    assert run.uris(renamed) == ["a"]
    assert "no column nope; there are s3_path" in run.refusal(
        {"manifest": source, "rename": {"nope": "x"}}
    )


def test_a_table_without_uris_says_what_it_has(run: Run, tmp_path: Path) -> None:
    said = run.refusal(parquet(tmp_path / "m.parquet", city=["x"], s3_path=["a"]))
    assert "no column uri; there are city, s3_path" in said
    assert "uri_column: s3_path" in said
    assert "rename: {s3_path: uri}" in said
    assert "int64 and not URIs" in run.refusal(parquet(tmp_path / "n.parquet", uri=[1]))


def test_names_of_ours_and_names_twice_come_with_their_rename(run: Run, tmp_path: Path) -> None:
    source = parquet(tmp_path / "m.parquet", uri=["a"], Status=["x"])
    assert "rename: {Status: source_Status}" in run.refusal(source)
    spelled = {"manifest": source, "rename": {"Status": "source_Status"}}
    assert run.rows(spelled)["source_Status"].to_pylist() == ["x"]
    twice = parquet(tmp_path / "n.parquet", uri=["a"], city=["x"], City=["y"], other=[1])
    assert "rename: {other: o, City: source_City}" in run.refusal(
        {"manifest": twice, "rename": {"other": "o"}}
    )
    assert run.rows({"manifest": twice, "rename": {"City": "town"}})["town"].to_pylist() == ["y"]


def test_a_name_that_no_column_can_have_comes_with_its_rename(run: Run, tmp_path: Path) -> None:
    source = parquet(tmp_path / "m.parquet", **{"uri": ["a"], "": ["x"], "a\0b\n": ["y"]})
    rename = yaml.safe_load(run.refusal(source).partition("rename: ")[2])
    assert rename == {"": "column", "a\0b\n": "a_b_"}
    assert run.rows({"manifest": source, "rename": rename}).column_names == [
        "image_id", "uri", "column", "a_b_",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["select", 'a"b', "a.b", "; DROP TABLE x", "'", "{0}", "e\u0301"])
def test_a_name_is_not_sql(run: Run, tmp_path: Path, name: str) -> None:
    assert run.rows(parquet(tmp_path / "m.parquet", uri=["a"], **{name: ["x"]}))[name][0].as_py()
    quoted = '"' + name.replace('"', '""') + '"'
    where = {"manifest": str(tmp_path / "m.parquet"), "where": f"{quoted} = 'x'"}
    assert run.uris(where) == ["a"]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("a.tar", "tar archives and no image: write images: {shards: DIR}"),
        ("A.TAR.GZ", "tar archives and no image: write images: {shards: DIR}"),
        ("a.mp4", "videos and no image: write images: {video: DIR}"),
        ("a.parquet", "Parquet files and no image: write images: {manifest: DIR}"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_with_its_key(
    run: Run, tmp_path: Path, name: str, held: str
) -> None:
    storage.write_bytes(f"{tmp_path}/data/{name}", b"1")
    storage.write_bytes(f"{tmp_path}/data/readme.txt", b"1")
    folder = f"{tmp_path}/data"
    assert f"holds {held.replace('DIR', folder)}" in run.refusal(folder)


@pytest.mark.parametrize("column", ["uri", "image url", "a: #'\"{}"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_row_without_uri_is_refused_with_what_leaves_it_out(
    run: Run, tmp_path: Path, column: str, value: str | None
) -> None:
    file = parquet(tmp_path / "m.parquet", **{column: ["a", "b", value], "n": [1, 2, 3]})
    source = {"manifest": file, "uri_column": column}
    said = run.refusal({**source, "where": "n > 1"})
    assert "row 2 (the first is 0)" in said
    advice = yaml.safe_load(said.partition("leave such rows out with ")[2])
    assert run.uris({**source, **advice}) == ["b"]


def test_where_keeps_order_and_types(run: Run, tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "m.parquet",
        uri=[f"{n}.jpg" for n in range(200_000)],
        n=pa.array(range(200_000), pa.uint32()),
        city=["Zürich; Kreis 4", "Basel"] * 100_000,
    )
    spelled = {"manifest": source, "where": "city = 'Zürich; Kreis 4' AND n % 4 = 0"}
    table = run.rows(spelled)
    assert table["n"].to_pylist() == list(range(0, 200_000, 4))
    assert table.schema.field("n").type == pa.int64()


@pytest.mark.parametrize(
    "where",
    [
        "nope = 1", "n = 1; DROP TABLE x", "n = 1) UNION ALL (SELECT 1", "n = 1 ORDER BY n",
        "n FROM t", "", "n, n", "count(*) > 1", "city", "n IN (SELECT 1 FROM batch)",
        "uri IN (SELECT content FROM read_text('/etc/hostname'))", "n = 1 LIMIT 1",
        "uri IN (SELECT value FROM duckdb_settings(), read_csv('/etc/passwd'))",
    ],
)  # fmt: skip
def test_where_is_a_condition_on_the_table_and_nothing_else(
    run: Run, tmp_path: Path, where: str
) -> None:
    source = parquet(tmp_path / "m.parquet", uri=["a"], n=[1], city=["x"])
    said = run.refusal({"manifest": source, "where": where})
    assert said.startswith(f"{source}: where: {where}: ")


def test_where_on_numbers_that_are_text_says_how(run: Run, tmp_path: Path) -> None:
    source = text(tmp_path / "m.csv", "uri,lat\na,47.370000\nb,47.51\n")
    said = run.refusal({"manifest": source, "where": "lat > 47.5"})
    advised = said.rpartition("is compared as ")[2].replace("column", "lat")
    assert run.uris({"manifest": source, "where": f"{advised} > 47.5"}) == ["b"]


def test_where_gives_the_same_images_in_each_time_zone(tmp_path: Path) -> None:
    """ICU finds the zone of the machine when a process begins."""
    midnight = datetime(2026, 5, 2, tzinfo=UTC)
    source = parquet(
        tmp_path / "m.parquet",
        uri=["before", "after"],
        taken=pa.array([midnight - timedelta(minutes=1), midnight], pa.timestamp("us", "UTC")),
    )
    where = "taken >= TIMESTAMP '2026-05-02' AND taken::DATE = DATE '2026-05-02'"
    folder = str(tmp_path / "manifest")
    program = (
        "from segbatch.config.images import parse_source\n"
        "from segbatch.images.manifest import freeze\n"
        f"source = parse_source({{'manifest': {source!r}, 'where': {where!r}}})\n"
        f"freeze([source], {folder!r}, reserved=set(), leave_out={folder!r})\n"
    )
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    [file] = Path(folder).glob("**/*.parquet")
    assert pq.read_table(file)["uri"].to_pylist() == ["after"]


def test_where_that_no_row_matches_is_refused(run: Run, tmp_path: Path) -> None:
    source = parquet(tmp_path / "m.parquet", uri=["a"])
    assert "no row matches" in run.refusal({"manifest": source, "where": "false"})
    assert "no row" in run.refusal(parquet(tmp_path / "e.parquet", uri=pa.array([], pa.string())))


def test_a_folder_or_glob_of_parquet_is_one_table(run: Run, place: str) -> None:
    parquet(f"{place}/zip=8004/floor=1/0.parquet", uri=["a"], n=[1])
    parquet(f"{place}/zip=0100/floor=2/0.parquet", uri=["b"], extra=["x"])
    parquet(f"{place}/_temporary/0.parquet", uri=["c"])
    put(place, "_SUCCESS", "notes.txt")
    rows = [
        {"image_id": 0, "uri": "b", "extra": "x", "zip": "0100", "floor": 2, "n": None},
        {"image_id": 1, "uri": "a", "extra": None, "zip": "8004", "floor": 1, "n": 1},
    ]
    assert run.rows({"manifest": place}).to_pylist() == rows
    assert run.rows({"manifest": f"{place}/zip=*/**/*.parquet"}).to_pylist() == rows


def test_a_folder_whose_name_ends_in_parquet_is_a_folder(run: Run, place: str) -> None:
    parquet(f"{place}/m.parquet/part-0.parquet", uri=["a"])
    assert run.uris(f"{place}/m.parquet") == ["a"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a plain web server shows it."""
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_a_video_may_be_a_web_address(run: Run, web: tuple[Path, str]) -> None:
    folder, address = web
    film(folder / "clip.mp4", [0, 40])
    assert run.uris(f"{address}/clip.mp4") == [
        f"{address}/clip.mp4#t={t}" for t in ("0.000", "0.040")
    ]


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.parquet", "m.jsonl"])
def test_a_manifest_may_be_a_web_address(run: Run, web: tuple[Path, str], name: str) -> None:
    folder, address = web
    if name == "m.parquet":
        parquet(folder / name, uri=["a"])
    else:
        text(folder / name, "uri\na\n" if "csv" in name else '{"uri": "a"}\n')
    assert run.uris({"manifest": f"{address}/{name}?signature=x"}) == ["a"]
    said = run.refusal({"manifest": f"{address}/nothing-{name}?signature=x"})
    assert "no such file" in said
    assert "signature" not in said


SIGNED = "?id=7&X-Amz-Signature=SECRET"
WRONG_FILES: dict[str, bytes] = {
    "ragged.csv": b"uri,a\nx,1\ny,1,2\n",
    "latin.csv": "uri\nZ\u00fcrich.jpg\n".encode("cp1252"),
    "latin.jsonl": '{"uri": "Z\u00fcrich.jpg"}\n'.encode("cp1252"),
    "twice.csv": b"uri,a,A\nx,1,2\n",
    "torn.jsonl": b'{"uri": \n',
    "torn.csv.gz": b"no gzip",
    "torn.parquet": b"PAR1",
    "list.txt": b"a.jpg\n",
    "photos.tar": b"",
    "clip.mp4": b"no film",
    "manifest.json": b"{}",
}


def test_no_message_has_the_signature_of_a_web_address_or_the_path_of_a_copy(
    run: Run, web: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, address = web
    for name, content in WRONG_FILES.items():
        (folder / name).write_bytes(content)
    picture = encoded(Image.new("RGB", (4, 4)), "PNG")
    parquet(folder / "images.parquet", image=[picture])
    parquet(folder / "time.parquet", uri=["a"], at=pa.array([1], pa.time64("us")))
    parquet(folder / "thumbnail.parquet", uri=[None], thumbnail=[picture])
    named = ["missing.csv", "images.parquet", "time.parquet", "thumbnail.parquet", *WRONG_FILES]
    sources: list[tuple[str, dict[str, Any]]] = [
        *((name, {"manifest": f"{address}/{name}{SIGNED}"}) for name in named),
        *(
            ("photos.tar", {kind: f"{address}/photos.tar{SIGNED}"})
            for kind in ("table", "shards", "inventory", "prefix")
        ),
        ("list.txt", {"inventory": f"{address}/list.txt{SIGNED}"}),
        ("twice.csv", {"panorama": f"{address}/twice.csv{SIGNED}"}),
    ]
    for name, source in sources:
        refusal = run.refusal(source)
        shown = refusal + capsys.readouterr().err
        assert f"{address}/{name}" in refusal
        assert "SECRET" not in shown
        assert "/segbatch-" not in shown
        assert "{table: http" not in shown
    failed = fetch(run.rows(f"{address}/clip.mp4{SIGNED}"), storage.ReadLimits())
    assert "clip.mp4: no video" in failed["message"][0].as_py()
    assert "SECRET" not in failed["message"][0].as_py()


def test_a_delta_table_is_refused(run: Run, place: str) -> None:
    parquet(f"{place}/table/0.parquet", uri=["a"])
    put(place, "table/_delta_log/00000000000000000000.json")
    assert "Delta table" in run.refusal({"manifest": f"{place}/table"})
    assert "Delta table" in run.refusal({"manifest": f"{place}/table/*.parquet"})


def test_manifests_that_are_none_are_refused(run: Run, place: str) -> None:
    put(place, "empty.parquet", "table.xlsx", "empty.csv", "mixed/a.csv", "mixed/b.parquet")
    text(f"{place}/gone.csv.gz", "")
    storage.write_bytes(f"{place}/plain.csv.gz", b"uri\na\n")
    assert "cannot be read" in run.refusal(f"{place}/empty.parquet")
    assert "must end in .parquet, .csv" in run.refusal({"manifest": f"{place}/table.xlsx"})
    assert "several kinds" in run.refusal({"manifest": f"{place}/mixed/*"})
    assert "no such file" in run.refusal(f"{place}/nothing.csv")
    assert "has no rows" in run.refusal(f"{place}/empty.csv")
    assert "has no rows" in run.refusal(f"{place}/gone.csv.gz")
    assert "cannot be read" in run.refusal(f"{place}/plain.csv.gz")


# ------------------------------------------------------------------------------- CSV and JSON lines


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"])
def test_csv_types_come_from_the_whole_file(run: Run, place: str, name: str) -> None:
    # 40,000 rows of numbers, and then one that is none: beyond what a sample would see.
    lines = [f"s3://b/{n}.jpg,{n},{n},{n}.5" for n in range(40_000)]
    source = text(f"{place}/{name}", "\n".join(["uri,a,b,c", *lines, "x,A,7,0.25\n"]))
    table = run.rows(source)
    assert [field.type for field in table.schema][2:] == [pa.string(), pa.int64(), pa.float64()]
    assert table["uri"].to_pylist()[:2] == ["s3://b/0.jpg", "s3://b/1.jpg"]
    assert table["b"].to_pylist() == [*range(40_000), 7]


@pytest.mark.parametrize(
    ("values", "type_", "read_as"),
    [
        (["8004", "0042"], pa.string(), ["8004", "0042"]),
        (["-01", "5"], pa.string(), ["-01", "5"]),
        (["0", "-7", ""], pa.int64(), [0, -7, None]),
        (["0.5", "0", "1000.0"], pa.float64(), [0.5, 0, 1000]),
        (["0.5", "1e3"], pa.string(), ["0.5", "1e3"]),
        (["1E5", "2E7"], pa.string(), ["1E5", "2E7"]),
        (["1.50", "2.25"], pa.string(), ["1.50", "2.25"]),
        (["0.30000000000000004"], pa.float64(), [0.30000000000000004]),
        (["0.300000000000000041"], pa.string(), ["0.300000000000000041"]),
        (["-0"], pa.string(), ["-0"]),
        (["nan", "1"], pa.string(), ["nan", "1"]),
        ([" 1", "2"], pa.string(), [" 1", "2"]),
        (["00.5", "1.5"], pa.string(), ["00.5", "1.5"]),
        (["9223372036854775807"], pa.int64(), [2**63 - 1]),
        (["9223372036854775808", "1"], pa.string(), ["9223372036854775808", "1"]),
        (["9007199254740993", "0.5"], pa.string(), ["9007199254740993", "0.5"]),
        (["+41791234567"], pa.string(), ["+41791234567"]),
        (["true", "false"], pa.bool_(), [True, False]),
        (["true", "FALSE"], pa.string(), ["true", "FALSE"]),
        (["12:30"], pa.string(), ["12:30"]),
        (["2024-05-01"], pa.string(), ["2024-05-01"]),
        (["25-11-2025", "03-02-2025"], pa.string(), ["25-11-2025", "03-02-2025"]),
        (["2024-05-01T14:00:00+02:00"], pa.string(), ["2024-05-01T14:00:00+02:00"]),
        (["6F9619FF-8B86-D011-B42D-00C04FC964FF"], pa.string(),
         ["6F9619FF-8B86-D011-B42D-00C04FC964FF"]),
        (["", ""], pa.string(), [None, None]),
    ],
)  # fmt: skip
def test_csv_values_lose_nothing(
    run: Run, tmp_path: Path, values: list[str], type_: pa.DataType, read_as: list[Any]
) -> None:
    lines = "".join(f"{n}.jpg,{value}\n" for n, value in enumerate(values))
    table = run.rows(text(tmp_path / "m.csv", f"uri,x\n{lines}"))
    assert table.schema.field("x").type == type_
    assert table["x"].to_pylist() == read_as


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1
).filter(lambda text: not re.fullmatch(r"[-\d.]+|true|false", text))
INT64 = st.integers(-(2**63), 2**63 - 1)
COLUMNS = {
    "text": TEXTS,
    "written": st.sampled_from(
        ["08:05", "25-11-2025", "2025-11-25T08:05:00Z", "007", "1E5", "+41", "1.50", "NULL", "NaN",
         "6F9619FF-8B86-D011-B42D-00C04FC964FF", "{}", "[1]", '"', "'", " a ", "1,5", "\t", "True"]
    ),
    "whole": INT64,
    "decimal": st.integers(-(10**15), 10**15).map(lambda number: number / 1000),
    "flag": st.booleans(),
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(list(COLUMNS)), st.none(), min_size=1).flatmap(
        lambda names: st.lists(
            st.fixed_dictionaries({name: st.none() | COLUMNS[name] for name in names}),
            min_size=1,
            max_size=5,
        )
    )
)
def test_the_same_table_gives_the_same_rows_in_every_format(rows: list[dict[str, Any]]) -> None:
    rows = [{"uri": f"s3://b/{number} ä.jpg", **row} for number, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        run, table = Run(f"{folder}/run"), pa.Table.from_pylist(rows)
        pq.write_table(table, f"{folder}/m.parquet")
        _write_csv(f"{folder}/m.csv", rows)
        Path(folder, "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        read = [run.rows(f"{folder}/m.{kind}").to_pylist() for kind in ("parquet", "csv", "jsonl")]
    assert read[1] == read[0]
    assert read[2] == read[0]


def _write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            values = [row[name] for name in rows[0]]
            writer.writerow(str(v).lower() if isinstance(v, bool) else v for v in values)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl"])
def test_manifests_may_be_in_any_encoding(
    run: Run, tmp_path: Path, encoding: str, line_end: str, kind: str
) -> None:
    lines = ["uri,city", "a.jpg,Zürich"]
    if kind == "jsonl":
        lines = [json.dumps({"uri": "a.jpg", "city": "Zürich"}, ensure_ascii=False)]
    data = f"{line_end.join(lines)}{line_end}".encode(encoding)
    (tmp_path / f"m.{kind}").write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    [row] = run.rows(str(tmp_path / f"m.{kind}")).to_pylist()
    assert (row["uri"], row["city"]) == ("a.jpg", "Zürich")


def test_a_manifest_that_is_no_unicode_is_refused(run: Run, tmp_path: Path) -> None:
    for name, content in {
        "m.csv": "uri,city\na.jpg,Zürich\n",
        "h.csv": "uri,Größe\na.jpg,1\n",
        "m.jsonl": '{"uri": "a.jpg", "city": "Zürich"}\n',
    }.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        assert "UTF-8" in run.refusal(str(tmp_path / name)), name


def test_a_list_without_a_header_says_what_to_put_above_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    for content in ("s3://b/a.jpg\ns3://b/c.jpg\n", "photos/a.JPG,x\nphotos/b.JPG,y\n"):
        said = run.refusal(text(path, content))
        assert "its first line is no header: put a line" in said
        first = content.partition("\n")[0].partition(",")[0]
        assert "is no header" in run.refusal({"manifest": str(path), "uri_column": first})
        header = "uri,city\n" if "," in content else "uri\n"
        assert len(run.uris(text(path, header + content))) == 2


def test_csv_of_excel_and_blanks_around_uris(run: Run, tmp_path: Path) -> None:
    for content in (
        "sep=;\r\nuri;city\r\na.jpg;x,y\r\n",
        '"sep=;"\nuri;city\n"a.jpg ";x,y\n',
        '"city, the";uri\nx,y; a.jpg \n',
    ):
        assert run.uris(text(tmp_path / "m.csv", content)) == ["a.jpg"]


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"])
def test_csv_with_two_kinds_of_line_ends_and_blank_lines_above_the_header(
    run: Run, tmp_path: Path, name: str
) -> None:
    for content in (
        "uri,n\r\na.jpg,1\nb.jpg,2\r\n\r\n",
        "uri,n\na.jpg,1\r\nb.jpg,2\n",
        "\n \r\nuri,n\na.jpg,1\nb.jpg,2\n",
        "sep=;\n\nuri;n\na.jpg;1\nb.jpg;2\n",
    ):
        rows = run.rows(text(tmp_path / name, content)).drop_columns("image_id").to_pylist()
        assert rows == [{"uri": "a.jpg", "n": 1}, {"uri": "b.jpg", "n": 2}]
    quoted = text(tmp_path / name, 'uri,n\r\na.jpg,"1\n2"\r\nb.jpg,2\r\n')
    assert run.rows(quoted)["n"].to_pylist() == ["1\n2", "2"]
    mixed = text(tmp_path / name, 'uri,n\na.jpg,"1\r\n2"\nb.jpg,2\n')
    assert run.rows(mixed)["n"].to_pylist() == ["1\r\n2", "2"]


def test_a_file_without_rows_or_with_a_comment_above_its_header_says_so(
    run: Run, tmp_path: Path
) -> None:
    for name, content in {"m.csv": "", "n.csv": "\n\n", "m.jsonl": "", "n.jsonl": "\n"}.items():
        assert run.refusal(text(tmp_path / name, content)).endswith(f"{name}: has no rows")
    said = run.refusal(text(tmp_path / "m.csv", "# exported 2024\nuri\na.jpg\n"))
    assert said.endswith("m.csv: its first line is a comment and no header: delete it")
    said = run.refusal(text(tmp_path / "m.csv", "n: 1,a\nx,y\n"))
    advised = said.partition("for example ")[2].partition(" or rename")[0]
    assert run.uris({"manifest": str(tmp_path / "m.csv"), **yaml.safe_load(advised)})


def test_json_numbers_that_no_number_holds_stay_as_they_are_written(
    run: Run, tmp_path: Path
) -> None:
    lines = [
        '{"uri": "a", "big": 123456789012345678901234, "u": 18446744073709551615, "f": NaN,'
        ' "m": 1}',
        '{"uri": "b", "big": 0.5, "u": 1, "f": -Infinity, "m": {"x": [1]}, "n": {"at": "08:05"}}',
    ]
    first, second = run.rows(text(tmp_path / "m.jsonl", "\n".join(lines))).to_pylist()
    assert (first["big"], first["u"], first["m"]) == (
        "123456789012345678901234", "18446744073709551615", "1"
    )  # fmt: skip
    assert (second["big"], second["u"], second["m"]) == ("0.5", "1", '{"x":[1]}')
    assert np.isnan(first["f"])
    assert second["f"] == -np.inf
    assert second["n"] == {"at": "08:05"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"id": [9007199254740993, 0.5]}', '{"id":[9007199254740993,0.5]}'),
        ('{"id": 12345678901234567890}', '{"id":12345678901234567890}'),
        ("[1, 123456789012345678901234]", "[1,123456789012345678901234]"),
        ('{"x": 1, "X": 2}', '{"x":1,"X":2}'),
        ('{"": 1}', '{"":1}'),
        ('{"x": [{"": 1}]}', {"x": ['{"":1}']}),
        (
            '{"id": 9007199254740993, "x": 1e22, "t": "\\"12345678901234567890.123"}',
            {"id": 9007199254740993, "x": 1e22, "t": '"12345678901234567890.123'},
        ),
        ("[[0.5], [1, null], []]", [[0.5], [1.0, None], []]),
    ],
)
def test_numbers_within_json_values_lose_no_digit(
    run: Run, tmp_path: Path, value: str, expected: Any
) -> None:
    lines = f'{{"uri": "a", "m": {value}}}\n{{"uri": "b"}}\n{{"uri": "c", "m": null}}\n'
    rows = run.rows(text(tmp_path / "m.jsonl", lines))
    assert rows["m"].to_pylist() == [expected, None, None]


def test_a_partition_that_is_also_in_the_file_is_one_column(run: Run, tmp_path: Path) -> None:
    parquet(tmp_path / "t/year=2024/a.parquet", uri=["a"], year=pa.array([2024], pa.int32()))
    parquet(tmp_path / "t/year=2025/b.parquet", uri=["b"])
    table = run.rows({"manifest": str(tmp_path / "t")})
    assert table.column_names == ["image_id", "uri", "year"]
    assert table["year"].to_pylist() == [2024, 2025]
    assert table.schema.field("year").type == pa.int32()


def test_columns_of_images_are_left_out_and_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = encoded(Image.new("RGB", (4, 4)), "PNG")
    source = parquet(
        tmp_path / "m.parquet",
        uri=pa.array([b"a.jpg"]),  # Spark writes texts as binary
        image=[{"bytes": picture, "path": "a.png"}],
        thumbnail=[picture],
        hash=[b"\0\1"],
    )
    assert run.rows(source).to_pylist() == [{"image_id": 0, "uri": "a.jpg", "hash": b"\0\1"}]
    told = capsys.readouterr().err
    assert "left out, because it holds images: column image, thumbnail" in told


def test_csv_dialects(run: Run, tmp_path: Path) -> None:
    for content, rows in {
        "\ufeffuri;city\r\na,1.jpg;x\r\n": [("a,1.jpg", "x")],
        'uri,city\n"a,""1"".jpg","x\ny"\n# b.jpg,\n': [('a,"1".jpg', "x\ny"), ("# b.jpg", None)],
        "uri\tcity\na.jpg\tx": [("a.jpg", "x")],
        "city, uri\nx,a.jpg\n": [("a.jpg", "x")],
    }.items():
        table = run.rows(text(tmp_path / "m.csv", content))
        assert list(zip(table["uri"].to_pylist(), table["city"].to_pylist(), strict=True)) == rows
    assert run.uris(text(tmp_path / "m.csv", "uri\na,b;c.jpg\n")) == ["a,b;c.jpg"]
    assert run.rows(text(tmp_path / "m.csv", ",uri\n0,a\n"))["column0"].to_pylist() == [0]


def test_broken_csv_is_refused_with_its_line(run: Run, tmp_path: Path) -> None:
    said = run.refusal(text(tmp_path / "m.csv", "uri,city\na,x\nb\n"))
    assert "Line: 3" in said
    assert "Expected Number of Columns: 2 Found: 1" in said
    said = run.refusal(text(tmp_path / "m.csv", "uri,city,city\na,x,y\n"))
    assert "two columns named exactly city" in said
    assert "rename: {City: source_City}" in run.refusal(
        text(tmp_path / "m.csv", "uri,city,City\na,x,y\n")
    )


def test_several_csv_files_are_one_table(run: Run, place: str) -> None:
    text(f"{place}/1.csv", "uri,zip\na,8004\n")
    text(f"{place}/2.csv", "uri,zip\nb,0042\n")
    assert run.rows(f"{place}/*.csv")["zip"].to_pylist() == ["8004", "0042"]
    text(f"{place}/3.csv", "uri,city\nc,x\n")
    assert "another header" in run.refusal(f"{place}/*.csv")


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz", "m.ndjson"])
def test_json_lines(run: Run, place: str, name: str) -> None:
    rows = [
        {"uri": "a", "zip": "0042", "n": 1, "at": "12:30:00", "tags": ["x"], "mixed": 1},
        {"uri": "b", "zip": "8004", "n": 2.5, "at": None, "tags": [], "mixed": "y", "none": None},
    ]
    source = text(f"{place}/{name}", "".join(f"{json.dumps(row)}\n" for row in rows))
    expected = [
        {**rows[0], "image_id": 0, "mixed": "1", "none": None},
        {**rows[1], "image_id": 1},
    ]
    assert run.rows(source).to_pylist() == expected
    assert run.uris({"manifest": source, "where": "list_contains(tags, 'x')"}) == ["a"]


def test_json_that_cannot_be_read_is_refused(run: Run, tmp_path: Path) -> None:
    assert "Malformed JSON" in run.refusal(text(tmp_path / "m.jsonl", '{"uri": "a"}\n{nope\n'))
    said = run.refusal(text(tmp_path / "m.jsonl", '{"uri": "a", "city": 1, "City": 2}\n'))
    assert "City and city" in said
    said = run.refusal(text(tmp_path / "m.jsonl", '{"uri": "a", "": 2}\n'))
    assert 'the key "" is no name of a column' in said


# ---------------------------------------------------------------------------------------- inventory


def inventory(s3: Any, kind: str, files: dict[str, bytes], schema: str) -> str:
    root = s3.uri("reports")
    for name, data in files.items():
        s3.put(f"{root}/data/{name}", data)
    bucket = root.split("/")[2]
    report = {
        "sourceBucket": "photos",
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": f"reports/data/{name}", "size": len(d)} for name, d in files.items()],
    }
    s3.put(f"{root}/manifest.json", json.dumps(report).encode())
    return f"{root}/manifest.json"


def csv_inventory(s3: Any, *lines: str) -> str:
    schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate"
    data = gzip.compress("".join(f"{line}\n" for line in lines).encode())
    return inventory(s3, "CSV", {"1.csv.gz": data}, schema)


def test_an_inventory_in_csv_gives_the_latest_images(run: Run, s3: Any) -> None:
    source = csv_inventory(
        s3,
        '"photos","a%20b/caf%C3%A9.JPG","v2","true","false","10","2024-01-01T00:00:00.000Z"',
        '"photos","a%20b/caf%C3%A9.JPG","v1","false","false","10","2024-01-01T00:00:00.000Z"',
        '"photos","gone.jpg","v2","true","true","","2024-01-01T00:00:00.000Z"',
        '"photos","plus%2Bsign+space.png","v1","true","false","10","2024-01-01T00:00:00.000Z"',
        '"photos","notes.txt","v1","true","false","10","2024-01-01T00:00:00.000Z"',
    )
    result = run.freeze({"inventory": source})
    assert read_rows(run.manifest, result.files[0]).to_pylist() == [
        {"image_id": 0, "uri": "s3://photos/a b/café.JPG"},
        {"image_id": 1, "uri": "s3://photos/plus+sign space.png"},
    ]
    assert result.skipped == {".txt": 1}


def test_an_inventory_in_parquet(run: Run, s3: Any, tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "i.parquet",
        bucket=["photos"] * 3,
        key=["a%20b.jpg", "old.jpg", "gone.jpg"],
        is_latest=[True, False, True],
        is_delete_marker=[False, False, True],
    )
    files = {"1.parquet": Path(path).read_bytes()}
    source = inventory(s3, "Parquet", files, "message s3.inventory { required binary key; }")
    assert run.uris({"inventory": source}) == ["s3://photos/a%20b.jpg"]


def test_inventories_that_cannot_be_read_are_refused(run: Run, s3: Any, tmp_path: Path) -> None:
    orc = inventory(s3, "ORC", {}, "struct<key:string>")
    assert "ORC" in run.refusal({"inventory": orc})
    assert "manifest.json" in run.refusal({"inventory": text(tmp_path / "manifest.json", "{}")})
    assert "no such file" in run.refusal(Inventory(inventory=str(tmp_path / "nope.json")))
    notes = csv_inventory(s3, '"photos","notes.txt","v1","true","false","1","2024"')
    assert "1 file, but it is no image: 1 .txt" in run.refusal({"inventory": notes})


def test_the_frozen_files_are_plain_parquet(run: Run, tmp_path: Path) -> None:
    run.freeze(parquet(tmp_path / "m.parquet", uri=["a"], city=["x"]))
    rows = duckdb.sql(f"FROM '{run.manifest}/*.parquet'").fetchall()
    assert rows == [(0, "a", "x")]


# ----------------------------------------------------------------------------------- extensions


def extended(run: Run, frozen: FrozenManifest, *sources: Any) -> FrozenManifest:
    return manifest.extend(
        [parse_source(source) for source in sources],
        run.manifest,
        frozen.files,
        reserved=RESERVED,
        leave_out=run.folder,
    )


def all_rows(run: Run, frozen: FrozenManifest) -> pa.Table:
    return pa.concat_tables([read_rows(run.manifest, file) for file in frozen.files])


def test_new_images_stand_behind_the_old_ones_however_their_names_sort(
    run: Run, tmp_path: Path
) -> None:
    photos = put(tmp_path / "photos", "m.jpg", "p.jpg")
    first = run.freeze(f"{photos}/")
    put(photos, "a.jpg", "z.jpg", "note.txt")
    Path(photos, "p.jpg").unlink()
    second = extended(run, first, f"{photos}/")
    assert all_rows(run, second).to_pylist() == [
        {"image_id": number, "uri": f"{photos}/{name}.jpg"} for number, name in enumerate("mpaz")
    ]
    assert second.files[0] == first.files[0]
    assert (second.rows, second.gone, second.skipped) == (4, 1, {".txt": 1})
    assert extended(run, second, f"{photos}/").files == second.files


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1), min_size=1, max_size=4))
def test_rows_are_as_many_as_the_longest_list_has_of_each_uri(lists: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BATCH_ROWS", 2)
        run = Run(f"{folder}/run")
        table = Path(folder, "list.parquet")
        frozen: FrozenManifest | None = None
        wanted: Counter[int] = Counter()
        for numbers in lists:
            parquet(table, uri=[f"s3://b/{number}.jpg" for number in numbers], number=numbers)
            frozen = extended(run, frozen, str(table)) if frozen else run.freeze(str(table))
            wanted |= Counter(numbers)
            rows = all_rows(run, frozen)
            assert rows["image_id"].to_pylist() == list(range(frozen.rows))
            assert Counter(rows["number"].to_pylist()) == wanted
            assert frozen.duplicates == frozen.rows - len(wanted)


def test_new_rows_get_the_columns_of_the_old_ones(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "list.parquet"
    parquet(table, uri=["a"], floors=pa.array([3], pa.int32()), city=["Bern"])
    first = run.freeze(str(table))
    parquet(table, uri=["a", "b"], floors=pa.array([4, 5], pa.int64()), owner=["X", "Y"])
    second = extended(run, first, str(table))
    assert all_rows(run, second).to_pylist() == [
        {"image_id": 0, "uri": "a", "floors": 3, "city": "Bern"},
        {"image_id": 1, "uri": "b", "floors": 5, "city": None},
    ]
    assert second.left_out == ("owner",)
    parquet(table, uri=["c"], floors=["many"])
    with pytest.raises(SourceError, match="column floors is string now, and int32 in the run"):
        extended(run, second, str(table))
    assert len(list(storage.list_files(run.manifest))) == 2


def test_an_extension_that_was_killed_leaves_nothing_to_the_next(run: Run, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "a.jpg")
    first = run.freeze(f"{photos}/")
    put(photos, "b.jpg")
    extended(run, first, f"{photos}/")  # killed before run.json lists it
    Path(photos, "b.jpg").unlink()
    assert extended(run, first, f"{photos}/").files == first.files
    assert len(list(storage.list_files(run.manifest))) == 1


def test_images_are_counted_until_the_time_is_up(tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "a.jpg", "b.jpg", "c.txt")
    sources = [parse_source(f"{photos}/")]
    count = partial(manifest.count_images, sources, leave_out=str(tmp_path / "run"))
    assert count(limit_s=60) == manifest.ImageCount(2, whole=True)
    assert count(limit_s=-1) == manifest.ImageCount(2, whole=False)


# ------------------------------------------------------------------------- names of real folders


SYSTEM = ("._a.jpg", "__MACOSX/._a.jpg", ".thumbnails/a.jpg", "x/@eaDir/a.jpg", ".DS_Store")


def test_system_files_below_a_prefix_are_left_out_and_counted(run: Run, place: str) -> None:
    put(f"{place}/.cache/photos", "a.jpg", "x/b.jpg", *SYSTEM)
    frozen = run.freeze(f"{place}/.cache/photos/")
    assert frozen.rows == 2
    [(kinds, number)] = frozen.skipped.items()
    assert number == len(SYSTEM)
    assert kinds.startswith("system files (")
    assert run.uris(f"{place}/.cache/photos/._*") == [f"{place}/.cache/photos/._a.jpg"]
    assert run.uris(f"{place}/.cache/photos/.thumbnails/*.jpg") != []


def test_a_wildcard_matches_no_system_file(run: Run, place: str) -> None:
    photos = put(f"{place}/.cache/photos", "a.jpg", "x/b.jpg", "x/Thumbs.db", *SYSTEM)
    for glob, names in {
        "**/*.jpg": ["a.jpg", "x/b.jpg"],
        "*": ["a.jpg"],
        "x/*": ["x/b.jpg"],
        "**/._*": ["._a.jpg"],
        "._*": ["._a.jpg"],
        "**/.thumbnails/*.jpg": [".thumbnails/a.jpg"],
        "*/@eaDir/?.jpg": ["x/@eaDir/a.jpg"],
        "__MACOSX/._a.jpg": ["__MACOSX/._a.jpg"],
    }.items():
        assert run.uris({"glob": f"{photos}/{glob}"}) == [f"{photos}/{name}" for name in names]
    [(kinds, number)] = run.freeze(f"{photos}/**/*.jpg").skipped.items()
    assert number == 4
    assert kinds.startswith("system files (")
    assert "no file matches but 1 system file (Thumbs.db)" in run.refusal(
        {"glob": f"{photos}/x/T*"}
    )


def test_a_glob_of_manifests_matches_no_system_file(run: Run, place: str) -> None:
    text(f"{place}/a.csv", "uri\na.jpg\n")
    text(f"{place}/._a.csv", "\x00\x05\x16\x07")
    parquet(f"{place}/a.parquet", uri=["b.jpg"])
    text(f"{place}/@eaDir/a.parquet", "no Parquet")
    assert run.uris(f"{place}/*.csv", f"{place}/**/*.parquet") == ["a.jpg", "b.jpg"]


def test_links_are_followed_once_and_loops_are_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = put(tmp_path / "photos", "a.jpg", "march/b.jpg")
    elsewhere = put(tmp_path / "elsewhere", "c.jpg", "deep/d.jpg")
    Path(photos, "latest").symlink_to("march")
    Path(photos, "loop").symlink_to(".")
    Path(photos, "other").symlink_to(elsewhere)
    Path(elsewhere, "back").symlink_to(elsewhere)
    Path(elsewhere, "up").symlink_to(tmp_path)
    Path(photos, "gone").symlink_to(tmp_path / "nowhere")
    names = [uri.removeprefix(f"{photos}/") for uri in run.uris(f"{photos}/")]
    assert names == ["a.jpg", "march/b.jpg", "other/c.jpg", "other/deep/d.jpg"]
    told = capsys.readouterr().err
    for name in ("latest", "loop", "other/back", "other/up"):
        assert f"{photos}/{name}: a link to " in told


def test_a_name_that_is_no_utf8_is_escaped_and_its_file_found(run: Run, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/photos/Geb\xe4ude"
    os.makedirs(folder)
    Path(os.fsdecode(folder), "a.jpg").write_bytes(b"one")
    Path(os.fsdecode(folder + b"/T\xfcr.jpg")).write_bytes(b"two")
    for source in (f"{tmp_path}/photos/", f"{tmp_path}/photos/**/*.jpg"):
        uris = run.uris(source)
        assert uris == [
            f"file://{tmp_path}/photos/Geb%E4ude/{name}" for name in ("T%FCr.jpg", "a.jpg")
        ]
        assert [storage.read_bytes(uri) for uri in uris] == [b"two", b"one"]
    excluded = {"prefix": f"{tmp_path}/photos/", "exclude": ["*/a.jpg"]}
    assert len(run.uris(excluded)) == 1


def test_uris_of_files_are_read_as_pathlib_and_browsers_write_them(
    run: Run, tmp_path: Path
) -> None:
    for name in ("Haus 1.jpg", "Tür.jpg", "100%25.jpg", "a%20b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
        whole = (tmp_path / name).as_uri()
        spellings = [whole, f"file://{tmp_path}/{name}", f"{tmp_path}/{name}"]
        spellings += [whole.replace("//", "", 1), whole.replace("//", "//localhost", 1)]
        for uri in spellings:
            assert storage.read_bytes(uri) == name.encode()


@pytest.mark.parametrize("name", ["glob [2024]", "what?", "a*b"])
def test_a_folder_and_a_file_may_have_names_that_look_like_globs(
    run: Run, tmp_path: Path, name: str
) -> None:
    photos = put(tmp_path / name, "a.jpg")
    assert run.uris(f"{photos}/") == run.uris(photos) == [f"{photos}/a.jpg"]
    put(tmp_path, f"{name}.jpg")
    assert run.uris(f"{tmp_path}/{name}.jpg") == [f"{tmp_path}/{name}.jpg"]
