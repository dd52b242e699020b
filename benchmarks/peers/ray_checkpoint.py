"""The pipeline of Ray's own documentation with its job-level checkpointing, to be started again.

As :mod:`benchmarks.peers.ray_docs`, with ``DataContext.checkpoint_config`` as "Checkpointing" of
Ray Data's user guide sets it: the path of an image is its id. The checkpoint is kept on success, so
that a finished job that is started again does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.peers import ray_docs
from benchmarks.peers.task import Pixels, Task, start_ray

ON_RAY = True


def main() -> None:
    import pyarrow.fs
    import ray
    from ray.data.checkpoint import CheckpointConfig

    task = Task.given()
    start_ray()
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="path",
        checkpoint_path=f"{task.output}-checkpoint",
        delete_checkpoint_on_success=False,
    )
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=endpoint.netloc, scheme=endpoint.scheme)
    images = ray.data.read_images(
        task.images, filesystem=filesystem, mode="RGB", include_paths=True
    )
    predicted = images.map_batches(
        ray_docs.Predictor,
        fn_constructor_args=(task,),
        batch_size=task.batch_size,
        compute=ray.data.ActorPoolStrategy(size=task.workers),
    )
    predicted.write_parquet(task.output)


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    return ray_docs.masks(output)


if __name__ == "__main__":
    main()
