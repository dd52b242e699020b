"""Ours: the whole job, ``segbatch.segment``, from an empty process to a finished run.

For the instant model, the two places that load a model get one that answers at once; all else,
Ray and the driver with it, is what any job goes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import segbatch
from benchmarks.peers.task import CELL, INSTANT, Pixels, Task, instant_cells
from segbatch.jobs import preflight, stages
from segbatch.jobs.runtime import executor
from segbatch.masks.classes import Classes
from segbatch.model import networks, predict
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.predict import Model, Prediction

CLASSES = Classes(["dark", "dim", "light", "bright"])


class Instant(Model):
    """A model that answers at once: labels straight from pixels, and their counts."""

    def predict_batch(
        self, images: Sequence[Pixels], mask_sizes: Sequence[tuple[int, int] | None]
    ) -> list[Prediction]:
        self.num_batches += 1
        return [self._answer(image) for image in images]

    def _answer(self, image: Pixels) -> Prediction:
        cells = instant_cells(image)
        height, width, _ = image.shape
        heights = np.diff(np.append(np.arange(0, height, CELL), height))
        widths = np.diff(np.append(np.arange(0, width, CELL), width))
        counts = np.bincount(cells.ravel(), np.outer(heights, widths).ravel(), len(CLASSES))
        mask = np.repeat(np.repeat(cells, heights, 0), widths, 1)
        confidences = np.where(counts > 0, 1, np.nan).astype(np.float32)
        return Prediction(image, CLASSES, mask, counts.astype(np.int64), confidences, 0.0)


class InstantStage(stages.PredictStage):
    """The stage with that model; what it does to tables is the same."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.model = instant(self.model)


def instant(model: Model) -> Instant:
    return Instant(model.module, model.config, "cpu", model.options, engine=model.engine)


def instant_bundle(folder: str) -> str:
    """A bundle to put in the job; its network is loaded and never asked."""
    network = networks.build("deeplabv3plus", "mobilenet_v2", len(CLASSES))
    config = ModelConfig("deeplabv3plus", "mobilenet_v2", network.output_stride, CLASSES)
    save_bundle(folder, network, config)
    return folder


def main() -> None:
    task = Task.given()
    model = task.model
    if model == INSTANT:
        model = instant_bundle(f"{task.output}-model")
        executor.PredictStage = InstantStage  # type: ignore[assignment]
        preflight.load_model = lambda *a, **k: instant(predict.load_model(*a, **k))
    segbatch.segment(
        {
            "kind": "segment",
            "images": task.images,
            "model": model,
            "output": task.output,
            "predict": {
                "long_side": None,
                "precision": task.precision,
                "batch_size": task.batch_size,
            },
            "resources": {"device": task.device},
            "rows_per_file": task.rows_per_file or "auto",
        }
    )
    with open(task.progress, "a") as progress:
        for file in Path(task.output, "rows").glob("*.parquet"):
            rows = pq.ParquetFile(file).metadata.num_rows
            progress.write(f"{file.stat().st_mtime:.4f} {rows}\n")


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    run = segbatch.open_run(output)
    done = run.sql("SELECT image_id, uri FROM images WHERE status = 'ok' ORDER BY image_id")
    for image_id, uri in done.fetchall():
        mask = run.mask(image_id)
        assert mask is not None
        yield Path(uri).name, mask


if __name__ == "__main__":
    main()
