"""A plain PyTorch script, as a good engineer writes it in an afternoon.

A Dataset that reads over S3 with boto3, a DataLoader with a worker a core, the network in
channels-last memory and inference mode, and PNG files written by a few threads meanwhile.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.task import Pixels, Segmenter, Task
from segbatch.machine import num_cores


class Photographs(Dataset[tuple[str, Tensor]]):
    """Images below a prefix, by name, as HWC uint8."""

    def __init__(self, prefix: str) -> None:
        self.parts = urlsplit(prefix)
        if self.parts.scheme == "s3":
            import boto3

            pages = boto3.client("s3").get_paginator("list_objects_v2")
            found = pages.paginate(Bucket=self.parts.netloc, Prefix=self.parts.path.lstrip("/"))
            self.keys = [entry["Key"] for page in found for entry in page["Contents"]]
        else:
            self.keys = sorted(str(path) for path in Path(prefix).iterdir())

    @cached_property
    def client(self) -> Any:
        """One in each worker: a client does not survive a fork."""
        import boto3

        return boto3.client("s3")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        key = self.keys[index]
        if self.parts.scheme == "s3":
            data = self.client.get_object(Bucket=self.parts.netloc, Key=key)["Body"].read()
        else:
            data = Path(key).read_bytes()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        return Path(key).name, torch.from_numpy(np.array(image))


def main() -> None:
    task = Task.given()
    folder = Path(task.output)
    folder.mkdir(parents=True)
    segment_all(task, Photographs(task.images), folder)


def segment_all(
    task: Task,
    photographs: Photographs,
    folder: Path,
    worker_init_fn: Callable[[int], None] | None = None,
) -> None:
    """Write a PNG for each photograph; ``worker_init_fn`` is called in each loading process."""
    segment = Segmenter(task)
    loader = DataLoader(
        photographs,
        batch_size=task.batch_size,
        num_workers=num_cores(),
        collate_fn=list,  # images may differ in size
        pin_memory=task.device == "cuda",
        worker_init_fn=worker_init_fn,
    )
    with ThreadPoolExecutor(4) as pool:
        written: Any = []
        for batch in loader:
            names, images = zip(*batch, strict=True)
            for future in written:  # of the batch before; errors show, and memory stays bounded
                future.result()
            masks = segment(images)
            written = [
                pool.submit(save, mask, folder / f"{name}.png")
                for name, mask in zip(names, masks, strict=True)
            ]
            task.note(len(names))
        for future in written:
            future.result()


def save(mask: Pixels, path: Path) -> None:
    Image.fromarray(mask).save(path)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    for path in sorted(Path(output).iterdir()):
        yield path.stem, np.array(Image.open(path))


if __name__ == "__main__":
    main()
