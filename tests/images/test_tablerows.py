"""Tables that hold images: a row of a Parquet file is an image of a run."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segbatch import storage
from segbatch.config.images import Table
from segbatch.errors import SourceError
from segbatch.images.faults import Undecodable
from segbatch.images.parts import part_extension, read_images, read_parts
from segbatch.images.place import PLACE, parts_of
from tests.collection import jpeg
from tests.images.frozen import frozen

LIMITS = storage.ReadLimits()
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(number: int = 10, first: int = 0, **columns: Any) -> pa.Table:
    """Photographs as Hugging Face stores them, with a column of the user's."""
    rows = range(first, first + number)
    photos = [{"bytes": jpeg(row), "path": f"{row}.jpg"} for row in rows]
    given = {"image": pa.array(photos, STRUCT), "city": [f"city {row}" for row in rows]}
    return pa.table(given | columns)


def put(where: str, content: pa.Table, **options: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(content, sink, **options)
    storage.write_bytes(where, sink.getvalue())


def test_every_row_is_an_image_with_its_other_columns(root: str, tmp_path: Path) -> None:
    put(f"{root}/a.parquet", table(10), row_group_size=4)
    put(f"{root}/b.parquet", table(3, first=10))
    rows = frozen(tmp_path, {"table": f"{root}/*.parquet"})
    assert rows.column_names == ["image_id", "uri", "city", PLACE.name]
    assert rows["city"].to_pylist() == [f"city {row}" for row in range(13)]
    assert rows["uri"][5].as_py() == f"{root}/a.parquet#row=5"
    assert rows["uri"][11].as_py() == f"{root}/b.parquet#row=1"
    assert read_images(rows["uri"].to_pylist(), LIMITS) == [jpeg(row) for row in range(13)]
    some = rows["uri"].to_pylist()[9:3:-2]
    assert read_images(some, LIMITS) == [jpeg(row) for row in (9, 7, 5)]


def test_binary_columns_hold_images_too(root: str, tmp_path: Path) -> None:
    photos = [jpeg(0), jpeg(1)]
    put(f"{root}/a.parquet", pa.table({"photo": photos, "name": ["a", "b"]}))
    rows = frozen(tmp_path, {"table": f"{root}/a.parquet"})
    assert read_images(rows["uri"].to_pylist(), LIMITS) == photos


@pytest.mark.parametrize(
    "type_",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct([("bytes", pa.binary_view())])],
)
def test_images_are_found_behind_nulls_and_in_every_binary_type(
    tmp_path: Path, type_: pa.DataType
) -> None:
    is_struct = pa.types.is_struct(type_)
    photos = [None] * 40 + [{"bytes": jpeg(40)} if is_struct else jpeg(40)]
    put(f"{tmp_path}/a.parquet", pa.table({"photo": pa.array(photos, type_), "n": range(41)}))
    rows = frozen(tmp_path, {"table": f"{tmp_path}/a.parquet"})
    assert rows.column_names == ["image_id", "uri", "n", PLACE.name]
    found = read_images(rows["uri"].to_pylist()[39:], LIMITS)
    assert found == [storage.Unreadable("not_found", "the row has no image"), jpeg(40)]


