"""What a few labels of one's own give: scripts/bench few DATASET --weights FILE.

    segbatch labels import swiss-facades labels --from coco --split folder \
        --map non-building-infrastructure=infrastructure --map traffic-infrastructure=infrastructure
    scripts/bench few labels --weights tf_efficientnet_lite0-imagenet.pth

`swiss-facades` comes from two cameras, whose photographs differ: IMG_* are bright, the others dark.
A model of facades is trained on the first camera's, as zoo:facades is on both. The other camera's
are somebody's own: in the order in which they were taken, the first hundred can be labelled, the
last 66 are measured with. Between both lie 18 minutes of a walk, so that no building is in both:
the 13 photographs before that gap, of buildings among the hundred, are left out. From the model and
from ImageNet, networks are trained on 20, 50 and 100 of the hundred, all for as many steps. A run
that was stopped goes on with the same options, --source and --output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.training import (  # noqa: E402
    Kept,
    Row,
    add_options,
    in_parallel,
    rows_of,
    scores,
    threads_each,
    train_network,
)
from segbatch.config.training import FromBackbone, FromBundle, Train  # noqa: E402
from segbatch.labels.dataset import open_dataset  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.model.bundle import CONFIG, load_bundle  # noqa: E402

RECIPE = ROOT / "benchmarks" / "recipes" / "facades.yaml"
OTHERS = "IMG_"
POOL = 100
TEST = slice(113, None)  # from the first one after the gap
NUMBERS = (20, 50, 100)  # of own photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="swiss-facades, imported")
    parser.add_argument(
        "--weights", required=True, help="ImageNet weights of the recipe's backbone"
    )
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60, help="of the model of the other camera")
    parser.add_argument(
        "--source", help="folder of that model, which is trained if it is not there"
    )
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--steps", type=int, default=500, help="of each training on a few")
    add_options(parser, "trainings")
    arguments = parser.parse_args()
    options = vars(arguments)
    kept = Kept("few", arguments, summary)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.source or scratch
        earlier = [training for training in kept.earlier() if training["number"]]
        have = {(training["number"], training["start"], training["seed"]) for training in earlier}
        trainings = [train_source(folder, options), *earlier]
        saved = kept.write(trainings)
        tasks = [
            {"number": number, "start": start, "seed": seed, "source": folder, "options": options}
            for number in options["numbers"]
            for start in ("model", "ImageNet")
            for seed in range(arguments.seeds)
            if (number, start, seed) not in have
        ]
        trainings += in_parallel(
            tasks, train_few, arguments.processes, lambda done: kept.write([*trainings, *done])
        )
    print(result.markdown(summary(trainings)))
    draw(trainings, saved.with_suffix(".png"))
    print(saved)


def draw(trainings: Sequence[Mapping[str, Any]], path: Path) -> None:
    """mIoU over the number of own photographs, from either start: each training and their mean."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for start, color in (("model", "#1f6fb4"), ("ImageNet", "#9aa3ab")):
        found = sorted((t["number"], t["miou"]) for t in trainings if t["start"] == start)
        numbers = sorted({number for number, _ in found})
        means = [fmean(miou for n, miou in found if n == number) for number in numbers]
        axes.plot(
            numbers,
            means,
            color=color,
            label="from ImageNet" if start == "ImageNet" else "from the model",
        )
        axes.plot(*zip(*found, strict=True), "o", color=color, markersize=4)
    axes.set(xlabel="own labelled photographs", ylabel="mIoU", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def dealt(dataset: str) -> tuple[list[Row], list[Row], list[Row]]:
    """The other camera's rows of ``train``, the hundred that can be labelled, and the test's."""
    opened = open_dataset(dataset)
    train, val = rows_of(opened, "train"), rows_of(opened, "val")
    others = [row for row in train if Path(row["uri"]).name.startswith(OTHERS)]
    own = [row for row in [*train, *val] if not Path(row["uri"]).name.startswith(OTHERS)]
    own.sort(key=lambda row: Path(row["uri"]).name)  # begins with date and time
    return others, own[:POOL], own[TEST]


def recipe(options: Mapping[str, Any], **changes: Any) -> Train:
    keys = yaml.safe_load(RECIPE.read_text())["train"]
    return Train.model_validate({**keys, "crop": options["crop"], **changes})


def backbone(options: Mapping[str, Any]) -> FromBackbone:
    keys = yaml.safe_load(RECIPE.read_text())["model"]
    return FromBackbone.model_validate({**keys, "backbone_weights": options["weights"]})


def train_source(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train the model of the other camera into ``folder``, unless it is there; its scores without
    any own label.
    """
    torch.set_num_threads(num_cores())
    others, _, test = dealt(options["dataset"])
    if not Path(folder, CONFIG).exists():
        train_network(
            others,
            open_dataset(options["dataset"]),
            backbone(options),
            recipe(options, epochs=options["epochs"]),
            threads=num_cores(),
            average=True,
        ).save(folder)
    network, config = load_bundle(folder)
    return {"start": "model", "number": 0, "seed": 0, **scores(network, config, test)}


def train_few(
    number: int, start: str, seed: int, source: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on ``number`` own photographs, drawn by ``seed``; the scores on the test's."""
    threads = threads_each(options["processes"])
    torch.set_num_threads(threads)
    _, pool, test = dealt(options["dataset"])
    drawn = np.random.default_rng(seed).choice(len(pool), number, replace=False)
    from_model = start == "model"
    changes: dict[str, Any] = {"seed": seed, "epochs": round(options["steps"] * 8 / number)}
    if from_model:
        changes["optimizer"] = {
            "name": "adamw", "lr": 1e-4, "weight_decay": 0.01, "head_lr_factor": 3
        }  # fmt: skip
    trained = train_network(
        [pool[index] for index in drawn],
        open_dataset(options["dataset"]),
        FromBundle(**{"from": source}) if from_model else backbone(options),
        recipe(options, **changes),
        threads=threads,
        average=True,
    )
    return {
        "start": start,
        "number": number,
        "seed": seed,
        "seconds": round(trained.seconds, 1),
        **scores(trained.final, trained.config, test),
    }


def summary(trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number of photographs: mean and standard deviation over the seeds."""
    rows = []
    for number in sorted({training["number"] for training in trainings}):
        row: dict[str, Any] = {"own photographs": number}
        for start in ("model", "ImageNet"):
            values = [t["miou"] for t in trainings if (t["number"], t["start"]) == (number, start)]
            row[f"from {start}"] = result.mean_and_deviation(values) if values else None
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
