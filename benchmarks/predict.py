"""How fast networks predict, and where the time goes: scripts/bench predict.

    scripts/bench predict [--quick] [--device cpu] [--batches 1,2,…] [-o RESULT.json]

The engine is torch; `scripts/bench engines` compares it with the others.

For each network and size, batch by batch: `bare` is the network alone on tensors that lie ready on
the device; `predict` is `Model.predict_batch` from arrays to label maps, upsampling, statistics and
confidence included. At one batch size also the other precision, the other memory layout, and
compiled (on the CPU at the first size only). Weights are random. `of matrix rate` holds the
floating-point operations of the bare network against those of a large matrix product of the same
precision, device and threads.

The split (ms an image) takes the parts one by one, each waited for: images to the device and
results back; the network with normalisation; full-size logits, strip by strip; and what class ids,
counts and confidence cost beyond them. In `predict` some of it overlaps.

On a GPU also: `fused`, the kernel that does what `upsample` and `reduce` do together; both ways
again with masks of twice the side, as photographs that were downscaled have them; `predict` with
strips instead of the kernel; and `GPU busy`, the share of the time of many batches of `predict` in
which a kernel ran. Where the fused kernel cannot be had, that is said, and its columns are empty.

What takes long is run less often, and batches beyond `TOO_LONG_S` are left out, so that all of it
should take some 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from segbatch.jobs.runtime.sharing import PASSIVE_THREADS  # noqa: E402

os.environ |= PASSIVE_THREADS | os.environ  # as in a job; read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import photographs, result  # noqa: E402
from benchmarks.busy import busy_share  # noqa: E402
from benchmarks.networks import random_network  # noqa: E402
from segbatch.config.job import Predict  # noqa: E402
from segbatch.demo.facades.facades import CLASSES  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.model import reduction  # noqa: E402
from segbatch.model.config import ModelConfig  # noqa: E402
from segbatch.model.device import DTYPES, resolve_device  # noqa: E402
from segbatch.model.logits import Upsampled  # noqa: E402
from segbatch.model.networks import Network  # noqa: E402
from segbatch.model.patches import Size  # noqa: E402
from segbatch.model.predict import Model  # noqa: E402
from segbatch.model.reduction import fused_on, reduce  # noqa: E402
from segbatch.model.strips import STRIP_BYTES, reduce_in_strips, strips  # noqa: E402

NETWORKS = [
    ("deeplabv3", "resnet50"),
    ("deeplabv3", "resnet101"),
    ("deeplabv3", "mobilenet_v3_large"),
    ("deeplabv3plus", "resnet50"),
    ("deeplabv3plus", "mobilenet_v2"),
]
QUICK = [("deeplabv3", "mobilenet_v3_large"), ("deeplabv3plus", "mobilenet_v2")]
BATCHES = {"cpu": [1, 4, 16], "cuda": [1, 2, 4, 8, 16, 32, 64]}
VARIED_AT = {"cpu": 1, "cuda": 32}  # the batch at which precision, layout and compiling are tried
MATRIX = {"cpu": 2048, "cuda": 16384}
USUAL = {"cpu": "fp32", "cuda": "bf16"}
ENOUGH_S = 2.0  # time budget of the runs of one thing, after MIN_RUNS
AT_MOST_S = 5.0  # time budget of its first MIN_RUNS; it is always run once
MIN_RUNS = 3
MAX_RUNS = 100
TOO_LONG_S = 10.0  # batches predicted to take longer are skipped and reported
BUSY_BATCHES = 16  # in which the GPU is watched


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    arch: str
    backbone: str
    side: int
    batch: int
    precision: str
    channels_last: bool = True
    compiled: bool = False
    varied: bool = False  # from what is usual, in one of the three


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two small networks, few batches, nothing compiled"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sides", default="512,1024")
    parser.add_argument("--batches", help="by default 1 to 64 on a GPU, 1 to 16 on the CPU")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(num_cores())
    device = resolve_device(arguments.device)
    sides = [256] if arguments.quick else [int(side) for side in arguments.sides.split(",")]
    batches = [1, 4] if arguments.quick else BATCHES[device.type]
    if arguments.batches:
        batches = [int(batch) for batch in arguments.batches.split(",")]
    began = time.perf_counter()
    rows = []
    for (arch, backbone), side in itertools.product(QUICK if arguments.quick else NETWORKS, sides):
        varied = device.type == "cuda" or side == sides[0]
        seconds = 0.0  # of an image
        for case in cases(arch, backbone, side, batches, device):
            if (arguments.quick and case.compiled) or (case.varied and not varied):
                continue
            if case.batch * seconds > TOO_LONG_S:
                print(f"{arch} {backbone} {side}: larger batches take too long", file=sys.stderr)
                break
            rows.append(measured(case, device))
            print(rows[-1], file=sys.stderr, flush=True)
            rate = rows[-1]["bare, images/s"]
            if not case.varied and isinstance(rate, float):
                seconds = 1 / rate
    minutes = (time.perf_counter() - began) / 60
    rows = measured_columns(rows)
    rates = {
        precision: round(matrix_rate(device, precision) / 1e12, 3)
        for precision in sorted({row["precision"] for row in rows})
    }
    print(result.markdown(rows, left=5))
    print(f"\nmatrix rate, TFLOP/s: {rates}\n{minutes:.1f} minutes")
    figures = result.machine() | {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "matrix_tflops": rates,
        "minutes": round(minutes, 1),
        "rows": rows,
    }
    print(f"\n{result.save('predict', figures, arguments.output)}")


def cases(
    arch: str, backbone: str, side: int, batches: list[int], device: torch.device
) -> Iterator[Case]:
    """The lines of one network at one size, smaller batches first."""
    varied = min(batches, key=lambda batch: abs(batch - VARIED_AT[device.type]))
    for batch in batches:
        usual = Case(arch, backbone, side, batch, USUAL[device.type])
        yield usual
        if batch == varied:
            other = "fp32" if usual.precision == "bf16" else "bf16"
            yield replace(usual, precision=other, varied=True)
            yield replace(usual, channels_last=False, varied=True)
            yield replace(usual, compiled=True, varied=True)


def measured_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the columns that no row has: most of a GPU's on the CPU."""
    there = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in there} for row in rows]