def test_columns_of_images_are_left_out_of_the_results_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = {"bytes": jpeg(5), "path": None}
    more = {
        "crops": pa.array([[], [photo, photo], None], pa.list_(STRUCT)),
        "thumbnails": pa.array([None, [jpeg(6)], []], pa.list_(pa.binary())),
        "pair": pa.array([{"left": photo, "right": photo}] * 3),
        "mask": pa.array([None, jpeg(7), None], pa.binary()),
        "hashes": pa.array([[b"\0"], None, []], pa.list_(pa.binary())),
    }
    put(f"{tmp_path}/a.parquet", table(3, **more, s3_path=["a", "b", "c"]))
    for kind, rest in (
        ("table", {"image_column": "image"}),
        ("manifest", {"uri_column": "s3_path"}),
    ):
        rows = frozen(tmp_path, {kind: f"{tmp_path}/a.parquet", **rest}, kind)
        assert {"city", "hashes"} < set(rows.column_names)
        assert not {"image", "crops", "thumbnails", "pair", "mask"} & set(rows.column_names)
        said = capsys.readouterr().err
        images = "image, " * (kind == "manifest")
        assert f"holds images: column {images}mask, crops, thumbnails, pair" in said
    with pytest.raises(SourceError, match=r"several columns hold images \(image, mask\)"):
        frozen(tmp_path, {"table": f"{tmp_path}/a.parquet"}, "unnamed")
    with pytest.raises(SourceError, match="column crops holds images in lists or structs"):
        frozen(tmp_path, {"table": f"{tmp_path}/a.parquet", "image_column": "crops"}, "nested")
    put(f"{tmp_path}/b.parquet", pa.table({"crops": more["crops"]}))
    with pytest.raises(SourceError, match="column crops holds images in lists or structs"):
        frozen(tmp_path, {"table": f"{tmp_path}/b.parquet"}, "only")


def test_a_uri_without_a_column_stays_the_image_that_it_was(tmp_path: Path) -> None:
    masks = pa.array([None, jpeg(7)], pa.binary())  # earlier versions did not see images there
    put(f"{tmp_path}/a.parquet", table(2, mask=masks))
    uris = [f"{tmp_path}/a.parquet#row={row}" for row in range(2)]
    assert read_images(uris, LIMITS) == [jpeg(0), jpeg(1)]
    rows = frozen(tmp_path, {"table": f"{tmp_path}/a.parquet", "image_column": "image"})
    assert rows["uri"].to_pylist() == uris


def test_listing_a_table_reads_a_page_of_its_images(tmp_path: Path) -> None:
    photo, noise = jpeg(0), random.Random(0).randbytes(10_000)
    photos = [photo + bytes([row % 256]) + noise for row in range(3000)]
    columns = {"photo": pa.array(photos, pa.binary()), "number": range(3000)}
    options = {"compression": "none", "use_dictionary": False}
    put(f"{tmp_path}/a.parquet", pa.table(columns), **options)
    put(f"{tmp_path}/small.parquet", table(1))
    frozen(tmp_path, {"table": f"{tmp_path}/small.parquet"}, "small")  # what it imports is read
    before = _bytes_read()
    assert len(frozen(tmp_path, {"table": f"{tmp_path}/a.parquet"})) == 3000
    assert _bytes_read() - before < 15_000_000  # of 32: a page of pyarrow has 1,024 values


