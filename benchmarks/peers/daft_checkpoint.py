"""Daft with its checkpoint store, to be started again.

As :mod:`benchmarks.peers.daft_udf`, with ``CheckpointConfig`` as its reference writes it: this
needs Daft's Ray runner and a source of Parquet, so the list of images is a Parquet file first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import daft_udf
from benchmarks.peers.task import Pixels, Segmenter, Task
from segbatch.jobs.runtime.workers import MIN_LOGICAL_CPUS

VERSION = daft_udf.VERSION


def main() -> None:
    import daft
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from daft.io import IOConfig, S3Config

    from segbatch import storage

    task = Task.given()
    hook = {"worker_process_setup_hook": "tests.poison.install"}
    ray.init(num_cpus=MIN_LOGICAL_CPUS, log_to_driver=False, runtime_env=hook)
    daft.set_runner_ray()
    listed = Path(f"{task.output}-list.parquet")
    if not listed.exists():
        uris = [file.uri for file in storage.list_files(task.images)]
        pq.write_table(pa.table({"path": uris}), listed)

    @daft.cls(max_concurrency=task.workers)
    class Predictor:
        def __init__(self, task: Task) -> None:
            self.task = task
            self.segment = Segmenter(task)

        @daft.method.batch(
            return_dtype=daft.DataType.tensor(daft.DataType.uint8()), batch_size=task.batch_size
        )
        def predict(self, images: Any) -> Any:
            masks = self.segment(images.to_pylist())
            self.task.note(len(masks))
            return masks

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    io_config = IOConfig(s3=S3Config(endpoint_url=endpoint, use_ssl=False))
    store = daft.CheckpointStore(f"file://{task.output}-checkpoint")
    predictor = Predictor(task)
    frame = daft.read_parquet(str(listed), checkpoint=daft.CheckpointConfig(store=store, on="path"))
    image = frame["path"].download(io_config=io_config).decode_image(mode="RGB")
    frame = frame.with_column("mask", predictor.predict(image))
    frame.write_parquet(task.output)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    return daft_udf.masks(output)


if __name__ == "__main__":
    main()
