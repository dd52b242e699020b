"""Labelled datasets of rendered facades, for tests that train."""

import io
from typing import Any

from PIL import Image

from segbatch.demo.facades.facades import CLASSES, render_facade
from segbatch.labels.dataset import Dataset, write_shard
from segbatch.masks import encode_mask


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
