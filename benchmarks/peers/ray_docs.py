"""The pipeline of Ray's own documentation: ``read_images``, an actor class, Parquet of tensors.

After "Working with Images" and "End-to-end: Offline Batch Inference" of Ray Data's user guides,
with their defaults for everything that they do not mention. The network's threads are set, which
by default would be one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.peers.task import Pixels, Segmenter, Task


class Predictor:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.segment = Segmenter(task)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        masks = self.segment(list(batch["image"]))
        self.task.note(len(masks))
        if len({mask.shape for mask in masks}) == 1:
            return {"path": batch["path"], "mask": np.stack(masks)}
        ragged = np.empty(len(masks), object)
        ragged[:] = masks
        return {"path": batch["path"], "mask": ragged}


def main() -> None:
    import pyarrow.fs
    import ray

    task = Task.given()
    ray.init(log_to_driver=False)
    source: dict[str, Any] = {"paths": task.images}
    if task.images.startswith("s3://"):
        endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
        source["filesystem"] = pyarrow.fs.S3FileSystem(
            endpoint_override=endpoint.netloc, scheme=endpoint.scheme
        )
    images = ray.data.read_images(**source, mode="RGB", include_paths=True)
    predicted = images.map_batches(
        Predictor,
        fn_constructor_args=(task,),
        batch_size=task.batch_size,
        compute=ray.data.ActorPoolStrategy(size=task.workers),
        num_gpus=1 if task.device == "cuda" else 0,
    )
    predicted.write_parquet(task.output)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    import pyarrow.parquet as pq
    from ray.data import extensions  # noqa: F401 - makes pyarrow know tensors

    for path in sorted(Path(output).glob("*.parquet")):
        table = pq.read_table(path)
        for key, mask in zip(table["path"].to_pylist(), table["mask"], strict=True):
            yield Path(key).name, np.asarray(mask.as_py(), np.uint8)


if __name__ == "__main__":
    main()
