"""Trains a network in this process, for benchmarks that compare trainings.

The steps, batches and scores are those of the fine-tune job. Without Ray and checkpoints a short
training stays short, and several share a large GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from benchmarks import result
from segbatch.config.job import Predict
from segbatch.config.training import FromBackbone, FromBundle, Train
from segbatch.labels.dataset import Dataset
from segbatch.labels.samples import Sample
from segbatch.machine import num_cores
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.device import resolve_precision
from segbatch.model.networks import Network
from segbatch.model.predict import Model
from segbatch.training.confusion import ConfusionMatrix, by_class
from segbatch.training.examples import measure, training_example
from segbatch.training.loader import Loader, Sampler
from segbatch.training.loss import NetworkWithLoss
from segbatch.training.network import build_network
from segbatch.training.recipe import count_ids, seed_everything, weights_of_counts
from segbatch.training.step import Training

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Row = Mapping[str, Any]  # of a dataset: image_id, uri, image, mask


@dataclass(frozen=True)
class Trained:
    """What came of a training: the network of the last step, the moving average of its weights if
    that was asked for, and the seconds that it took.
    """

    network: Network
    average: Network | None
    config: ModelConfig
    seconds: float

    @property
    def final(self) -> Network:
        """The averaged network if there is one, else that of the last step."""
        return self.average or self.network

    def save(self, uri: str) -> str:
        """Write the final network as a bundle; returns ``uri``."""
        save_bundle(uri, self.final, self.config)
        return uri


def rows_of(dataset: Dataset, split: str) -> list[Row]:
    """The rows of a split, in the order of the dataset."""
    return [row for table in dataset.tables(split) for row in table.to_pylist()]


def sample_of(row: Row) -> Sample:
    """A row as what is decoded, trained on and measured with."""
    return Sample(row["image_id"], row["uri"], row["image"]["bytes"], row["mask"]["bytes"])


def train_network(
    rows: Sequence[Row],
    dataset: Dataset,
    start: FromBackbone | FromBundle,
    train: Train,
    *,
    threads: int,
    average: bool = False,
) -> Trained:
    """Train on ``rows`` of ``dataset`` to the last step, as a fine-tune job does.

    With ``average`` an exponential moving average of the weights is kept, too.
    """
    began = time.perf_counter()
    seed_everything(train.seed)
    network, config = build_network(start, dataset.classes, print)
    config = replace(config, long_side=train.long_side)
    weights = train.loss.class_weights
    if weights == "median_frequency":
        counts = (count_ids(row["mask"]["bytes"]) for row in rows)
        weights = weights_of_counts(counts, len(dataset.classes))
    sampler = Sampler(len(rows), train.batch_size, 1, train.epochs, train.seed)
    training = Training(
        NetworkWithLoss(network, train.loss, config.mean, config.std, weights),
        network.get_submodule(network.trunk_key),
        sampler,
        train,
        device=DEVICE,
        precision=resolve_precision(train.precision, DEVICE),
    )
    decoded = lru_cache(maxsize=None)(
        lambda index: training_example(sample_of(rows[index]), train.long_side)
    )
    loader = Loader(
        decoded,
        [row["image_id"] for row in rows],
        sampler,
        train,
        fill=config.fill,
        threads=threads,
        pin_memory=DEVICE.type == "cuda",
    )
    averaged = None
    if average:
        averaged = ModelEmaV3(training.network, use_warmup=True)  # type: ignore[no-untyped-call]
    for micro_batches in loader.steps(0):
        training.run_step(micro_batches)
        if averaged is not None:
            averaged.update(training.network, training.step)
    return Trained(
        _without_auxiliary(config, training.network),
        None if averaged is None else _without_auxiliary(config, averaged.module),
        config,
        time.perf_counter() - began,
    )


def scores(network: Network, config: ModelConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU by class of a network on ``rows``."""
    model = Model(network, config, DEVICE, Predict(precision="fp32"), confidence=False)
    confusion: ConfusionMatrix = measure(model, (sample_of(row) for row in rows))
    return {
        "miou": round(float(confusion.miou()), 4),
        "pixel_accuracy": round(float(confusion.pixel_accuracy()), 4),
        "iou": by_class(confusion.iou(), config.classes),
    }


def _without_auxiliary(config: ModelConfig, trained: Any) -> Network:
    network = config.build()
    network.load_state_dict(network.without_auxiliary(trained.state_dict()))
    return network


def add_options(parser: argparse.ArgumentParser, what: str) -> None:
    """The options of :func:`in_parallel` and :class:`Kept`; ``what`` is done in parallel."""
    parser.add_argument("--processes", type=int, default=1, help=f"{what} at a time, on one GPU")
    parser.add_argument("--note", help="what to write beside the figures: what else was going on")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")


def threads_each(processes: int) -> int:
    """CPU threads of one of so many processes on this machine."""
    return max(1, num_cores() // processes)


def in_parallel(
    tasks: Sequence[Mapping[str, Any]],
    work: Callable[..., Any],
    processes: int,
    keep: Callable[[list[Any]], object],
) -> list[Any]:
    """The results of ``work(**task)``, in the order of the tasks, ``processes`` at a time.

    Each is printed as it comes, and all that have come so far are given to ``keep``. Tasks start in
    their order: put the longest first.
    """
    found: dict[int, Any] = {}

    def come(index: int, value: Any) -> None:
        print(json.dumps(value), flush=True)
        found[index] = value
        keep([found[number] for number in sorted(found)])

    if processes == 1:
        for index, task in enumerate(tasks):
            come(index, work(**task))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            waiting = {pool.submit(work, **task): index for index, task in enumerate(tasks)}
            for done in as_completed(waiting):
                come(waiting[done], done.result())
    return [found[index] for index in range(len(tasks))]


class Kept:
    """The result of a benchmark of trainings, written after each, so that a stopped run has it."""

    def __init__(
        self,
        name: str,
        arguments: argparse.Namespace,
        summary: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    ) -> None:
        self.name, self.output, self.summary = name, arguments.output, summary
        self.facts = result.machine() | ({"note": arguments.note} if arguments.note else {})
        given = {key: v for key, v in vars(arguments).items() if key not in ("note", "output")}
        # Of a path the name: where somebody keeps his files concerns nobody.
        self.options = {key: str(value).rpartition("/")[2] for key, value in given.items()}

    def earlier(self) -> list[dict[str, Any]]:
        """The trainings of a run with the same options, if its result is in the same place."""
        if self.output is None or not self.output.exists():
            return []
        figures = json.loads(self.output.read_text())
        found: list[dict[str, Any]] = figures["trainings"]
        return found if figures["options"] == self.options else []

    def write(self, trainings: list[dict[str, Any]]) -> Path:
        """Write what there is so far; returns where."""
        figures = {
            **self.facts,
            "options": self.options,
            "summary": self.summary(trainings),
            "trainings": trainings,
        }
        return result.save(self.name, figures, self.output)