def measured(case: Case, device: torch.device) -> dict[str, Any]:
    """The line of a case; what fails, such as a compiler that is not there, is said in it."""
    row = {
        "network": f"{case.arch} {case.backbone}",
        "side": str(case.side),
        "precision": case.precision,
        "layout": "channels last" if case.channels_last else "NCHW",
        "compiled": "yes" if case.compiled else "",
        "batch": case.batch,
    }
    try:
        with torch.inference_mode():
            return row | figures_of(case, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return row | dict.fromkeys(COLUMNS) | {"bare, images/s": "out of memory"}
    except torch._dynamo.exc.BackendCompilerFailed as error:
        print(error, file=sys.stderr)
        return row | dict.fromkeys(COLUMNS) | {"bare, images/s": "cannot be compiled"}


COLUMNS = (
    "bare, images/s",
    "of matrix rate",
    "predict, images/s",
    "of bare",
    "predict in strips, images/s",
    "GPU busy",
    "transfer, ms",
    "network, ms",
    "upsample, ms",
    "reduce, ms",
    "fused, ms",
    "2×: strips, ms",
    "2×: fused, ms",
)


def figures_of(case: Case, device: torch.device) -> dict[str, Any]:
    network = random_network(case.arch, case.backbone).to(device)
    images = [photographs.photograph(case.side, seed) for seed in range(min(case.batch, 8))]
    images = list(itertools.islice(itertools.cycle(images), case.batch))
    flop = flop_an_image(network, case.side)
    model = None
    if case.channels_last:  # as a model always has it
        options = Predict(precision=case.precision, batch_size=case.batch, compile=case.compiled)
        config = ModelConfig(case.arch, case.backbone, network.output_stride, CLASSES)
        model = Model(network, config, device, options)
    coarse = torch.compile(network.coarse) if case.compiled else network.coarse
    bare = bare_seconds(coarse, case, device)
    rate = case.batch / bare
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "bare, images/s": rate,
        "of matrix rate": rate * flop / matrix_rate(device, case.precision),
    }
    if model is not None:
        # On a GPU one batch is copied while another runs: what a job sees is many in a row.
        many = images * (4 if device.type == "cuda" else 1)

        def predict() -> None:
            model.predict_batch(many, [None] * len(many))

        predicted = len(many) / median_seconds(predict, device)
        row |= {"predict, images/s": predicted, "of bare": predicted / rate}
        if device.type == "cuda":
            row["GPU busy"] = busy_share(model, images * BUSY_BATCHES)
            with patch.object(reduction, "fused_on", lambda device: False):
                row["predict in strips, images/s"] = len(many) / median_seconds(predict, device)
        row |= split(network, coarse, images, case, device)
    return row


