"""The task of each contender, the shared network, and the progress file.

Each contender is a program, ``python -m benchmarks.peers.NAME TASK.json``, with a function
``masks(output)`` that reads back what it wrote. So what it takes to start belongs to it alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

INSTANT = "instant"  # the model that only looks at a pixel here and there
CELL = 16  # side of the squares that it labels; masks of such are as flat as real ones

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """``images`` is a prefix of JPEGs that ends in a slash, ``output`` and ``progress`` are local.

    ``workers`` processes of ``threads`` threads each are what the network shall run on, whoever
    runs it; on a GPU, ``workers`` is the number of GPUs.
    """

    images: str
    num_images: int
    output: str
    progress: str
    model: str  # a bundle, or INSTANT
    device: str
    precision: str
    workers: int
    threads: int
    batch_size: int
    rows_per_file: int  # of ours; 0: as it chooses itself

    @classmethod
    def given(cls) -> Task:
        return cls(**json.loads(Path(sys.argv[1]).read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def note(self, num_images: int) -> None:
        """Say that so many images more are done; one short line, which no other is mixed with."""
        with open(self.progress, "a") as file:
            file.write(f"{time.time():.4f} {num_images}\n")


def start_ray() -> None:
    """The Ray of a program that is broken, of its own or RAY_ADDRESS's: images may kill workers."""
    import ray

    from segbatch.jobs.runtime.workers import MIN_LOGICAL_CPUS

    hook = {"worker_process_setup_hook": "tests.poison.install"}
    cpus = MIN_LOGICAL_CPUS if os.environ.get("RAY_ADDRESS", "local") == "local" else None
    ray.init(num_cpus=cpus, log_to_driver=False, runtime_env=hook)


class Segmenter:
    """The network as a plain script runs it: pixels in, label maps of their size out."""

    def __init__(self, task: Task) -> None:
        import torch

        torch.set_num_threads(task.threads)
        self.task = task
        if task.model != INSTANT:
            from segbatch.model.bundle import load_bundle

            network, config = load_bundle(task.model)
            self.network = network.to(task.device, memory_format=torch.channels_last)
            self.mean = torch.tensor(config.mean, device=task.device)[:, None, None]
            self.std = torch.tensor(config.std, device=task.device)[:, None, None]

    def __call__(self, images: Sequence[Any]) -> list[Pixels]:
        """``images`` are HWC uint8, arrays or tensors; those of one size go in together."""
        if self.task.model == INSTANT:
            return [instant_labels(np.asarray(image)) for image in images]
        masks: list[Any] = [None] * len(images)
        by_shape: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(tuple(image.shape), []).append(index)
        for indices in by_shape.values():
            labels = self._labels([images[index] for index in indices])
            for index, mask in zip(indices, labels, strict=True):
                masks[index] = mask
        return masks

    def _labels(self, images: Sequence[Any]) -> Pixels:
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        batch = torch.stack([torch.as_tensor(image) for image in images]).to(self.task.device)
        with (
            torch.inference_mode(),
            torch.autocast(
                self.task.device,
                dtype[self.task.precision],
                enabled=self.task.precision != "fp32",
            ),
        ):
            scaled = batch.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
            labels = self.network(scaled).argmax(1).to(torch.uint8)
        result: Pixels = labels.cpu().numpy()
        return result


def instant_labels(image: Pixels) -> Pixels:
    """Labels straight from pixels: how bright the corner of each square is, in four steps."""
    height, width, _ = image.shape
    cells = instant_cells(image)
    return cells.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]


def instant_cells(image: Pixels) -> Pixels:
    return image[::CELL, ::CELL, 1] >> 6