def _bytes_read() -> int:
    """By this process, also from the page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_large_row_groups_are_said_once_with_what_makes_them_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = [{"bytes": jpeg(0), "path": None}] * 1001
    for name in ("a b's.parquet", "c.parquet"):
        put(str(tmp_path / name), pa.table({"image": pa.array(photos, STRUCT)}))
    small = pa.table({"image": pa.array(photos, STRUCT)})
    put(str(tmp_path / "d.parquet"), small, row_group_size=1000)
    for run in ("one", "two"):  # a plan lists the images and a run does
        frozen(tmp_path, {"table": f"{tmp_path}/*.parquet"}, run)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/a b's.parquet: a row group has 1,001 images (1 more file")
    advised = line.partition("small ones: ")[2]
    subprocess.run(advised.replace("python", sys.executable, 1), shell=True, check=True)
    rows = frozen(tmp_path, {"table": "small-a b's.parquet"}, "small")
    assert rows.num_rows == 1001
    assert capsys.readouterr().err == ""


def test_one_of_several_columns_is_chosen_by_name(root: str, tmp_path: Path) -> None:
    masks = pa.array([None, *({"bytes": jpeg(40 + n), "path": None} for n in range(2))], STRUCT)
    put(f"{root}/a.parquet", table(3, **{"mask & more": masks}))
    with pytest.raises(SourceError, match=r"several columns hold images \(image, mask & more\)"):
        frozen(tmp_path, {"table": root}, "refused")
    rows = frozen(tmp_path, {"table": root, "image_column": "mask & more"})
    assert rows.column_names == ["image_id", "uri", "city", PLACE.name]
    assert rows["uri"][1].as_py().endswith("a.parquet#row=1&column=mask%20%26%20more")
    found = read_images(rows["uri"].to_pylist(), LIMITS)
    assert found[0] == storage.Unreadable("not_found", "the row has no image")
    assert found[1:] == [jpeg(40), jpeg(41)]


def test_a_path_without_bytes_is_read_from_there(root: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{root}/photos/7.jpg", jpeg(7))
    photos = [
        {"bytes": None, "path": "photos/7.jpg"},
        {"bytes": None, "path": f"{root}/photos/7.jpg"},
        {"bytes": None, "path": "photos/8.jpg"},
        {"bytes": None, "path": "/etc/hostname"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
    ]
    put(f"{root}/a.parquet", pa.table({"image": pa.array(photos, STRUCT)}))
    rows = frozen(tmp_path, {"table": f"{root}/a.parquet"})
    first, second, missing, local, *gone, empty = read_images(rows["uri"].to_pylist(), LIMITS)
    assert first == second == jpeg(7)
    gone.append(missing)
    if not storage.is_local(root):
        assert "on the machine that wrote the table" in getattr(local, "message", "")
    assert [getattr(reason, "kind", None) for reason in gone] == ["not_found"] * 2
    assert empty == b""  # an empty file, which decoding names


def test_a_table_in_a_bucket_reads_no_file_of_this_machine(s3: Any, tmp_path: Path) -> None:
    root = s3.uri("table")
    storage.write_bytes(f"{root}/7.jpg", jpeg(7))
    photo = tmp_path / "secret.jpg"
    photo.write_bytes(jpeg(0))
    with zipfile.ZipFile(tmp_path / "secret.zip", "w") as archive:
        archive.write(photo, "secret.jpg")
    paths = [
        f"{root}/7.jpg",
        f"{photo}",
        f"file://{photo}",
        f"FILE://{photo}",
        f"local://{photo}",
        f"zip://secret.jpg::{tmp_path}/secret.zip",
        f"simplecache::file://{photo}",
        f"s3::file://{photo}",
    ]
    photos = [{"bytes": None, "path": path} for path in paths]
    put(f"{root}/a.parquet", pa.table({"image": pa.array(photos, STRUCT)}))
    rows = frozen(tmp_path, {"table": f"{root}/a.parquet"})
    first, *others = read_images(rows["uri"].to_pylist(), LIMITS)
    assert first == jpeg(7)
    assert [getattr(one, "kind", None) for one in others] == ["not_found"] * 7


def test_rows_are_chosen_and_columns_renamed(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.parquet", table(6, image_id=list(range(6))))
    source = {"table": f"{tmp_path}/a.parquet", "where": "city > 'city 3'"}
    with pytest.raises(SourceError, match=r"image_id belongs to segbatch.*rename: \{image_id: "):
        frozen(tmp_path, source, "refused")
    rows = frozen(tmp_path, {**source, "rename": {"image_id": "number"}})
    assert rows["number"].to_pylist() == [4, 5]
    assert [uri.rpartition("#")[2] for uri in rows["uri"].to_pylist()] == ["row=4", "row=5"]


def test_partitions_become_columns(tmp_path: Path) -> None:
    for city in ("bern", "zurich"):
        put(f"{tmp_path}/data/city={city}/0.parquet", table(2).drop_columns(["city"]))
    rows = frozen(tmp_path, {"table": f"{tmp_path}/data"})
    assert rows["city"].to_pylist() == ["bern", "bern", "zurich", "zurich"]


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        ({"uri": ["a.jpg"]}, {}, "no column holds images: write images: {manifest: "),
        ({"image": [jpeg(0)]}, {"image_column": "foto"}, "no column foto; there are image"),
        ({"image": [jpeg(0)]}, {"table": "http://h/a.parquet"}, "not read over http"),
        ({"image": [jpeg(0)]}, {"table": "DIR/*.csv"}, "no Parquet file"),
    ],
)
def test_what_holds_no_images_is_said(
    tmp_path: Path, content: dict[str, Any], source: dict[str, str], message: str
) -> None:
    put(f"{tmp_path}/a.parquet", pa.table(content))
    given = {"table": f"{tmp_path}/a.parquet"} | source
    given["table"] = given["table"].replace("DIR", str(tmp_path))
    with pytest.raises(SourceError, match=message):
        frozen(tmp_path, given)


def test_a_manifest_that_holds_its_images_says_how_they_are_read(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.parquet", table(2))
    with pytest.raises(SourceError, match="no column uri, and holds images itself") as caught:
        frozen(tmp_path, f"{tmp_path}/a.parquet", "refused")
    advised = str(caught.value).rpartition("write images: {table: ")[2].removesuffix("}")
    assert len(frozen(tmp_path, Table(table=advised))) == 2


def test_a_manifest_may_hold_images_besides_its_renamed_uris(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.parquet", table(2, s3_path=["s3://b/0.jpg", "s3://b/1.jpg"]))
    source = {"manifest": f"{tmp_path}/a.parquet", "rename": {"s3_path": "uri"}}
    assert frozen(tmp_path, source)["uri"].to_pylist() == ["s3://b/0.jpg", "s3://b/1.jpg"]


def test_damage_is_the_reason_of_its_rows(root: str, tmp_path: Path) -> None:
    put(f"{root}/a.parquet", table(8), row_group_size=2, compression="none")
    rows = frozen(tmp_path, {"table": f"{root}/a.parquet"})["uri"].to_pylist()
    put(f"{root}/a.parquet", table(5))  # another table has taken its place
    *there, reason = read_images(rows[:6], LIMITS)
    assert there == [jpeg(row) for row in range(5)]
    assert reason == Undecodable("truncated", "the table has only 5 rows now")
    storage.write_bytes(f"{root}/a.parquet", b"PAR1 and no more")
    for found in read_images(rows[:2], LIMITS):
        assert isinstance(found, Undecodable)
    storage.delete([f"{root}/a.parquet"])
    for found in read_images(rows[:2], LIMITS):
        assert isinstance(found, storage.Unreadable)
        assert found.kind == "not_found"


def test_a_file_that_was_replaced_gives_no_other_images(root: str, tmp_path: Path) -> None:
    put(f"{root}/a.parquet", table(3))
    rows = frozen(tmp_path, {"table": f"{root}/a.parquet"})
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(row) for row in range(3)]
    put(f"{root}/a.parquet", table(3, first=5))
    assert read_parts(parts_of(rows), LIMITS) == [storage.REPLACED] * 3


def test_a_column_that_is_not_there_and_values_that_are_no_images_are_reasons(
    root: str, tmp_path: Path
) -> None:
    put(f"{root}/a.parquet", table(2, note=["a", "b"]))
    missing, text = read_images(
        [f"{root}/a.parquet#row=0&column=photo", f"{root}/a.parquet#row=0&column=note"], LIMITS
    )
    assert getattr(missing, "kind", None) == "undecodable"
    assert "no column photo" in getattr(missing, "message", "")
    assert not isinstance(text, bytes)


def test_an_image_above_the_limit_is_not_taken(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.parquet", table(1))
    rows = frozen(tmp_path, {"table": f"{tmp_path}/a.parquet"})["uri"].to_pylist()
    [found] = read_images(rows, storage.ReadLimits(max_bytes=10))
    assert isinstance(found, storage.Unreadable)
    assert found.kind == "too_large"


def test_copies_of_parts_have_the_extension_of_their_content() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (2, 2)).save(sink, "PNG")
    assert part_extension("s3://b/a.parquet#row=1", jpeg(0)) == ".jpg"
    assert part_extension("s3://b/a.parquet#row=1", sink.getvalue()) == ".png"
    assert part_extension("s3://b/a.parquet#row=1", b"") == ""
    assert part_extension("s3://b/photo.jpg", jpeg(0)) == ""
