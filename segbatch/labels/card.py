"""The card of a labelled dataset: its README.md, for people and for dataset hubs."""

from __future__ import annotations

import json
from typing import Any

import yaml

from segbatch import storage
from segbatch.labels.balance import Balance
from segbatch.labels.dataset import FEATURES, SPLITS, Dataset

# The names that dataset hubs use.
HUB_SPLITS = {"val": "validation"}
HUB_TYPES = {"Image": "image"}


def dataset_card(dataset: Dataset, balance: Balance) -> str:
    """The text of the card: front matter with the files and their features, then splits, classes,
    sources, and how to read the dataset.
    """
    splits = dataset.splits
    lines = [
        "---",
        yaml.safe_dump(_front_matter(dataset), sort_keys=False).rstrip(),
        "---",
        f"# {storage.name_of(dataset.uri)}",
        "",
        f"Images with the class of every pixel: {sum(splits.values()):,} images,"
        f" {len(dataset.classes)} classes. Made by `segbatch labels import`.",
        "",
        "| split | images |",
        "|---|---|",
        *(f"| {split} | {count:,} |" for split, count in splits.items()),
        "",
        "| id | class | colour | pixels | share | images |",
        "|---|---|---|---|---|---|",
    ]
    colors = {c.id: c.hex for c in dataset.classes}
    lines += [
        f"| {share.id} | {share.name} | {colors.get(share.id, '')} | {share.pixels:,}"
        f" | {share.share:.2%} | {sum(share.images.values()):,} |"
        for share in balance.shares(dataset.classes)
    ]
    lines += ["", "| imported | source | format | images | skipped |", "|---|---|---|---|---|"]
    lines += [
        f"| {entry['imported']} | {entry['source']} | {entry['format']} | {entry['images']:,}"
        f" | {entry['skipped']:,} |"
        for entry in dataset.sources
    ]
    lines += [
        "",
        "`image` is the unchanged file, `mask` a palette PNG of the size of the upright image:"
        " its palette index is the class id, 255 is void.",
        "",
        "```python",
        "import datasets",
        _load_dataset(dataset.uri),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _load_dataset(uri: str) -> str:
    """The line of Python that loads the dataset; `datasets` loads no folder of object storage."""
    is_local = storage.is_local(uri)
    folder = json.dumps(uri if is_local else f"./{storage.name_of(uri)}", ensure_ascii=False)
    copied = "" if is_local else f"  # a copy of {uri}"
    return f"images = datasets.load_dataset({folder}){copied}"


def _front_matter(dataset: Dataset) -> dict[str, Any]:
    files = [
        {
            "split": HUB_SPLITS.get(split, split),
            "path": [shard.path for shard in dataset.shards_of(split)],
        }
        for split in SPLITS
        if dataset.shards_of(split)
    ]
    features = [
        {"name": name, "dtype": feature.get("dtype") or HUB_TYPES[feature["_type"]]}
        for name, feature in FEATURES.items()
    ]
    return {
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features},
    }
