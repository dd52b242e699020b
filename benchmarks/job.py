"""The whole segment job against the limit and against what people would otherwise run.

    scripts/bench job [--photographs FOLDER] [--number 640] [--backbone mobilenet_v2 | resnet50]
        [--local] [--contenders segbatch_job,in_memory,…] [--rounds 1] [-o RESULT.json]

Everybody gets the same images (generated JPEGs, or those of a folder) from an S3 server on these
cores (moto), or from local disk with `--local`, the same network with the same weights, batches
and threads, and writes to local disk. The contenders are in benchmarks/peers, each in one file:

- the limit: `predict_batch` alone, on decoded images in memory
- segbatch: the whole job, statistics and confidence included, which no peer works out
- a PyTorch script: Dataset over boto3, DataLoader, PNG files
- an OpenVINO script (on CPUs): the same files through an AsyncInferQueue
- Ray Data as its documentation has it: read_images, an actor class, Parquet of tensors
- Daft with a class UDF, which uv installs for it alone

The S3 server's own CPU time is measured in the steady state and taken off by arithmetic: what a
contender did on the cores that were left, it would have done on all of them at that rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import photographs, result  # noqa: E402
from benchmarks.chart import draw  # noqa: E402
from benchmarks.contest import CONTENDERS, Contest, collection  # noqa: E402
from benchmarks.networks import random_bundle  # noqa: E402
from benchmarks.peers.task import Task  # noqa: E402
from segbatch.config.job import Resources  # noqa: E402
from segbatch.jobs.runtime.workers import MIN_LOGICAL_CPUS, cpu_workers  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.model.device import resolve_device, resolve_precision  # noqa: E402

MANY = 512  # images: fewer would make too few files to tell a steady state of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", help="a folder of images; by default they are generated")
    parser.add_argument("--number", type=int, default=640, help="images, at most")
    parser.add_argument("--side", type=int, default=512, help="of generated ones, in pixels")
    parser.add_argument("--arch", default="deeplabv3plus")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--model", help="a bundle, instead of a network with random weights")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="auto", help="of everybody")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--local", action="store_true", help="read from local disk, not from S3")
    parser.add_argument("--contenders", help="names, with commas; by default all that can run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    precision = resolve_precision(arguments.precision, device)
    able = able_to_run(device.type, precision)
    names = arguments.contenders.split(",") if arguments.contenders else able
    if unable := [name for name in names if name not in able]:
        parser.error(
            f"--contenders: on {device.type} in {precision} there is no {', '.join(unable)}:"
            f" take from {', '.join(able)}"
        )
    facts = result.machine()
    with (
        tempfile.TemporaryDirectory(prefix="bench-job-") as folder,
        collection(
            arguments.photographs, arguments.side, arguments.number, local=arguments.local
        ) as (prefix, number, server),
    ):
        model = arguments.model
        if model is None:
            pictures = [Image.fromarray(photographs.photograph(256, seed)) for seed in range(4)]
            model = random_bundle(folder, arguments.arch, arguments.backbone, pictures)
        contest = Contest(
            task(prefix, number, model, device=device, precision=precision, arguments=arguments),
            server,
        )
        contest.hold(names, arguments.rounds)
    print(result.markdown(contest.table()))
    network = arguments.model or f"{arguments.arch} {arguments.backbone}"
    source = arguments.photographs or f"generated, {arguments.side}×{arguments.side} pixels"
    figures = facts | {
        "network": network,
        "images": f"{number} images, {source}",
        "from": "local disk" if arguments.local else "S3 (moto on the same cores)",
        **contest.to_json(),
    }
    name = f"job-{arguments.backbone}" if arguments.model is None else "job"
    path = result.save(name, figures, arguments.output)
    draw(figures, path.with_suffix(".png"))
    print(f"\n{path}\n{path.with_suffix('.png')}")


def able_to_run(device: str, precision: str) -> list[str]:
    """The contenders; the OpenVINO script is one on CPUs alone, in the precisions that it has."""
    has_openvino = device == "cpu" and precision in ("fp32", "bf16")
    return [name for name in CONTENDERS if has_openvino or name != "openvino_script"]


def task(
    prefix: str,
    number: int,
    model: str,
    *,
    device: torch.device,
    precision: str,
    arguments: argparse.Namespace,
) -> Task:
    """As many workers and threads for everybody as a local run of ours takes."""
    workers, threads = torch.cuda.device_count(), 1
    if device.type == "cpu":
        logical = float(max(MIN_LOGICAL_CPUS, num_cores()))
        shared_out = cpu_workers(Resources(), [logical], num_cores())
        workers, threads = shared_out.expected, shared_out.num_cpus
    return Task(
        images=prefix,
        num_images=number,
        output="",
        progress="",
        model=model,
        device=device.type,
        precision=precision,
        workers=workers,
        threads=threads,
        batch_size=arguments.batch_size,
        rows_per_file=0 if number >= MANY else max(4, number // 10),
    )


if __name__ == "__main__":
    main()
