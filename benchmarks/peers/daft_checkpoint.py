"""Daft with its checkpoint store, to be started again.

As :mod:`benchmarks.peers.daft_udf`, with ``CheckpointConfig`` as its reference writes it: this
needs Daft's Ray runner and a source of Parquet, so the list of images is a Parquet file first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import daft_udf
from benchmarks.peers.task import Pixels, Task, start_ray

ON_RAY = True


def main() -> None:
    import daft
    import pyarrow as pa
    import pyarrow.parquet as pq

    from segbatch import storage

    task = Task.given()
    start_ray()
    daft.set_runner_ray()
    listed = Path(f"{task.output}-list.parquet")
    if not listed.exists():
        uris = [file.uri for file in storage.list_files(task.images)]
        pq.write_table(pa.table({"path": uris}), listed)
    store = daft.CheckpointStore(f"file://{task.output}-checkpoint")
    checkpoint = daft.CheckpointConfig(store=store, on="path")
    frame = daft.read_parquet(str(listed), checkpoint=checkpoint)
    image = frame["path"].download(io_config=daft_udf.s3_config()).decode_image(mode="RGB")
    frame = frame.with_column("mask", daft_udf.predictor(task).predict(image))
    frame.write_parquet(task.output)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    return daft_udf.masks(output)


if __name__ == "__main__":
    main()
