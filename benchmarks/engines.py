"""Engines and precisions side by side on this CPU: scripts/bench engines.

    scripts/bench engines [--model BUNDLE] [--dataset LABELS] [--side 512] [--images 16]
        [--rounds 3] [-o RESULT.json]

Each engine and precision takes the same images through `Model.predict_batch`, in turns, so that
what else happens on the machine happens to all of them; the figures are medians over the rounds.
Without `--model`, the networks have random weights, and int8 is calibrated with the images
themselves: only the speed means something. With `--model` and `--dataset` (a labelled dataset),
also what each costs: mIoU on its split `val`, and the share of pixels that are as in torch fp32;
int8 is calibrated with images of `train`.

bf16 is measured where the CPU computes it in hardware.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import photographs, result  # noqa: E402
from benchmarks.networks import random_network  # noqa: E402
from segbatch.config.job import Predict  # noqa: E402
from segbatch.demo.facades.facades import CLASSES  # noqa: E402
from segbatch.images.decode import Decoded, decode_image  # noqa: E402
from segbatch.labels.dataset import Dataset, open_dataset  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.masks import decode_mask  # noqa: E402
from segbatch.model.bundle import Packed, load_bundle  # noqa: E402
from segbatch.model.config import ModelConfig  # noqa: E402
from segbatch.model.device import computes_bf16  # noqa: E402
from segbatch.model.graph import kept_graph  # noqa: E402
from segbatch.model.networks import Network  # noqa: E402
from segbatch.model.patches import Pixels  # noqa: E402
from segbatch.model.predict import Model, unpack_model  # noqa: E402
from segbatch.model.quantize import NUM_IMAGES, quantized  # noqa: E402
from segbatch.training.confusion import ConfusionMatrix  # noqa: E402

NETWORKS = ["mobilenet_v2", "resnet50"]  # of DeepLabV3+
MAX_PIXELS = 200_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a bundle, instead of networks with random weights")
    parser.add_argument("--dataset", help="a labelled dataset, to measure mIoU on its split val")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--images", type=int, default=16, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(num_cores())
    facts = result.machine()
    images = [photographs.photograph(arguments.side, seed) for seed in range(8)]
    images = list(itertools.islice(itertools.cycle(images), arguments.images))
    dataset = open_dataset(arguments.dataset) if arguments.dataset else None
    rows = []
    for network, config in networks(arguments.model):
        models = models_of(network, config, images, dataset)
        found = rates(models, images, arguments.rounds)
        scores = {} if dataset is None else scores_of(models, dataset)
        for name, model_rates in found.items():
            rate, usual = statistics.median(model_rates), statistics.median(found["torch fp32"])
            row = {
                "network": f"{config.arch} {config.backbone}",
                "engine": name,
                "images/s": rate,
                "÷ torch fp32": rate / usual,
                **scores.get(name, {}),
            }
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print(result.markdown(rows, left=2))
    figures = facts | {
        "threads": num_cores(),
        "side": arguments.side,
        "rounds": arguments.rounds,
        "model": arguments.model,
        "dataset": arguments.dataset,
        "rows": rows,
    }
    print(f"\n{result.save('engines', figures, arguments.output)}")


def networks(model: str | None) -> Iterator[tuple[Network, ModelConfig]]:
    if model is not None:
        yield load_bundle(model)
        return
    for backbone in NETWORKS:
        network = random_network("deeplabv3plus", backbone)
        stride = network.output_stride
        yield network, ModelConfig("deeplabv3plus", backbone, stride, CLASSES)


def models_of(
    network: Network, config: ModelConfig, images: Sequence[Pixels], dataset: Dataset | None
) -> dict[str, Model]:
    """The model on every engine and in every precision that this CPU computes."""
    graph = kept_graph(network, config.architecture)
    packed = Packed(config, graph=graph)
    fp32 = unpack_model(packed, "cpu", options=Predict(precision="fp32"))
    calibrating = images
    if dataset is not None:
        read = (image for image, _ in labelled(dataset, "train", fp32.long_side))
        calibrating = list(itertools.islice(read, NUM_IMAGES))
    int8 = Packed(config, graph=quantized(fp32, calibrating))
    models = {
        "torch fp32": Model(network, config, "cpu", Predict(precision="fp32")),
        "openvino fp32": fp32,
        "openvino int8": unpack_model(int8, "cpu"),
    }
    if computes_bf16():
        models["torch bf16"] = Model(network, config, "cpu", Predict(precision="bf16"))
        models["openvino bf16"] = unpack_model(packed, "cpu", options=Predict(precision="bf16"))
    return models


def rates(
    models: dict[str, Model], images: Sequence[Pixels], rounds: int
) -> dict[str, list[float]]:
    """Images a second of each model in each round; a first one is not counted."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.predict_batch(images, [None] * len(images))
            found[name].append(len(images) / (time.perf_counter() - start))
    return {name: counted[1:] for name, counted in found.items()}


def scores_of(models: dict[str, Model], dataset: Dataset) -> dict[str, dict[str, float]]:
    """mIoU on ``val``, and the share of pixels that are as in the first model."""
    confusions = {name: ConfusionMatrix(len(dataset.classes)) for name in models}
    equal, pixels = dict.fromkeys(models, 0), 0
    for image, truth in labelled(dataset, "val", next(iter(models.values())).long_side):
        usual: Pixels | None = None
        for name, model in models.items():
            [prediction] = model.predict_batch([image], [truth.shape])
            usual = prediction.mask if usual is None else usual
            equal[name] += int((prediction.mask == usual).sum())
            confusions[name].update(truth, prediction.mask)
        pixels += truth.size
    return {
        name: {"mIoU": confusion.miou(), "pixels as in the first": equal[name] / pixels}
        for name, confusion in confusions.items()
    }


def labelled(dataset: Dataset, split: str, long_side: int | None) -> Iterator[tuple[Pixels, Any]]:
    """The images of a split as a model takes them, with their label maps."""
    for table in dataset.tables(split, ["image", "mask"]):
        for row in table.to_pylist():
            image = decode_image(row["image"]["bytes"], max_pixels=MAX_PIXELS, long_side=long_side)
            assert isinstance(image, Decoded)
            yield image.pixels, np.asarray(decode_mask(row["mask"]["bytes"]))


if __name__ == "__main__":
    main()
