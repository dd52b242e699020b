"""Daft with a class UDF: download, decode, a batch method with the model, Parquet.

After "Stateful Class UDFs with @daft.cls" and "Working with Images" of its documentation; masks as
tensors of Daft's own. Daft is installed by uv for this program alone, into an environment that lies
over ours: ``uv run --no-project --python .venv/bin/python --with daft``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.task import Pixels, Segmenter, Task

VERSION = "0.7.26"


def main() -> None:
    import daft

    task = Task.given()
    source = {"io_config": s3_config()} if task.images.startswith("s3://") else {}
    frame = daft.from_glob_path(f"{task.images}*", **source)
    frame = frame.with_column("image", frame["path"].download(**source).decode_image(mode="RGB"))
    frame = frame.with_column("mask", predictor(task).predict(frame["image"]))
    frame.select("path", "mask").write_parquet(task.output)


def s3_config() -> Any:
    """Daft's settings for the server of the AWS_* variables."""
    from daft.io import IOConfig, S3Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    secure = not str(endpoint).startswith("http://")
    return IOConfig(s3=S3Config(endpoint_url=endpoint, use_ssl=secure))


def predictor(task: Task) -> Any:
    """The class UDF, whose method ``predict`` makes masks of a column of images."""
    import daft

    @daft.cls(max_concurrency=task.workers, gpus=1 if task.device == "cuda" else 0)
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

    return Predictor(task)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    import pyarrow.parquet as pq

    for path in sorted(Path(output).glob("*.parquet")):
        table = pq.read_table(path)
        for key, mask in zip(table["path"].to_pylist(), table["mask"], strict=True):
            pixels = mask["data"].values.to_numpy()
            yield Path(key).name, pixels.reshape(mask["shape"].as_py())


if __name__ == "__main__":
    main()
