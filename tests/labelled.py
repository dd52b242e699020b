"""Labelled datasets: rendered facades for tests that train, and what a dataset holds."""

import io
from typing import Any

from PIL import Image

from segbatch.demo.facades.facades import CLASSES, render_facade
from segbatch.labels.dataset import Dataset, open_dataset, write_shard
from segbatch.masks import decode_mask, encode_mask


def labelled_dataset(uri: str, *, train: int, val: int, long_side: int) -> Dataset:
    """A dataset of ``train`` and ``val`` images, in two files a split."""
    ids = iter(range(train + val))
    shards = []
    for split, count in (("train", train), ("val", val)):
        rows = [_row(next(ids), long_side) for _ in range(count)]
        middle = (count + 1) // 2
        shards += [write_shard(uri, split, part) for part in (rows[:middle], rows[middle:])]
    dataset = Dataset(uri, CLASSES, shards)
    dataset.publish()
    return dataset


def _row(image_id: int, long_side: int) -> dict[str, Any]:
    scene = render_facade(image_id, long_side)
    height, width = scene.label_map.shape
    sink = io.BytesIO()
    Image.fromarray(scene.image).save(sink, "JPEG", quality=90)
    mask = encode_mask(scene.label_map, CLASSES.palette)
    return {
        "image_id": image_id,
        "uri": f"file:///facades/{image_id}.jpg",
        "image": {"bytes": sink.getvalue(), "path": f"{image_id}.jpg"},
        "mask": {"bytes": mask, "path": f"{image_id}.png"},
        "width": width,
        "height": height,
        "group": None,
    }


def rows(dataset: object) -> list[dict[str, Any]]:
    """All rows by id, with their label maps."""
    opened = open_dataset(str(dataset))
    found = [
        row
        for split in opened.splits
        for table in opened.tables(split)
        for row in table.to_pylist()
    ]
    for row in found:
        row["label_map"] = decode_mask(row["mask"]["bytes"])
    return sorted(found, key=lambda row: row["image_id"])
