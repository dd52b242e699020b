"""A labelled dataset on storage."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segbatch.errors import Incomplete, SourceError
from segbatch.labels.dataset import (
    FEATURES,
    SCHEMA,
    SHARD_PATH,
    Dataset,
    Shard,
    open_dataset,
    write_shard,
)
from segbatch.masks import decode_mask, encode_mask
from segbatch.masks.classes import Classes
from tests.collection import jpeg
from tests.conftest import S3

CLASSES = Classes(["wall", "window"])


def row(image_id: int, **columns: Any) -> dict[str, Any]:
    label_map = np.full((48, 64), image_id % 2, np.uint8)
    return {
        "image_id": image_id,
        "uri": f"/photos/{image_id}.jpg",
        "image": {"bytes": jpeg(image_id, 48, 64), "path": f"{image_id}.jpg"},
        "mask": {"bytes": encode_mask(label_map, CLASSES.palette), "path": f"{image_id}.png"},
        "width": 64,
        "height": 48,
        "group": None,
        **columns,
    }


def write(uri: str, **splits: list[int]) -> Dataset:
    shards = [write_shard(uri, split, map(row, ids)) for split, ids in splits.items()]
    dataset = Dataset(uri, CLASSES, shards, [{"source": "/photos"}])
    dataset.publish()
    return dataset


def test_a_dataset_that_was_published_is_the_same_when_it_is_opened(s3: S3) -> None:
    uri = s3.uri("labels")
    written = write(uri, train=[0, 1, 2], val=[3])
    opened = open_dataset(f"{uri}/")
    assert opened == written
    assert opened.splits == {"train": 3, "val": 1}
    assert [t["image_id"].to_pylist() for t in opened.tables("train")] == [[0, 1, 2]]
    [val] = opened.tables("val", ["split", "mask"])
    assert val.column_names == ["split", "mask"]
    assert val["split"].to_pylist() == ["val"]
    assert (decode_mask(val["mask"][0].as_py()["bytes"]) == 1).all()


def test_readers_of_parquet_find_images_by_the_metadata(tmp_path: Path) -> None:
    [shard] = write(str(tmp_path / "labels"), train=[0]).shards
    file = tmp_path / "labels" / shard.path
    schema = pq.read_schema(file)
    assert schema.equals(SCHEMA, check_metadata=True)
    info = json.loads(schema.metadata[b"huggingface"])["info"]
    assert info["features"] == FEATURES
    assert list(FEATURES) == SCHEMA.names
    with Image.open(io.BytesIO(pq.read_table(file)["image"][0].as_py()["bytes"])) as image:
        assert image.size == (64, 48)


def test_a_shard_is_called_by_its_content(tmp_path: Path) -> None:
    first, again, other = (
        write_shard(str(tmp_path), "train", [row(number)]) for number in (0, 0, 1)
    )
    assert first == again
    assert first.path != other.path
    assert SHARD_PATH.fullmatch(first.path)


def test_the_fingerprint_follows_images_masks_and_names_alone(tmp_path: Path) -> None:
    dataset = write(str(tmp_path / "a"), train=[0, 1])
    assert write(str(tmp_path / "b"), train=[0, 1]).fingerprint == dataset.fingerprint
    assert write(str(tmp_path / "c"), train=[0, 2]).fingerprint != dataset.fingerprint
    renamed = Dataset(dataset.uri, Classes(["wall", "door"]), dataset.shards)
    assert renamed.fingerprint != dataset.fingerprint
    resourced = Dataset(dataset.uri, CLASSES, dataset.shards, [{"source": "elsewhere"}])
    assert resourced.fingerprint == dataset.fingerprint


def test_publishing_deletes_shards_of_before_and_nothing_else(tmp_path: Path) -> None:
    uri = tmp_path / "labels"
    before = write(str(uri), train=[0])
    (uri / "train" / "photo.jpg").write_bytes(b"somebody's")
    after = write(str(uri), train=[1], val=[2])
    assert not (uri / before.shards[0].path).exists()
    assert {file.name for file in (uri / "train").iterdir()} == {
        "photo.jpg",
        Path(after.shards[0].path).name,
    }
    assert after.unnamed_files() == ["train/photo.jpg"]


def test_shards_that_classes_json_does_not_name_do_not_belong(tmp_path: Path) -> None:
    uri = str(tmp_path / "labels")
    dataset = write(uri, train=[0])
    stray = write_shard(uri, "train", [row(7)])
    assert open_dataset(uri) == dataset
    assert open_dataset(uri).unnamed_files() == [stray.path]


def test_a_changed_file_is_not_taken_for_the_dataset(tmp_path: Path) -> None:
    uri = tmp_path / "labels"
    dataset = write(str(uri), train=[0])
    file = uri / dataset.shards[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(SourceError, match=rf"{file}: is not the file that was imported"):
        dataset.read_shard(dataset.shards[0])
    file.unlink()
    with pytest.raises(SourceError, match=str(file)):
        dataset.read_shard(dataset.shards[0])


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(SCHEMA.empty_table().drop_columns("mask"), sink)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.parquet").write_bytes(sink.getvalue())
    shard = Shard("train/x.parquet", 0, hashlib.sha256(sink.getvalue()).hexdigest())
    with pytest.raises(SourceError, match="not a labelled dataset's"):
        Dataset(str(tmp_path), CLASSES, [shard]).read_shard(shard)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"classes": []}', '{"classes": [], "ignore_index": 0, "files": {}}'],
    ids=["empty", "torn", "list", "keys", "ignore index"],
)
def test_a_classes_json_that_is_none_is_refused_by_its_uri(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(SourceError, match=rf"{tmp_path}/classes.json: not a labelled dataset's"):
        open_dataset(str(tmp_path))


def test_no_dataset_is_told_from_no_answer(tmp_path: Path, s3: S3) -> None:
    with pytest.raises(SourceError, match="labels import"):
        open_dataset(str(tmp_path))
    uri = s3.uri("labels")
    write(uri, train=[0])
    try:
        s3.break_down({"part": "classes.json", "status": 403, "code": "AccessDenied"})
        with pytest.raises(SourceError, match=f"cannot read {uri}/classes.json"):
            open_dataset(uri)
        s3.break_down({"part": "classes.json", "status": 400, "code": "InternalError"})
        with pytest.raises(Incomplete, match=f"cannot read {uri}/classes.json"):
            open_dataset(uri)
    finally:
        s3.break_down()
