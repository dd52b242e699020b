"""Which images are worth labelling next: scripts/bench suggest DATASET --backbone-weights FILE.

    segbatch labels import swiss-facades labels --from coco --split folder \
        --map non-building-infrastructure=infrastructure --map traffic-infrastructure=infrastructure
    scripts/bench suggest labels --backbone-weights tf_efficientnet_lite0-imagenet.pth

For each seed, a model is trained on a few random images of `train` and predicts all others. Every
strategy of STRATEGIES then chooses twenty of those, as many are drawn at random, twice, and from
the first model on, a network is trained on the few with the twenty, all for as many steps, and
measured on `val`. What somebody would correct is known already: it is the labels that the dataset
has. Strategies are compared with the random draws of the same seed, which began with the same
images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.training import (  # noqa: E402
    DEVICE,
    Kept,
    Row,
    Trained,
    add_options,
    in_parallel,
    rows_of,
    sample_of,
    scores,
    threads_each,
    train_network,
)
from segbatch.config.training import (  # noqa: E402
    Augment,
    FromBackbone,
    FromBundle,
    Loss,
    Optimizer,
    Schedule,
    Train,
)
from segbatch.labels.dataset import Dataset, open_dataset  # noqa: E402
from segbatch.masks.classes import IGNORE_INDEX  # noqa: E402
from segbatch.model.predict import Model  # noqa: E402
from segbatch.review.suggest.candidates import (  # noqa: E402
    FACTOR,
    MIN_FACTOR,
    PRESENT,
    ROWS_PER_CANDIDATE,
)
from segbatch.review.suggest.diversity import describe_images, diverse_order  # noqa: E402
from segbatch.review.suggest.suggest import LONG_SIDE  # noqa: E402
from segbatch.training.examples import decode_sample  # noqa: E402

BATCH = 8
RANDOM = ("random", "random again")

Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a labelled dataset with train and val")
    parser.add_argument("--backbone", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--backbone-weights", default="imagenet", help="imagenet, or a file")
    parser.add_argument("--by", nargs="*", choices=[*STRATEGIES], default=[*STRATEGIES])
    parser.add_argument("--few", type=int, default=40, help="images to begin with")
    parser.add_argument("--count", type=int, default=20, help="images that are added")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crop", type=int, default=320)
    add_options(parser, "seeds")
    arguments = parser.parse_args()
    tasks = [{"seed": seed, "options": vars(arguments)} for seed in range(arguments.seeds)]
    kept = Kept("suggest", arguments, summary)
    rounds = in_parallel(
        tasks, one_round, arguments.processes, lambda done: kept.write(list(chain(*done)))
    )
    trainings = list(chain(*rounds))
    print(result.markdown(summary(trainings)))
    print(kept.write(trainings))


@dataclass(frozen=True)
class Seen:
    """What the first model sees in images: arrays with one entry, or row, for each image.

    ``coverage`` and ``confidence`` are ``(images, classes)``, the latter NaN for absent classes;
    ``uncertainty`` and ``error``, the share of labelled pixels that are wrong, are ``(images,)``.
    """

    coverage: Floats
    confidence: Floats
    uncertainty: Floats
    error: Floats
    photos: Sequence[npt.NDArray[np.uint8]]

    @property
    def features(self) -> Floats:
        """What a run knows of each image: coverage, doubt of each class, and uncertainty."""
        doubt = np.nan_to_num(1 - self.confidence)
        return np.hstack(
            [self.coverage, doubt, self.uncertainty[:, None], np.ones_like(doubt[:, :1])]
        )


def one_round(seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All trainings of one seed, with their scores."""
    torch.set_num_threads(threads_each(options["processes"]))
    recipe = Recipe(options, open_dataset(options["dataset"]), seed)
    few, rest = recipe.dealt()
    backbone = FromBackbone(
        backbone=options["backbone"], backbone_weights=options["backbone_weights"]
    )
    first = recipe.train(few, backbone, options["first_steps"])
    with tempfile.TemporaryDirectory() as folder:
        start = FromBundle(**{"from": first.save(folder)})
        seen = look(first, rest)
        # Errors are learnt on images that the model which makes them was not trained on.
        half = recipe.train(few[::2], backbone, options["first_steps"])
        held_out = look(half, few[1::2])
        chosen = {
            name: STRATEGIES[name](seen, held_out, options["count"]) for name in options["by"]
        }
        draw = np.random.default_rng([seed, 1])
        for name in RANDOM:
            chosen[name] = list(draw.choice(len(rest), options["count"], replace=False))
        trainings = [
            recipe.entry("(the first model)", first),
            recipe.entry_of(few, start, "nothing"),
        ]
        for name, indices in chosen.items():
            added = [rest[index] for index in indices]
            entry = recipe.entry_of([*few, *added], start, name)
            error = round(float(seen.error[indices].mean()), 4)
            trainings.append(
                {**entry, "error": error, "images": sorted(Path(row["uri"]).name for row in added)}
            )
    return trainings


