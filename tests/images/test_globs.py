"""Files and folders whose names look like globs: the file that is there is meant."""

from __future__ import annotations

import glob
import gzip
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.images.listing import has_wildcard
from segbatch.images.parts import read_images
from tests.collection import jpeg
from tests.conftest import S3
from tests.films import film
from tests.images.frozen import frozen
from tests.images.test_shards import tar

NAMES = ["cams [2024]", "what?", "a*b"]
DECOYS = ["cams 2", "whats", "axxb"]  # what the names match as globs


@pytest.fixture
def uris(tmp_path: Path) -> Callable[[Any], list[str]]:
    """The URIs of a source."""
    numbers = itertools.count()
    return lambda source: frozen(tmp_path, source, f"run-{next(numbers)}")["uri"].to_pylist()


def parquet(where: str, **columns: Any) -> str:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(where, sink.getvalue())
    return where


def manifest(uri: str, image: str) -> str:
    """A manifest of one image."""
    if uri.endswith(".parquet"):
        return parquet(uri, uri=[image])
    text = f"uri\n{image}\n" if ".csv" in uri else f'{{"uri": "{image}"}}\n'
    pack = gzip.compress if uri.endswith(".gz") else bytes
    storage.write_bytes(uri, pack(text.encode()))
    return uri


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_a_manifest_may_have_such_a_name(
    uris: Callable[[Any], list[str]], tmp_path: Path, name: str, suffix: str
) -> None:
    listed = manifest(f"{tmp_path}/{name}{suffix}", "a")
    for decoy in DECOYS:
        manifest(f"{tmp_path}/{decoy}{suffix}", "decoy")
    assert uris(listed) == ["a"]
    # A glob takes what it matches, and each file of it as it is named.
    assert uris({"manifest": f"{tmp_path}/{glob.escape(name)}{suffix}*"}) == ["a"]
    assert sorted(uris({"manifest": f"{tmp_path}/*{suffix}"})) == ["a"] + ["decoy"] * 3


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet"])
def test_a_manifest_in_a_bucket_may_have_such_a_name(
    uris: Callable[[Any], list[str]], s3: S3, suffix: str
) -> None:
    for name in NAMES:
        assert uris(manifest(f"{s3.uri('data')}/{name}{suffix}", "a")) == ["a"]
    root = s3.uri("data")
    for name in (NAMES[0], "plain"):
        manifest(f"{root}/{name}{suffix}", name)
    assert uris({"manifest": f"{root}/*{suffix}"}) == [NAMES[0], "plain"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_folder_of_a_manifest_may_have_such_a_name(
    uris: Callable[[Any], list[str]], tmp_path: Path, name: str, suffix: str
) -> None:
    listed = manifest(f"{tmp_path}/{name}/list{suffix}", "a")
    for decoy in DECOYS:
        manifest(f"{tmp_path}/{decoy}/list{suffix}", "decoy")
    assert uris(listed) == ["a"]
    if suffix == ".parquet":
        for folder in (f"{tmp_path}/{name}/", f"{tmp_path}/{name}"):
            assert uris({"manifest": folder}) == ["a"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_shards_and_videos_may_have_such_names(
    uris: Callable[[Any], list[str]], root: str, tmp_path: Path, name: str
) -> None:
    folder = f"{root}/{name}"
    table = parquet(f"{folder}/{name}.parquet", image=[jpeg(1)])
    storage.write_bytes(f"{folder}/{name}-0.tar", tar([("a.jpg", jpeg(1))]))
    film(tmp_path / "clip.mp4", [0], sound=None)
    storage.write_bytes(f"{folder}/{name}.mp4", (tmp_path / "clip.mp4").read_bytes())
    row, member = f"{table}#row=0", f"{folder}/{name}-0.tar#member=a.jpg"
    frame = f"{folder}/{name}.mp4#t=0.000"
    if storage.is_local(root):
        assert uris({"table": table}) == [row]
        assert uris(f"{folder}/{name}-0.tar") == [member]
        assert uris(f"{folder}/{name}.mp4") == [frame]
    assert uris(f"{folder}/{name}-{{0..0}}.tar") == [member]
    spellings = [f"{folder}/", folder]
    if not storage.is_local(root):  # there the slash at its end says that it is a folder
        spellings = [f"{folder}/"] * ("*" not in name)
    for spelled in spellings:
        assert uris({"table": spelled}) == [row]
        assert uris({"shards": spelled}) == [member]
        assert uris({"video": spelled}) == [frame]


def test_a_folder_of_videos_may_be_called_like_a_video(
    uris: Callable[[Any], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "A001.mov").mkdir()
    film(tmp_path / "A001.mov" / "clip.mp4", [0], sound=None)
    assert uris(f"{tmp_path}/A001.mov/") == [f"{tmp_path}/A001.mov/clip.mp4#t=0.000"]


@pytest.mark.parametrize("name", NAMES)
def test_a_glob_may_go_through_folders_of_such_names(
    uris: Callable[[Any], list[str]], tmp_path: Path, name: str
) -> None:
    folder = f"{tmp_path}/Zürich/{name}"
    for parent in (folder, f"{folder}/x [1]", *(f"{tmp_path}/Zürich/{d}" for d in DECOYS)):
        storage.write_bytes(f"{parent}/a.jpg", b"")
    manifest(f"{folder}/list.csv", "listed")
    parquet(f"{folder}/0.parquet", image=[jpeg(1)])
    storage.write_bytes(f"{folder}/0.tar", tar([("a.jpg", jpeg(1))]))
    assert uris(f"{folder}/*.jpg") == [f"{folder}/a.jpg"]
    assert uris(f"{folder}/x [1]/*.jpg") == [f"{folder}/x [1]/a.jpg"]
    assert uris(f"{folder}/**/*.jpg") == [f"{folder}/a.jpg", f"{folder}/x [1]/a.jpg"]
    assert uris(f"{folder}/*.csv") == ["listed"]
    assert uris({"table": f"{folder}/*.parquet"}) == [f"{folder}/0.parquet#row=0"]
    assert uris(f"{folder}/*.tar") == [f"{folder}/0.tar#member=a.jpg"]


def test_in_a_bucket_the_message_says_how_a_bracket_is_written(
    uris: Callable[[Any], list[str]], s3: S3
) -> None:
    image = f"{s3.uri('data')}/cams [2024]/a.jpg"
    storage.write_bytes(image, b"")
    with pytest.raises(SourceError) as caught:
        uris(image.replace("a.jpg", "*.jpg"))
    assert uris(str(caught.value).rpartition("write [[]: ")[2]) == [image]


@pytest.mark.parametrize(
    ("home", "folder", "file"),
    [("NFC", "NFD", "NFC"), ("NFC", "NFD", "NFD"), ("NFD", "NFC", "NFC"), ("NFD", "NFD", "NFD")],
)
def test_names_on_disk_may_have_other_unicode_forms(
    uris: Callable[[Any], list[str]], tmp_path: Path, home: Any, folder: Any, file: Any
) -> None:
    stored = tmp_path / normalize(home, "Jürg") / normalize(folder, "Häuser")
    stored.mkdir(parents=True)
    image = stored / normalize(file, "Zürich.jpg")
    image.write_bytes(jpeg(1))
    manifest(str(stored / normalize(file, "lä.csv")), f"{tmp_path}/Jürg/Häuser/Zürich.jpg")
    film(stored / normalize(file, "fährt.mp4"), [0], sound=None)
    named = f"{tmp_path}/{normalize('NFC', 'Jürg/Häuser')}"
    assert uris(f"{named}/") == [str(image)]
    assert uris(named) == [str(image)]
    assert uris(normalize("NFC", f"{named}/Zür*.jpg")) == [str(image)]
    assert uris(f"{named}/../*/*.jpg") == [str(image)]
    for source in (f"{named}/lä.csv", f"{named}/Zürich.jpg"):
        [uri] = uris(normalize("NFC", source))
        assert storage.read_bytes(normalize("NFC", uri)) == jpeg(1)
    [frame] = uris({"video": named})
    [content] = read_images([normalize("NFC", frame)], storage.ReadLimits())
    assert isinstance(content, bytes)


def test_a_question_mark_in_a_web_address_is_no_wildcard() -> None:
    assert not has_wildcard("https://host/list.csv?signature=[x]")
    assert has_wildcard("https://host/*.csv")
