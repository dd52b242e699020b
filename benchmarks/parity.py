"""Imported networks beside their originals: scripts/bench parity.

    scripts/bench parity [--folder build/originals] [--fixtures] [-o RESULT.json]

Runs the original projects (in environments of their own, made in the folder), imports what they
write with `segbatch model import`'s own function, and compares coarse logits, their largest
difference as a share of the largest logit, and the label maps. `--fixtures` also writes the small
files of tests/model/originals/ again, against which the tests compare without the originals.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import segmentation_models_pytorch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from benchmarks import result  # noqa: E402
from benchmarks.originals.fill import fill, picture  # noqa: E402
from benchmarks.originals.mmseg_deeplab import NETWORKS, SIZE  # noqa: E402
from segbatch.masks.classes import Classes  # noqa: E402
from segbatch.model.bundle import load_bundle  # noqa: E402
from segbatch.model.checkpoints import Known, import_model  # noqa: E402
from segbatch.model.networks.smp import CLASSES as SMP_CLASSES  # noqa: E402
from segbatch.model.predict import load_model  # noqa: E402

ORIGINALS = ROOT / "benchmarks" / "originals"
FIXTURES = ROOT / "tests" / "model" / "originals"
MMSEG = ("mmsegmentation==1.2.2", "mmengine==0.10.7", "mmcv-lite==2.1.0", "addict", "yapf",
         "termcolor", "prettytable", "ftfy", "wcwidth", "scipy", "regex")  # fmt: skip
KERAS = ("tensorflow==2.21.0", "tf2onnx==1.17.0", "onnx")
KERAS_GRAPHS = {"saved_model": (-1.0, 1.0), "softmax.onnx": (-1.0, 1.0), "frozen.pb": None,
                "float.tflite": None}  # fmt: skip
NAMED = Known(classes=Classes(["background", "wall", "window", "door", "roof"]))
LIMIT = 1e-4

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "originals")
    parser.add_argument("--fixtures", action="store_true", help="write those of the tests again")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        *of_mmsegmentation(folder),
        *of_transformers(folder),
        *of_smp(folder),
        *of_keras(folder),
    ]
    print(result.markdown(rows, left=2))
    if arguments.fixtures:
        write_fixtures(folder)
    print(result.save("parity", {**result.machine(), "rows": rows}, arguments.output))
    wrong = [row for row in rows if row["largest difference"] > LIMIT or row["equal pixels"] < 1]
    if wrong:
        names = ", ".join(f"{row['original']} {row['network']}" for row in wrong)
        raise SystemExit(f"not as the original: {names}")


def of_mmsegmentation(folder: Path) -> Iterator[Row]:
    packages, made = folder / "mmsegmentation", folder / "mmseg"
    if not packages.exists():
        uv("pip", "install", "--no-deps", "--target", str(packages), *MMSEG)
    made.mkdir(exist_ok=True)
    run(sys.executable, ORIGINALS / "mmseg_deeplab.py", made, packages)
    for name in NETWORKS:
        import_model(str(made / f"{name}.pth"), str(folder / "bundle"), Known())
        network, _ = load_bundle(str(folder / "bundle"))
        expected = safetensors.torch.load_file(made / f"{name}.safetensors")["coarse"]
        yield row("MMSegmentation 1.2.2", name, network, expected, picture(*SIZE))


def of_transformers(folder: Path) -> Iterator[Row]:
    version = f"transformers {transformers.__version__}"
    for name, config in {
        "segformer b0": transformers.SegformerConfig(num_labels=5),
        "segformer b2": transformers.SegformerConfig(
            num_labels=5,
            hidden_sizes=[64, 128, 320, 512],
            depths=[3, 4, 6, 3],
            decoder_hidden_size=768,
        ),
    }.items():
        original = transformers.SegformerForSemanticSegmentation(config).eval()
        yield of_library(folder, version, name, original, (128, 192))
    for stride in (8, 16, 32):
        mobile = transformers.MobileNetV2Config(num_labels=5, output_stride=stride)
        original = transformers.MobileNetV2ForSemanticSegmentation(mobile).eval()
        yield of_library(folder, version, f"mobilenet_v2, stride {stride}", original, SIZE)


def of_library(folder: Path, library: str, name: str, original: Any, size: tuple[int, int]) -> Row:
    fill(original)
    shutil.rmtree(folder / "saved", ignore_errors=True)
    original.save_pretrained(folder / "saved")
    import_model(str(folder / "saved"), str(folder / "bundle"), NAMED)
    network, _ = load_bundle(str(folder / "bundle"))
    with torch.inference_mode():
        given = original(picture(*size))
    return row(library, name, network, given.logits, picture(*size))


def of_smp(folder: Path) -> Iterator[Row]:
    for arch, make in SMP_CLASSES.items():
        original = make("resnet18", encoder_weights=None, classes=5).eval()
        fill(original)
        original.save_pretrained(folder / "saved")
        import_model(str(folder / "saved"), str(folder / "bundle"), NAMED)
        network, _ = load_bundle(str(folder / "bundle"))
        with torch.inference_mode():
            expected, found = original(picture(128, 192)), network(picture(128, 192))
        name = f"segmentation_models_pytorch {segmentation_models_pytorch.__version__}"
        yield compared(name, f"{arch} resnet18", found, expected)


def of_keras(folder: Path) -> Iterator[Row]:
    environment, made = folder / "keras", folder / "graphs"
    if not environment.exists():
        uv("venv", "--python", sys.executable, str(environment))
        uv("pip", "install", "--python", str(environment), *KERAS)
    made.mkdir(exist_ok=True)
    run(environment / "bin" / "python", ORIGINALS / "keras_deeplab.py", made)
    arrays = np.load(made / "expected.npz")
    for name, limits in KERAS_GRAPHS.items():
        import_model(
            str(made / name),
            str(folder / "bundle"),
            Known(classes=NAMED.classes, input_range=limits),
        )
        model = load_model(str(folder / "bundle"), "cpu", precision="fp32")
        key = {"softmax.onnx": "softmax0", "frozen.pb": "labels1"}.get(name, "logits0")
        pixels = torch.from_numpy(arrays[f"pixels{key[-1]}"])
        found = model.engine(model._normalized(pixels))
        if key.startswith("labels"):
            expected = torch.from_numpy(arrays[key])[:, None]
            equal = float((found == expected).float().mean())
            yield {
                "original": "TensorFlow 2.21", "network": name,
                "largest difference": 0.0 if equal == 1 else 1.0, "equal pixels": equal,
            }  # fmt: skip
            continue
        expected = torch.from_numpy(arrays[key]).permute(0, 3, 1, 2)
        if key.startswith("softmax"):
            found = found.exp()
        yield compared("TensorFlow 2.21", name, found, expected)


def row(original: str, name: str, network: Any, expected: Any, image: Any) -> Row:
    with torch.inference_mode():
        return compared(original, name, network.coarse(image), expected)


def compared(original: str, name: str, found: Any, expected: Any) -> Row:
    return {
        "original": original,
        "network": name,
        "largest difference": float((found - expected).abs().max() / expected.abs().max()),
        "equal pixels": float((found.argmax(1) == expected.argmax(1)).float().mean()),
    }


def write_fixtures(folder: Path) -> None:
    """Copy what the tests compare with: logits of MMSegmentation, and small graphs of Keras."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        shutil.copy(folder / "mmseg" / f"{name}.safetensors", FIXTURES)
    for name in ("softmax.onnx", "frozen.pb", "float.tflite", "expected.npz"):
        shutil.copy(folder / "graphs" / name, FIXTURES)


def uv(*arguments: str) -> None:
    run(Path(sys.executable).with_name("uv"), *arguments)


def run(*command: Any) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main()
