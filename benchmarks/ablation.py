"""What each part of a recipe is worth: scripts/bench ablation DATASET --weights FOLDER [--seeds 2].

    segbatch labels import swiss-facades labels --from coco --split folder \
        --map non-building-infrastructure=infrastructure --map traffic-infrastructure=infrastructure
    scripts/bench ablation labels --weights weights

The recipe of zoo:facades (benchmarks/recipes/facades.yaml) is trained as it is, and with one change
at a time, each from several seeds. FOLDER holds ImageNet weights, BACKBONE-imagenet.pth. The scores
are those of the last step on `val`, not of the best epoch, so that no row profits from having been
chosen. Every training also keeps the moving average of its weights, which is measured too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

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
from segbatch.config.training import FromBackbone, Train  # noqa: E402
from segbatch.labels.dataset import open_dataset  # noqa: E402
from segbatch.masks import decode_mask  # noqa: E402

RECIPE = ROOT / "benchmarks" / "recipes" / "facades.yaml"
RARE = ("infrastructure", "shop", "balcony-fence")

# Dotted keys of the job, and `copies`: how often an image with a rare class is in an epoch.
CHANGES: dict[str, dict[str, Any]] = {
    "crop 448": {"train.crop": 448},
    "twice the epochs": {"times": 2.0},
    "EfficientNet-Lite2": {"model.backbone": "tu-tf_efficientnet_lite2"},
    "EfficientNet-Lite2, crop 448": {
        "model.backbone": "tu-tf_efficientnet_lite2",
        "train.crop": 448,
    },
    "ResNet-50 without ImageNet": {"model.backbone": "resnet50", "model.backbone_weights": None},
    "the recipe": {},
    "half the epochs": {"times": 0.5},
    "crop 256": {"train.crop": 256},
    "no class weights": {"train.loss.class_weights": None},
    "median frequency weights": {"train.loss.class_weights": "median_frequency"},
    "OHEM": {"train.loss.name": "ohem"},
    "scales 0.5 to 2": {"train.augment.scale_range": [0.5, 2.0]},
    "no colour jitter": {"train.augment.color_jitter": 0.0},
    "SGD": {
        "train.optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 1e-4, "head_lr_factor": 10}
    },
    "images of rare classes twice": {"copies": 2},
    "MobileNetV2": {"model.backbone": "mobilenet_v2"},
    "without ImageNet": {"model.backbone_weights": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a labelled dataset with train and val")
    parser.add_argument("--weights", type=Path, required=True, help="a folder of ImageNet weights")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60, help="of the recipe")
    parser.add_argument("--only", nargs="*", choices=[*CHANGES], default=[*CHANGES])
    add_options(parser, "trainings")
    arguments = parser.parse_args()
    tasks = [
        {
            "change": change,
            "seed": seed,
            "dataset": arguments.dataset,
            "weights": str(arguments.weights),
            "epochs": arguments.epochs,
            "threads": threads_each(arguments.processes),
        }
        for seed in range(arguments.seeds)
        for change in arguments.only
    ]
    tasks.sort(key=lambda task: [*CHANGES].index(str(task["change"])))  # the longest first
    kept = Kept("ablation", arguments, summary)
    trainings = in_parallel(tasks, train_changed, arguments.processes, kept.write)
    print(result.markdown(summary(trainings)))
    print(kept.write(trainings))


def train_changed(
    *, change: str, seed: int, dataset: str, weights: str, epochs: int, threads: int
) -> dict[str, Any]:
    """Train the recipe with a change, from a seed; the scores of its last step on ``val``."""
    torch.set_num_threads(threads)
    job = yaml.safe_load(RECIPE.read_text())
    keys = dict(CHANGES[change])
    times, copies = keys.pop("times", 1.0), keys.pop("copies", 1)
    job["model"]["backbone_weights"] = "of the folder"
    for key, value in keys.items():
        *parents, last = key.split(".")
        place = job
        for parent in parents:
            place = place[parent]
        place[last] = value
    if job["model"]["backbone_weights"] is not None:
        name = job["model"]["backbone"].removeprefix("tu-")
        job["model"]["backbone_weights"] = str(Path(weights, f"{name}-imagenet.pth"))
    opened = open_dataset(dataset)
    rows = rows_of(opened, "train")
    if copies > 1:
        rows = with_copies(rows, [opened.classes.names.index(name) for name in RARE], copies)
    # As many steps with copies as without.
    job["train"]["epochs"] = max(1, round(epochs * times * opened.num_rows("train") / len(rows)))
    train = Train.model_validate({**job["train"], "seed": seed})
    start = FromBackbone.model_validate(job["model"])
    trained = train_network(rows, opened, start, train, threads=threads, average=True)
    val = rows_of(opened, "val")
    assert trained.average is not None
    return {
        "change": change,
        "seed": seed,
        "seconds": round(trained.seconds, 1),
        **scores(trained.network, trained.config, val),
        "average": scores(trained.average, trained.config, val),
    }


def with_copies(rows: Sequence[Row], rare: Sequence[int], copies: int) -> list[Row]:
    """The rows, each ``copies`` times if at least one pixel in a hundred is of a ``rare`` class."""
    copied = []
    for row in rows:
        mask = decode_mask(row["mask"]["bytes"])
        is_rare = any((mask == class_id).mean() > 0.01 for class_id in rare)
        copied += [row] * (copies if is_rare else 1)
    return copied


def summary(trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each change: mean and standard deviation over the seeds."""
    rows = []
    for change in dict.fromkeys(training["change"] for training in trainings):
        own = [training for training in trainings if training["change"] == change]
        rows.append(
            {
                "change": change,
                "seeds": len(own),
                "mIoU": result.mean_and_deviation([training["miou"] for training in own]),
                "mIoU of the average": result.mean_and_deviation(
                    [training["average"]["miou"] for training in own]
                ),
                "seconds": round(mean(training["seconds"] for training in own)),
            }
        )
    return rows


if __name__ == "__main__":
    main()
