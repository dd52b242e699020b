"""Random access to the samples of a split in a local copy."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.labels.dataset import Dataset, open_dataset, write_shard
from segbatch.labels.samples import Sample, Samples, copy_split
from segbatch.masks.classes import Classes
from tests.conftest import S3

CLASSES = Classes(["wall", "window"])
SHARDS = [70, 1, 130]  # images of each file; the last has several row groups


def row(image_id: int) -> dict[str, Any]:
    """A row of random bytes, which nothing decodes here."""
    rng = np.random.default_rng(image_id)
    return {
        "image_id": image_id,
        "uri": f"s3://photos/{image_id}.jpg",
        "image": {"bytes": rng.bytes(rng.integers(0, 300)), "path": f"{image_id}.jpg"},
        "mask": {"bytes": rng.bytes(40), "path": f"{image_id}.png"},
        "width": 10,
        "height": 10,
        "group": None,
    }


def dataset_at(uri: str) -> Dataset:
    """Images in three files with shuffled ids, and a few in ``val``."""
    ids = iter(np.random.default_rng(0).permutation(1000).tolist())
    shards = [write_shard(uri, "train", [row(next(ids)) for _ in range(n)]) for n in SHARDS]
    shards.append(write_shard(uri, "val", [row(next(ids)) for _ in range(3)]))
    Dataset(uri, CLASSES, shards).publish()
    return open_dataset(uri)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return dataset_at(str(tmp_path / "labels"))


def expected(dataset: Dataset, split: str) -> list[Sample]:
    """Every image of the Parquet files, from front to back."""
    return [
        Sample(row["image_id"], row["uri"], row["image"]["bytes"], row["mask"]["bytes"])
        for table in dataset.tables(split)
        for row in table.to_pylist()
    ]


def test_every_image_comes_by_its_number(dataset: Dataset, tmp_path: Path) -> None:
    for split, count in (("train", 201), ("val", 3)):
        copy_split(dataset, split, tmp_path / "cache")
        copied = Samples(dataset, split, tmp_path / "cache")
        whole = expected(dataset, split)
        assert len(copied) == len(whole) == count
        order = np.random.default_rng(1).permutation(count).tolist()
        assert [copied[index] for index in order] == [whole[index] for index in order]
        assert list(copied) == whole
        assert copied.image_ids == [sample.image_id for sample in whole]


def test_a_number_that_no_image_has_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    copy_split(dataset, "val", tmp_path)
    copied = Samples(dataset, "val", tmp_path)
    for index in (3, -1):
        with pytest.raises(IndexError):
            copied[index]


def test_a_copy_is_made_of_a_dataset_in_a_bucket(s3: S3, tmp_path: Path) -> None:
    dataset = dataset_at(s3.uri("labels"))
    copy_split(dataset, "train", tmp_path)
    assert list(Samples(dataset, "train", tmp_path)) == expected(dataset, "train")


def test_workers_of_one_node_copy_a_share_each(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    # A pool, because a process that ends right after reading Parquet may crash in Arrow's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        shares = [slice(rank, None, 2) for rank in range(2)]
        for copied in [pool.submit(copy_split, dataset, "train", folder, s) for s in shares]:
            copied.result(60)
    assert len(list(folder.iterdir())) == 3
    assert list(Samples(dataset, "train", folder)) == expected(dataset, "train")


def test_a_share_is_no_more_than_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    copy_split(dataset, "train", tmp_path / "cache", slice(1, None, 2))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_is_there_already_is_not_copied_again(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    copy_split(dataset, "train", folder)
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    storage.delete([storage.join(dataset.uri, shard.path) for shard in dataset.shards])
    copy_split(dataset, "train", folder)  # looks at none of them
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_what_a_killed_worker_left_behind_is_not_taken_for_a_copy(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    copy_split(dataset, "train", folder)
    for file in list(folder.iterdir()):
        torn = file.with_suffix(".4711")  # as it is called until it is whole
        torn.write_bytes(file.read_bytes()[:100])
        file.unlink()
    copy_split(dataset, "train", folder)
    assert list(Samples(dataset, "train", folder)) == expected(dataset, "train")


def test_a_damaged_file_is_refused_by_its_name(dataset: Dataset, tmp_path: Path) -> None:
    shard = dataset.shards_of("train")[1]
    where = storage.join(dataset.uri, shard.path)
    data = bytearray(storage.read_bytes(where))
    data[len(data) // 2] ^= 1
    storage.write_bytes(where, bytes(data))
    with pytest.raises(SourceError) as error:
        copy_split(dataset, "train", tmp_path / "cache")
    assert str(error.value).startswith(f"{where}: is not the file that was imported")
    storage.delete([where])
    with pytest.raises(SourceError, match="no such file"):
        copy_split(dataset, "train", tmp_path / "cache")
