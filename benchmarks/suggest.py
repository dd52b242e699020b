"""Whether images that `labels suggest` chooses help more than random ones: scripts/bench suggest.

    segbatch labels import swiss-facades labels --from coco --split folder \
        --map non-building-infrastructure=infrastructure --map traffic-infrastructure=infrastructure
    scripts/bench suggest labels --backbone-weights mobilenet_v2-imagenet.pth [-o RESULT.json]

A model is trained on a few random images of `train` and run over all others. Twenty of those are
suggested, and as many are drawn, each time by another seed. From the first model on, networks are
then trained on the few with the twenty, all for as many steps, and measured on `val`. What is
suggested is always the same, so that those networks differ by the seed of their training alone; one
is trained on the few only, because longer training helps, too. What somebody would correct is known
already: it is the labels that the dataset has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result import machine, markdown, save  # noqa: E402
from segbatch import segment, storage  # noqa: E402
from segbatch.config.training import Augment, FromBackbone, FromBundle, Optimizer, Schedule, Train  # noqa: E402
from segbatch.labels.dataset import Dataset, open_dataset, write_shard  # noqa: E402
from segbatch.labels.samples import Samples, copy_split  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.model.bundle import load_bundle, save_bundle  # noqa: E402
from segbatch.model.predict import Model  # noqa: E402
from segbatch.review.suggest.candidates import RANKINGS  # noqa: E402
from segbatch.review.suggest.suggest import suggest  # noqa: E402
from segbatch.training.confusion import by_class  # noqa: E402
from segbatch.training.examples import measure, training_example  # noqa: E402
from segbatch.training.loader import (  # noqa: E402
    Loader,
    Sampler,
)
from segbatch.training.loss import NetworkWithLoss  # noqa: E402
from segbatch.training.network import build_network  # noqa: E402
from segbatch.training.recipe import median_frequency_weights, seed_everything  # noqa: E402
from segbatch.training.step import Training  # noqa: E402

Row = Mapping[str, Any]

BATCH = 8
LR = 0.004
WARMUP = 80  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a labelled dataset with train and val")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--backbone-weights", default="imagenet", help="imagenet, or a file")
    parser.add_argument("--by", choices=[*RANKINGS], default="uncertainty")
    parser.add_argument("--few", type=int, default=40, help="images to begin with")
    parser.add_argument("--count", type=int, default=20, help="images that are added")
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each kind")
    parser.add_argument("--first-steps", type=int, default=180)
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--long-side", type=int, default=512)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(num_cores())
    with tempfile.TemporaryDirectory() as folder:
        figures = experiment(folder, arguments)
    print(markdown(figures["trainings"]))
    print(markdown(figures["summary"]))
    save("suggest", figures, arguments.output)


def experiment(folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it, in ``folder``."""
    where = machine()
    began = time.perf_counter()
    recipe = Recipe(folder, arguments)
    few, rest = recipe.dealt()
    first = recipe.train(
        few,
        FromBackbone(backbone=arguments.backbone, backbone_weights=arguments.backbone_weights),
        arguments.first_steps,
        seed=0,
    )
    for row in rest:
        storage.write_bytes(f"{folder}/pool/{row['image_id']}.jpg", row["image"]["bytes"])
    job = {
        "kind": "segment",
        "images": f"{folder}/pool/",
        "model": first,
        "output": f"{folder}/run",
    }
    run = segment(job)
    chosen = suggest(run, f"{folder}/suggested", count=arguments.count, by=arguments.by).images
    names = {int(Path(entry.uri).stem) for entry in chosen}
    suggested = [row for row in rest if row["image_id"] in names]
    trainings = [{"added": "(the first model)", "seed": 0, **recipe.scores(first)}]
    for seed in range(1, arguments.seeds + 1):
        drawn = np.random.default_rng(seed).choice(len(rest), len(suggested), replace=False)
        kinds = {"suggested": suggested, "random": [rest[index] for index in drawn]}
        if seed == 1:
            kinds["nothing"] = []
        for kind, added in kinds.items():
            model = recipe.train(
                [*few, *added], FromBundle(**{"from": first}), arguments.steps, seed
            )
            trainings.append({"added": kind, "seed": seed, **recipe.scores(model)})
            print(trainings[-1], flush=True)
    return {
        **where,
        "seconds": round(time.perf_counter() - began),
        "options": {k: str(v) for k, v in vars(arguments).items()},
        "suggested": sorted(row["uri"] for row in suggested),
        "trainings": [{k: v for k, v in t.items() if k != "iou"} for t in trainings],
        "iou": [t["iou"] for t in trainings],
        "summary": summary(trainings),
    }


