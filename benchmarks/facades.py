"""Train, evaluate and ship the model of facades that comes with segbatch: scripts/bench facades.

    scripts/bench facades DATA --weights tf_efficientnet_lite0-imagenet.pth [--only ship]

DATA is `swiss-facades`: `images/`, `train.coco.json` and `val.coco.json`. Its labels are imported
to build/facades/, the job benchmarks/recipes/facades.yaml runs (again: it resumes), the best epoch
is written to segbatch/model/facades/ in half precision, with its licence and attribution. On `val`,
which no training saw, the shipped bundle itself is measured: IoU, precision and mean confidence of
each class, and the pictures of docs/facade-model.md: the worst photographs by mIoU, and the best
among those with five classes or more.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import result  # noqa: E402
from segbatch.config.job import FinetuneJob, load_job  # noqa: E402
from segbatch.jobs.finetune import finetune  # noqa: E402
from segbatch.labels.dataset import open_dataset  # noqa: E402
from segbatch.labels.importing import import_labels  # noqa: E402
from segbatch.labels.samples import Samples, copy_split  # noqa: E402
from segbatch.masks import with_legend  # noqa: E402
from segbatch.model.bundle import CARD, card, load_bundle, save_bundle  # noqa: E402
from segbatch.model.predict import Prediction, load_model  # noqa: E402
from segbatch.model.zoo import shipped_bundle  # noqa: E402
from segbatch.training.confusion import ConfusionMatrix  # noqa: E402
from segbatch.training.examples import decode_sample  # noqa: E402

RECIPE = ROOT / "benchmarks" / "recipes" / "facades.yaml"
BUILD = ROOT / "build" / "facades"
PICTURES = ROOT / "docs" / "pictures" / "facades"
MERGED = {
    "non-building-infrastructure": "infrastructure",
    "traffic-infrastructure": "infrastructure",
}
LICENCE = "CC BY 4.0: use it for anything, and name the source"
ATTRIBUTION = (
    "trained on 417 photographs of Swiss apartment blocks (Roboflow export in"
    " a-hwang/building-facade-segmentation, CC BY 4.0, scaled to 512 pixels), from ImageNet weights"
    " of EfficientNet-Lite0 (Apache-2.0)"
)
NUM_PICTURES = 5
CLASSES_OF_GOOD = 5  # labelled in a photograph that is shown as a good one: few classes are easy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder of swiss-facades")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of tf_efficientnet_lite0")
    parser.add_argument(
        "--only", choices=["ship"], help="the training is finished: ship and measure"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    labels = BUILD / "labels"
    if not (labels / "classes.json").exists():
        import_labels(
            str(arguments.data),
            str(labels),
            format="coco",
            images=str(arguments.data / "images"),
            split="folder",
            map=MERGED,
        )
    if arguments.only != "ship":
        if arguments.weights is None:
            parser.error("--weights: the training starts from them")
        shutil.copy(arguments.weights, BUILD / "imagenet.pth")
        finetune(str(RECIPE))
    ship(BUILD / "model")
    figures = measure(labels)
    print(result.markdown(figures["classes"]))
    facts = {**result.machine(), "recipe": str(RECIPE.relative_to(ROOT)), **figures}
    print(result.save("facades", facts, arguments.output))


def ship(trained: Path) -> None:
    """Write the trained model into the package, in half precision."""
    network, config = load_bundle(str(trained))
    job = load_job(str(RECIPE))
    assert isinstance(job, FinetuneJob)
    provenance = {
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "recipe": job.train.model_dump(mode="json"),
        "software": config.provenance["software"],
    }
    folder = shipped_bundle("zoo:facades")
    assert folder is not None
    config = replace(config, provenance=provenance)
    save_bundle(folder, network.half(), config)
    # By the name that users have for it, instead of its folder here.
    Path(folder, CARD).write_text(card("facades", "zoo:facades", config), encoding="utf-8")


def measure(labels: Path) -> dict[str, Any]:
    """Figures of the shipped model on ``val``, and the pictures of its best and worst images."""
    model = load_model("zoo:facades", "cpu", precision="fp32")
    classes = model.classes
    confusion = ConfusionMatrix(len(classes))
    confidence, predicted = np.zeros(len(classes)), np.zeros(len(classes))
    seen: list[tuple[float, int, Prediction]] = []
    many: set[int] = set()  # photographs with many classes
    dataset = open_dataset(str(labels))
    copy_split(dataset, "val", BUILD / "val")
    for number, sample in enumerate(Samples(dataset, "val", BUILD / "val")):
        image, truth = decode_sample(sample, model.long_side)
        prediction = model.predict_batch([image], [truth.shape])[0]
        confusion.update(truth, prediction.mask)
        present = prediction.pixels > 0
        confidence[present] += (prediction.confidences * prediction.pixels)[present]
        predicted += prediction.pixels
        own = ConfusionMatrix(len(classes))
        own.update(truth, prediction.mask)
        seen.append((own.miou(), number, prediction))
        if (own.truth > 0).sum() >= CLASSES_OF_GOOD:
            many.add(number)
    ranked = sorted(seen, key=lambda entry: entry[:2])
    worst = [prediction for _, _, prediction in ranked[:NUM_PICTURES]]
    best = [prediction for _, number, prediction in ranked[::-1] if number in many]
    draw({"worst": worst, "best": best[:NUM_PICTURES]})
    precision = confusion.hits / np.maximum(confusion.prediction, 1)
    iou = confusion.iou()
    rows = [
        {
            "class": c.name,
            "IoU": float(iou[c.id]),
            "precision": float(precision[c.id]),
            "mean confidence": float(confidence[c.id] / max(predicted[c.id], 1)),
        }
        for c in classes
    ]
    scores = {"miou": confusion.miou(), "pixel_accuracy": confusion.pixel_accuracy()}
    return {**scores, "images": len(seen), "classes": rows}


def draw(chosen: dict[str, list[Prediction]]) -> None:
    """Photograph and overlay of each prediction side by side, in files by name and number."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, predictions in chosen.items():
        for position, prediction in enumerate(predictions):
            coverage = prediction.pixels / prediction.mask.size
            drawn = with_legend(prediction.overlay(), prediction.classes, coverage)
            photograph = Image.fromarray(prediction.image)
            both = Image.new("RGB", (photograph.width + drawn.width, drawn.height), "white")
            both.paste(photograph, (0, 0))
            both.paste(drawn, (photograph.width, 0))
            both.thumbnail((800, 800))
            both.save(PICTURES / f"{name}-{position + 1}.jpg", quality=78)


if __name__ == "__main__":
    main()
