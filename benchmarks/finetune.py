"""What the input of a training costs it: scripts/bench finetune.

    scripts/bench finetune [--dataset DATASET] [--steps 24] [-o RESULT.json]

Steps of the real loop, which loads, decodes and augments its images, take turns with steps of the
same network on tensors that lie ready in memory. Without `--dataset`, facades are rendered.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from segbatch.config.training import Train
from segbatch.demo.facades.facades import CLASSES, render_facade
from segbatch.labels.dataset import Dataset, open_dataset, write_shard
from segbatch.labels.samples import Samples, copy_split
from segbatch.machine import num_cores
from segbatch.masks import encode_mask
from segbatch.model import networks, zoo
from segbatch.training.examples import training_example
from segbatch.training.loader import BATCHES_AHEAD, Batch, Loader, Sampler
from segbatch.training.loss import NetworkWithLoss
from segbatch.training.step import Training

ROUND = 6  # steps that one of the two does before the other's turn
WARM_UP = 2
SETTLE_S = 1.0  # for images that are still being made ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a labelled dataset")
    parser.add_argument("--arch", default="deeplabv3plus")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--long-side", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(num_cores())
    train = Train(
        batch_size=arguments.batch_size, crop=arguments.crop, long_side=arguments.long_side
    )
    with tempfile.TemporaryDirectory() as folder:
        uri = arguments.dataset or rendered(f"{folder}/labels")
        dataset = open_dataset(uri)
        copy_split(dataset, "train", Path(folder))
        figures = measure(dataset, Samples(dataset, "train", Path(folder)), train, arguments)
    show(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def rendered(uri: str, number: int = 64, long_side: int = 1024) -> str:
    """A dataset of rendered facades, as large as photographs that are labelled."""
    rows = []
    for image_id in range(number):
        scene = render_facade(image_id, long_side)
        sink = io.BytesIO()
        Image.fromarray(scene.image).save(sink, "JPEG", quality=90)
        mask = encode_mask(scene.label_map, CLASSES.palette)
        height, width = scene.label_map.shape
        rows.append(
            {"image_id": image_id, "uri": f"{image_id}.jpg", "group": None,
             "image": {"bytes": sink.getvalue()}, "mask": {"bytes": mask},
             "width": width, "height": height}
        )  # fmt: skip
    Dataset(uri, CLASSES, [write_shard(uri, "train", rows)]).publish()
    return uri


def measure(
    dataset: Dataset, images: Samples, train: Train, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds a step of both, in turns, and the share of a step that was spent waiting."""
    sampler = Sampler(len(images), train.batch_size, 1, 1000, 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    network = networks.build(arguments.arch, arguments.backbone, len(dataset.classes))
    training = Training(
        NetworkWithLoss(network, train.loss, zoo.IMAGENET_MEAN, zoo.IMAGENET_STD),
        network.get_submodule(network.trunk_key),
        sampler,
        train,
        device=device,
        precision=precision,
    )
    loader = Loader(
        lambda index: training_example(images[index], train.long_side),
        images.image_ids,
        sampler,
        train,
        fill=(124, 116, 104),
        threads=num_cores(),
        pin_memory=device.type == "cuda",
    )
    real = loader.steps(0)
    ready = [[(p.to(device), t.to(device)) for p, t in next(real)] for _ in range(ROUND)]
    for parts in ready[:WARM_UP]:
        training.run_step(parts)
    seconds: dict[str, list[float]] = {"real": [], "bare": []}
    waited = 0.0
    while len(seconds["real"]) < arguments.steps:
        for _ in range(BATCHES_AHEAD):  # those were made while nothing else was going on
            timed(training, real)
        loader.pop_wait_seconds()
        seconds["real"] += [timed(training, real) for _ in range(ROUND)]
        waited += loader.pop_wait_seconds()
        time.sleep(SETTLE_S)
        seconds["bare"] += [timed(training, iter([parts])) for parts in ready]
    real.close()  # type: ignore[attr-defined]
    step, bare = (float(np.median(seconds[kind])) for kind in ("real", "bare"))
    return {
        "date": date.today().isoformat(),
        "machine": f"{num_cores()} cores, {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "network": f"{arguments.arch} {arguments.backbone}",
        "images": len(images),
        "crop": train.crop,
        "long_side": train.long_side,
        "batch_size": train.batch_size,
        "precision": precision,
        "seconds_per_step": step,
        "seconds_per_bare_step": bare,
        "images_per_second": train.batch_size / step,
        "share_of_bare_throughput": bare / step,
        "share_spent_waiting": waited / sum(seconds["real"]),
    }


def timed(training: Training, steps: Iterator[list[Batch]]) -> float:
    began = time.perf_counter()
    training.run_step(next(steps))
    return time.perf_counter() - began


def show(figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title="Training, with its input and without")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
