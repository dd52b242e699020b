"""What a mask costs: our codec against others, and the statistics of a label map.

    scripts/bench masks [--data FOLDER] [--images 40] [--rounds 7] [-o RESULT.json]

FOLDER holds a COCO file (``val.coco.json``, or another ``*.coco.json``) whose polygons are drawn
at the size of their photos; without it, smooth label maps are generated. Figures are the CPU time
of one thread, the minimum over rounds in which all candidates take turns, so that a busy machine
slows all of them or none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from segbatch.masks import decode_mask, encode_mask  # noqa: E402
from segbatch.masks.classes import PRESETS  # noqa: E402
from segbatch.results.stats import (  # noqa: E402
    count_components,
    find_regions,
    pixels_per_class,
)

LabelMap = npt.NDArray[np.uint8]
PALETTE = PRESETS["voc"].palette
NUM_CLASSES = 16
ZSTD = pa.Codec("zstd", 3)
PACKAGES = ["zlib-ng", "pillow", "opencv-python-headless", "pyarrow", "numpy",
            "connected-components-3d"]  # fmt: skip


def pillow_png(label_map: LabelMap, bits: int) -> bytes:
    image = Image.fromarray(label_map)
    image.putpalette(PALETTE[: 1 << bits].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6, bits=bits)
    return buffer.getvalue()


def pillow_decode(data: bytes) -> LabelMap:
    return np.array(Image.open(io.BytesIO(data)))


def opencv_decode(data: bytes) -> LabelMap:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)


# Name: how a label map is encoded, and how its bytes are decoded again.
CODECS: dict[str, tuple[Callable[[LabelMap], bytes], Callable[[bytes, LabelMap], LabelMap]]] = {
    "segbatch.masks": (
        lambda label_map: encode_mask(label_map, PALETTE),
        lambda data, _: decode_mask(data),
    ),
    "Pillow PNG, 8 bits, level 6": (
        lambda label_map: pillow_png(label_map, 8),
        lambda data, _: pillow_decode(data),
    ),
    "Pillow PNG, 4 bits, level 6": (
        lambda label_map: pillow_png(label_map, 4),
        lambda data, _: pillow_decode(data),
    ),
    "OpenCV PNG (grey, no palette)": (
        lambda label_map: cv2.imencode(".png", label_map)[1].tobytes(),
        lambda data, _: opencv_decode(data),
    ),
    "raw, zstd 3": (
        lambda label_map: ZSTD.compress(label_map, asbytes=True),
        lambda data, like: np.frombuffer(
            ZSTD.decompress(data, like.size, asbytes=True), np.uint8
        ).reshape(like.shape),
    ),
}

STATISTICS: dict[str, Callable[[LabelMap], object]] = {
    "pixels (bincount)": lambda label_map: pixels_per_class(label_map, NUM_CLASSES),
    "components (cc3d)": lambda label_map: count_components(label_map, NUM_CLASSES),
    "components and boxes (cc3d)": find_regions,
}


def coco_label_maps(folder: Path, num_images: int) -> list[LabelMap]:
    """Label maps of the first images of a COCO file; smaller shapes lie on top of larger ones."""
    files = sorted(folder.glob("*.coco.json"), key=lambda path: path.name != "val.coco.json")
    if not files:
        raise SystemExit(f"{folder}: no *.coco.json in it")
    coco = json.loads(files[0].read_text())
    # 0 is what no shape covers.
    ids = {category["id"]: i for i, category in enumerate(coco["categories"], start=1)}
    if max(ids.values()) >= NUM_CLASSES:
        raise SystemExit(f"{files[0]}: more than {NUM_CLASSES - 1} categories")
    shapes = defaultdict(list)
    for annotation in coco["annotations"]:
        shapes[annotation["image_id"]].append(annotation)
    label_maps = []
    for entry in coco["images"][:num_images]:
        canvas = Image.new("L", (entry["width"], entry["height"]))
        draw = ImageDraw.Draw(canvas)
        for annotation in sorted(shapes[entry["id"]], key=lambda shape: -shape["area"]):
            for polygon in annotation["segmentation"]:
                draw.polygon(polygon, fill=ids[annotation["category_id"]])
        label_maps.append(np.array(canvas))
    return label_maps


def smooth_label_maps(num_images: int) -> list[LabelMap]:
    """Label maps as a network gives them: the largest of a few smooth random fields, 1024×768."""
    rng = np.random.default_rng(0)
    label_maps = []
    for _ in range(num_images):
        fields = [
            cv2.resize(
                rng.standard_normal((12, 16), np.float32),
                (1024, 768),
                interpolation=cv2.INTER_CUBIC,
            )
            for _ in range(6)
        ]
        label_maps.append(np.argmax(fields, axis=0).astype(np.uint8))
    return label_maps


def for_each(function: Callable[..., object], *arguments: Sequence[Any]) -> None:
    for each in zip(*arguments, strict=True):
        function(*each)


def fastest(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of CPU that each task takes at best, over rounds in which all take turns."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            best[name] = min(best[name], time.process_time() - start)
    return best


def measure(label_maps: Sequence[LabelMap], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds per megapixel of every codec and statistic, bytes per image of every codec."""
    encoded = {name: [encode(m) for m in label_maps] for name, (encode, _) in CODECS.items()}
    for name, (_, decode) in CODECS.items():
        for data, label_map in zip(encoded[name], label_maps, strict=True):
            if not np.array_equal(decode(data, label_map), label_map):
                raise SystemExit(f"{name} does not give its label maps back")

    tasks: dict[str, Callable[[], object]] = {}
    for name, (encode, decode) in CODECS.items():
        tasks[f"encode {name}"] = partial(for_each, encode, label_maps)
        tasks[f"decode {name}"] = partial(for_each, decode, encoded[name], label_maps)
    for name, count in STATISTICS.items():
        tasks[name] = partial(for_each, count, label_maps)

    seconds = fastest(tasks, rounds)
    megapixels = sum(m.size for m in label_maps) / 1e6
    per_megapixel = {name: round(1e3 * s / megapixels, 3) for name, s in seconds.items()}
    return {
        "codecs": {
            name: {
                "encode_ms_per_mp": per_megapixel[f"encode {name}"],
                "decode_ms_per_mp": per_megapixel[f"decode {name}"],
                "bytes_per_image": round(sum(map(len, encoded[name])) / len(label_maps)),
            }
            for name in CODECS
        },
        "statistics": {name: {"ms_per_mp": per_megapixel[name]} for name in STATISTICS},
    }


def print_tables(figures: dict[str, Any]) -> None:
    print(f"{'codec':32}{'encode ms/MP':>14}{'decode ms/MP':>14}{'bytes/image':>13}")
    for name, row in figures["codecs"].items():
        print(
            f"{name:32}{row['encode_ms_per_mp']:14.2f}{row['decode_ms_per_mp']:14.2f}"
            f"{row['bytes_per_image']:13,}"
        )
    print(f"\n{'statistic':32}{'ms/MP':>14}")
    for name, row in figures["statistics"].items():
        print(f"{name:32}{row['ms_per_mp']:14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with a COCO file")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    args = parser.parse_args()
    facts = result.machine()

    cv2.setNumThreads(1)
    label_maps = (
        coco_label_maps(args.data, args.images) if args.data else smooth_label_maps(args.images)
    )
    figures = {
        **facts,
        "label_maps": args.data.resolve().name if args.data else "generated",
        "num_images": len(label_maps),
        "megapixels_per_image": round(np.mean([m.size for m in label_maps]) / 1e6, 3),
        "rounds": args.rounds,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        **measure(label_maps, args.rounds),
    }
    print_tables(figures)
    print(f"\n{result.save('masks', figures, args.output)}")


if __name__ == "__main__":
    main()
