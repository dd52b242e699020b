"""The limit: ``predict_batch`` alone, on images that lie decoded in memory, on the same cores."""

from __future__ import annotations

import io
import itertools
from multiprocessing import get_context

import numpy as np
from PIL import Image

from benchmarks.peers.task import Task
from segbatch import storage
from segbatch.config.job import Predict
from segbatch.model.predict import load_model

HELD = 64  # images that lie in memory, over and over


def main() -> None:
    task = Task.given()
    shares = [task.num_images // task.workers] * task.workers
    shares[0] += task.num_images - sum(shares)
    context = get_context("spawn")  # CUDA does not survive a fork
    workers = [context.Process(target=predict, args=(task, share)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker of the limit failed")


def predict(task: Task, num_images: int) -> None:
    uris = itertools.islice((file.uri for file in storage.list_files(task.images)), HELD)
    images = [np.array(Image.open(io.BytesIO(storage.read_bytes(uri)))) for uri in uris]
    options = Predict(precision=task.precision, batch_size=task.batch_size)
    model = load_model(task.model, device=task.device, options=options, threads=task.threads)
    endless = itertools.cycle(images)
    for start in range(0, num_images, task.batch_size):
        batch = list(itertools.islice(endless, min(task.batch_size, num_images - start)))
        model.predict_batch(batch, [None] * len(batch))
        task.note(len(batch))


if __name__ == "__main__":
    main()