@dataclass
class Recipe:
    """How networks are trained and measured; what is written goes below ``folder``."""

    folder: str
    arguments: argparse.Namespace

    def __post_init__(self) -> None:
        self.dataset = open_dataset(self.arguments.dataset)
        copy_split(self.dataset, "val", Path(self.folder, "cache"))
        self.held_out = Samples(self.dataset, "val", Path(self.folder, "cache"))

    def dealt(self) -> tuple[list[Row], list[Row]]:
        """The few rows of ``train`` to begin with, and the others."""
        rows = [row for table in self.dataset.tables("train") for row in table.to_pylist()]
        order = np.random.default_rng(0).permutation(len(rows))
        dealt = [rows[index] for index in order]
        return dealt[: self.arguments.few], dealt[self.arguments.few :]

    def train(
        self, rows: Sequence[Row], network: FromBackbone | FromBundle, steps: int, seed: int
    ) -> str:
        """A bundle of what comes of ``network`` after about ``steps`` on these images."""
        arguments = self.arguments
        shard = write_shard(f"{self.folder}/labels", "train", rows)
        dataset = Dataset(f"{self.folder}/labels", self.dataset.classes, [shard])
        copy_split(dataset, "train", Path(self.folder, "cache"))
        images = Samples(dataset, "train", Path(self.folder, "cache"))
        train = Train(
            epochs=max(1, round(steps * BATCH / len(images))),
            batch_size=BATCH,
            long_side=arguments.long_side,
            crop=arguments.crop,
            optimizer=Optimizer(lr=LR),
            schedule=Schedule(warmup=WARMUP),
            augment=Augment(scale_range=(0.5, 1.5)),
            seed=seed,
        )
        seed_everything(seed)
        started, config = build_network(network, dataset.classes, print)
        config = replace(config, long_side=train.long_side)
        weights = median_frequency_weights(dataset)
        sampler = Sampler(len(images), train.batch_size, 1, train.epochs, train.seed)
        training = Training(
            NetworkWithLoss(started, train.loss, config.mean, config.std, weights),
            started.get_submodule(started.trunk_key),
            sampler,
            train,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            precision="fp32",
        )
        loader = Loader(
            lambda index: training_example(images[index], train.long_side),
            images.image_ids,
            sampler,
            train,
            fill=config.fill,
            threads=num_cores(),
        )
        for parts in loader.steps(0):
            training.run_step(parts)
        trained = config.build()
        trained.load_state_dict(training.network.without_auxiliary(training.network.state_dict()))
        uri = f"{self.folder}/models/{shard.sha256[:16]}-{seed}"
        save_bundle(uri, trained, config)
        return uri

    def scores(self, uri: str) -> dict[str, Any]:
        """What the bundle at ``uri`` reaches on ``val``."""
        network, config = load_bundle(uri)
        model = Model(network, config, confidence=False)
        confusion = measure(model, self.held_out)
        return {
            "miou": round(float(confusion.miou()), 4),
            "pixel_accuracy": round(float(confusion.pixel_accuracy()), 4),
            "iou": by_class(confusion.iou(), config.classes),
        }


def summary(trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the mIoU of each kind."""
    kinds = dict.fromkeys(training["added"] for training in trainings)
    scores = {kind: [t["miou"] for t in trainings if t["added"] == kind] for kind in kinds}
    return [
        {
            "added": kind,
            "trainings": len(values),
            "mIoU": mean(values),
            "standard deviation": stdev(values) if len(values) > 1 else None,
        }
        for kind, values in scores.items()
    ]


if __name__ == "__main__":
    main()