def bare_seconds(coarse: Callable[[Tensor], Tensor], case: Case, device: torch.device) -> float:
    """Of one batch of ready tensors through the network."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    ready = torch.rand(case.batch, 3, case.side, case.side, device=device)
    ready = ready.contiguous(memory_format=layout)

    def run() -> None:
        with autocast(case, device):
            coarse(ready)

    return median_seconds(run, device)


def split(
    network: Network,
    coarse: Callable[[Tensor], Tensor],
    images: list[Any],
    case: Case,
    device: torch.device,
) -> dict[str, float]:
    """Milliseconds an image of each part, one after the other and each waited for."""
    size = (case.side, case.side)
    pinned = device.type == "cuda"
    strip = STRIP_BYTES[device.type] // (4 * len(CLASSES))

    def upload() -> Tensor:
        host = torch.empty(len(images), *size, 3, dtype=torch.uint8, pin_memory=pinned)
        np.stack(images, out=host.numpy())
        return host.to(device)

    def forward(pixels: Tensor) -> Tensor:
        scaled = pixels.permute(0, 3, 1, 2).float().div_(255).sub_(0.45).div_(0.225)
        with autocast(case, device):
            logits = coarse(scaled)
        return logits.float().contiguous()

    pixels = upload()
    lazy = [Upsampled(logits, size, size, network.align_corners) for logits in forward(pixels)]

    def upsample() -> None:
        for each in lazy:
            for top, bottom in strips(size, strip):
                each.rows(top, bottom)

    def in_strips(mask_size: Size) -> list[Tensor]:
        number = len(CLASSES)
        return [reduce_in_strips(each, mask_size, number, device).mask for each in lazy]

    def fused(mask_size: Size) -> list[Tensor]:
        return [reduce(each, mask_size, len(CLASSES), device).mask for each in lazy]

    masks = in_strips(size)
    up, down = (
        median_seconds(run, device) for run in (upload, lambda: [mask.cpu() for mask in masks])
    )
    upsampled = median_seconds(upsample, device)
    parts = {
        "transfer, ms": up + down,
        "network, ms": median_seconds(lambda: forward(pixels), device),
        "upsample, ms": upsampled,
        "reduce, ms": max(0.0, median_seconds(lambda: in_strips(size), device) - upsampled),
    }
    if device.type == "cuda":
        double = (2 * case.side, 2 * case.side)
        parts["2×: strips, ms"] = median_seconds(lambda: in_strips(double), device)
        if fused_on(device):
            parts["fused, ms"] = median_seconds(lambda: fused(size), device)
            parts["2×: fused, ms"] = median_seconds(lambda: fused(double), device)
    return {part: 1000 * seconds / case.batch for part, seconds in parts.items()}


def autocast(case: Case, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, DTYPES[case.precision], enabled=case.precision != "fp32")


def median_seconds(run: Callable[[], Any], device: torch.device) -> float:
    return statistics.median(seconds_of(run, device))


def seconds_of(run: Callable[[], Any], device: torch.device) -> list[float]:
    """Wall seconds of runs; the first one, in which libraries do much once, is not counted."""
    run()
    taken: list[float] = []
    began = time.perf_counter()
    while wanted(len(taken), time.perf_counter() - began):
        _settled(device)
        start = time.perf_counter()
        run()
        _settled(device)
        taken.append(time.perf_counter() - start)
    return taken


def wanted(num_runs: int, spent: float) -> bool:
    """Whether to run again, given the number of runs and the seconds spent."""
    if num_runs < MIN_RUNS:
        return num_runs == 0 or spent < AT_MOST_S
    return num_runs < MAX_RUNS and spent < ENOUGH_S


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_an_image(network: Network, side: int) -> float:
    """Floating-point operations of the network on one image, counted without doing them."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta").coarse(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())


@cache
def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product: what the device can do."""
    side = MATRIX[device.type]
    matrix = torch.rand(side, side, device=device, dtype=DTYPES[precision])
    return 2 * side**3 / min(seconds_of(lambda: matrix @ matrix, device))


if __name__ == "__main__":
    main()