@dataclass(frozen=True)
class Recipe:
    """How the networks of one seed are trained and measured."""

    options: Mapping[str, Any]
    dataset: Dataset
    seed: int

    def dealt(self) -> tuple[list[Row], list[Row]]:
        """The few rows of ``train`` to begin with, and the others."""
        rows = rows_of(self.dataset, "train")
        order = np.random.default_rng([self.seed, 0]).permutation(len(rows))
        dealt = [rows[index] for index in order]
        return dealt[: self.options["few"]], dealt[self.options["few"] :]

    def train(self, rows: Sequence[Row], start: FromBackbone | FromBundle, steps: int) -> Trained:
        new = isinstance(start, FromBackbone)
        train = Train(
            epochs=max(1, round(steps * BATCH / len(rows))),
            batch_size=BATCH,
            long_side=512,
            crop=self.options["crop"],
            optimizer=Optimizer(
                name="adamw", lr=3e-4 if new else 1e-4, weight_decay=0.01, head_lr_factor=3
            ),
            schedule=Schedule(warmup=80),
            loss=Loss(class_weights="median_frequency"),
            augment=Augment(scale_range=(0.6, 1.6), color_jitter=0.3),
            seed=self.seed,
        )
        threads = threads_each(self.options["processes"])
        # The averaged weights: less noise between trainings that are compared.
        return train_network(rows, self.dataset, start, train, threads=threads, average=True)

    def entry(self, name: str, trained: Trained) -> dict[str, Any]:
        val = rows_of(self.dataset, "val")
        return {
            "added": name,
            "seed": self.seed,
            "seconds": round(trained.seconds, 1),
            **scores(trained.final, trained.config, val),
        }

    def entry_of(self, rows: Sequence[Row], start: FromBundle, name: str) -> dict[str, Any]:
        return self.entry(name, self.train(rows, start, self.options["steps"]))


def look(trained: Trained, rows: Sequence[Row]) -> Seen:
    """Predict images, and compare with their labels."""
    model = Model(trained.final, trained.config, DEVICE)
    coverage, confidence, uncertainty, error, photos = [], [], [], [], []
    for row in rows:
        image, truth = decode_sample(sample_of(row), model.long_side)
        (prediction,) = model.predict_batch([image], [truth.shape])
        coverage.append(prediction.pixels / prediction.mask.size)
        confidence.append(prediction.confidences)
        uncertainty.append(prediction.uncertainty)
        known = truth != IGNORE_INDEX
        error.append(float((prediction.mask != truth)[known].mean()) if known.any() else 0.0)
        small = Image.fromarray(image)
        small.thumbnail((LONG_SIDE, LONG_SIDE))
        photos.append(np.asarray(small))
    arrays = (np.array(values, np.float64) for values in (coverage, confidence, uncertainty, error))
    return Seen(*arrays, photos)


# ------------------------------------------------------------------------------------- strategies


def spread(seen: Seen, score: Floats, count: int) -> list[int]:
    """The best of different clusters, as `labels suggest` chooses them."""
    limit = min(FACTOR * count, max(MIN_FACTOR * count, len(score) // ROWS_PER_CANDIDATE))
    best = np.argsort(-score, kind="stable")[:limit]
    descriptors = describe_images(seen.coverage[best], [seen.photos[index] for index in best])
    order = diverse_order(descriptors, list(score[best]), count)[:count]
    return [int(best[row]) for row, _ in order]


def predicted_error(seen: Seen, held_out: Seen) -> Floats:
    """The error that ridge regression predicts for each image, learnt on held-out ones."""
    features, target = held_out.features, held_out.error
    scale = features.std(axis=0) + 1e-6
    known, wanted = features / scale, seen.features / scale
    weights = np.linalg.solve(known.T @ known + np.eye(known.shape[1]), known.T @ target)
    predicted: Floats = wanted @ weights
    return predicted


def doubt_by_class(seen: Seen) -> Floats:
    """The mean of 1 - confidence over the classes of an image, each as heavy as the others."""
    present = np.where(seen.coverage >= PRESENT, 1 - seen.confidence, np.nan)
    return np.nan_to_num(np.nanmean(present, axis=1))


def rare_classes(seen: Seen) -> Floats:
    """How many of the classes an image shows, each weighted by how few images show it."""
    present = seen.coverage >= PRESENT
    weights = 1 / np.maximum(present.sum(axis=0), 1)
    rarity: Floats = present @ weights
    return rarity


Strategy = Callable[[Seen, Seen, int], list[int]]

STRATEGIES: dict[str, Strategy] = {
    "uncertainty": lambda seen, _, count: spread(seen, seen.uncertainty, count),
    "uncertainty, not spread": lambda seen, _, count: list(np.argsort(-seen.uncertainty)[:count]),
    "diverse": lambda seen, _, count: spread(seen, np.zeros(len(seen.error)), count),
    "doubt by class": lambda seen, _, count: spread(seen, doubt_by_class(seen), count),
    "rare classes": lambda seen, _, count: spread(seen, rare_classes(seen), count),
    "predicted error": lambda seen, held_out, count: spread(
        seen, predicted_error(seen, held_out), count
    ),
    "true error": lambda seen, _, count: spread(seen, seen.error, count),  # nobody has it
}


def summary(trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of training: its mIoU, and its difference from the random draws."""
    seeds = sorted({training["seed"] for training in trainings})
    by_name: dict[str, dict[int, float]] = {}
    errors: dict[str, list[float]] = {}
    for training in trainings:
        by_name.setdefault(training["added"], {})[training["seed"]] = training["miou"]
        if "error" in training:
            errors.setdefault(training["added"], []).append(training["error"])
    drawn = {seed: mean(by_name[name][seed] for name in RANDOM) for seed in seeds}
    rows = []
    for name, values in by_name.items():
        gains = [values[seed] - drawn[seed] for seed in seeds]
        rows.append(
            {
                "added": name,
                "mIoU": f"{mean(values.values()):.3f}",
                "more than random": f"{mean(gains):+.3f}",
                "standard error": f"{stdev(gains) / len(seeds) ** 0.5:.3f}"
                if len(seeds) > 1
                else None,
                "seeds that gain": sum(gain > 0 for gain in gains),
                "error of the chosen": round(mean(errors[name]), 3) if name in errors else None,
            }
        )
    return rows


if __name__ == "__main__":
    main()
