"""Whether a plan's hours come true: scripts/bench plan [--images DIR] [-o RESULT.json].

For each of three jobs, on this machine and one after the other: `segbatch plan JOB --format json`
with its default sample in a process of its own, then `segbatch run JOB` as a user starts it. Held
against each other are the seconds of the pipeline: of the plan all but those of the command (a
constant, see segbatch/cluster/estimate.py), of the run `wall_s` of its start in run.json, which
begins when Ray is there and includes the start of its workers. It needs a machine without other
work: Ray's workers are nice (15), and others would take their cores.

Images come from this machine's disk: a storage server on the same cores would take CPU that no
storage elsewhere takes. With --images their content is that of photographs, else rendered facades.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from segbatch.cluster.estimate import COMMAND_S  # noqa: E402
from segbatch.demo.facades.facades import render_facade  # noqa: E402
from segbatch.machine import cpu_model, num_cores  # noqa: E402
from segbatch.masks.classes import Classes  # noqa: E402
from segbatch.model import networks  # noqa: E402
from segbatch.model.bundle import save_bundle  # noqa: E402
from segbatch.model.config import ModelConfig  # noqa: E402

GOAL = 0.25
CLASSES = Classes(["background", "wall", "window", "door", "roof"])
JOBS: dict[str, dict[str, Any]] = {
    "small JPEGs, small network": {
        "size": (160, 120), "distinct": 64, "images": 6000,
        "backbone": "mobilenet_v2", "long_side": 128,
    },
    "512×512, DeepLabV3+ ResNet-50": {
        "size": (512, 512), "distinct": 32, "images": 160,
        "backbone": "resnet50", "long_side": None,
    },
    "12 megapixels, small network": {
        "size": (4000, 3000), "distinct": 12, "images": 700,
        "backbone": "mobilenet_v2", "long_side": 256, "masks": "model",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--only", type=int, help="one of the jobs, from 0")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many images")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    wanted = list(JOBS.items())
    if arguments.only is not None:
        wanted = wanted[arguments.only :][:1]
    rows = {}
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        for number, (name, what) in enumerate(wanted):
            num_images = round(what["images"] * arguments.scale)
            job = prepare(Path(folder) / str(number), what, num_images, arguments.images)
            rows[name] = compare(job)
            print(json.dumps({name: rows[name]}), file=sys.stderr, flush=True)
    figures = {
        "date": date.today().isoformat(),
        "machine": f"{cpu_model()}, {num_cores()} cores",
        "jobs": rows,
    }
    show(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def prepare(folder: Path, what: dict[str, Any], num_images: int, photographs: Path | None) -> Path:
    """Images, a manifest that names each of them many times, a model, and the job file."""
    folder.mkdir()
    uris = []
    for number, picture in enumerate(islice(pictures(photographs), what["distinct"])):
        uris.append(str(folder / f"{number:03d}.jpg"))
        sized = picture.convert("RGB").resize(what["size"], Image.Resampling.BICUBIC)
        # An enlarged picture is smooth, and decodes faster than what a camera gives.
        grain = np.random.default_rng(number).normal(0, 3, (*sized.size[::-1], 1))
        grained = np.clip(np.asarray(sized) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(grained).save(uris[-1], quality=90)
    table = pa.table({"uri": [uris[n % len(uris)] for n in range(num_images)]})
    pq.write_table(table, folder / "images.parquet")
    network = networks.build("deeplabv3plus", what["backbone"], len(CLASSES))
    config = ModelConfig(
        "deeplabv3plus",
        what["backbone"],
        network.output_stride,
        CLASSES,
        long_side=what["long_side"],
    )
    save_bundle(str(folder / "model"), network, config)
    job = {
        "kind": "segment",
        "images": str(folder / "images.parquet"),
        "model": str(folder / "model"),
        "output": str(folder / "run"),
        "masks": what.get("masks", "original"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def pictures(photographs: Path | None) -> Iterator[Image.Image]:
    if photographs is None:
        yield from (Image.fromarray(render_facade(seed, 512).image) for seed in range(1000))
    else:
        for file in sorted(photographs.glob("*.jpg")):
            yield Image.open(io.BytesIO(file.read_bytes()))


def compare(job: Path) -> dict[str, Any]:
    """The plan of a job, and then the job."""
    start = time.perf_counter()
    planned = json.loads(segbatch("plan", str(job), "--format", "json"))
    plan_wall_s = time.perf_counter() - start
    [measured] = planned["measured"]
    start = time.perf_counter()
    segbatch("run", str(job))
    run_wall_s = time.perf_counter() - start
    [begun] = json.loads((job.parent / "run/run.json").read_text())["starts"]
    expected_s = measured["offer"]["hours"] * 3600 - COMMAND_S
    return {
        "images": planned["images"],
        "read_mb_an_image": round(measured["sample"]["read_bytes"] / 1e6, 3),
        "sampled": measured["sample"]["images"],
        "limit": measured["pace"]["limit"],
        "stages_ms": {
            stage: {key: round(1000 * value, 2) for key, value in cost.items()}
            for stage, cost in measured["sample"]["stages"].items()
        },
        "bounds": {key: round(value, 2) for key, value in measured["pace"]["bounds"].items()},
        "load_s": round(measured["sample"]["load_s"], 2),
        "planned_s": round(expected_s, 1),
        "pipeline_s": begun["wall_s"],
        "planned_to_real": round(expected_s / begun["wall_s"], 3),
        "run_stage_s": begun["stage_s"],
        "blocks": [begun["block_rows"], begun["file_rows"]],
        "planned_wall_s": round(measured["offer"]["hours"] * 3600, 1),
        "run_wall_s": round(run_wall_s, 1),
        "plan_took_s": round(plan_wall_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def segbatch(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "segbatch", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT / "benchmarks",
    ).stdout


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"plan and run, {figures['date']}, {figures['machine']}")
    for column in ("job", "images", "limit", "planned, s", "real, s", "planned ÷ real"):
        table.add_column(column, justify="left" if column in ("job", "limit") else "right")
    for name, row in figures["jobs"].items():
        off = abs(row["planned_to_real"] - 1)
        ratio = f"{row['planned_to_real']:.2f}" + ("" if off <= GOAL else " !")
        table.add_row(
            name,
            f"{row['images']:,}",
            row["limit"],
            f"{row['planned_s']:.0f}",
            f"{row['pipeline_s']:.0f}",
            ratio,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
