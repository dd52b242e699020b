"""What the data path costs, with a model that answers at once: scripts/bench data.

    scripts/bench data [--only stages | contest | containers] [--megapixels 0.3,1,12]
        [--number 4000] [--local] [--rounds 5] [-o RESULT.json]

Three parts, for photographs of each size:

- stages: fetch, decode, encode and write, each alone, in milliseconds of CPU an image on one core,
  against what the libraries under them cost alone (`benchmarks/libraries.py`); the fastest of
  several rounds in which all of them take turns. Masks are flat squares, labelled from pixels.
- contest: the whole job with that model against a PyTorch script, Ray Data as its documentation
  has it, and Daft; see `scripts/bench job`, whose contenders these are.

- containers: the same photographs loose, in tar shards and in a Parquet table: images/s, requests
  and bytes of listing and of reading them (`benchmarks/containers.py`); the best of the rounds.

CPU seconds are those of this process with all its threads, so the S3 server's are not among them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402

from benchmarks import containers, libraries, result  # noqa: E402
from benchmarks.contest import CONTENDERS, LIMIT, Contest, collection  # noqa: E402
from benchmarks.peers.segbatch_job import CLASSES, InstantStage, instant_bundle  # noqa: E402
from benchmarks.peers.task import INSTANT, Task  # noqa: E402
from benchmarks.photographs import side_of  # noqa: E402
from segbatch import storage  # noqa: E402
from segbatch.config.job import Predict  # noqa: E402
from segbatch.jobs.stages import (  # noqa: E402
    BLOCK_BYTES,
    Predicting,
    Reading,
    decode_stage,
    encode_stage,
    fetch_stage,
    write_stage,
)
from segbatch.results.encode import Encoding  # noqa: E402
from segbatch.results.lease import Lease  # noqa: E402
from segbatch.results.schema import rows_schema  # noqa: E402
from segbatch.results.write import Writing  # noqa: E402

BLOCK_MEGAPIXELS = 32.0  # of the block that goes through the stages, well below its limit
MIN_BLOCK = 8  # images, as far as the limit allows
MIN_IMAGES = 160  # fewer end before a steady state shows
GOAL = 1.25
# The limit and the OpenVINO script have no instant model.
INSTANT_CONTENDERS = [name for name in CONTENDERS if name not in (LIMIT, "openvino_script")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["stages", "contest", "containers"])
    parser.add_argument("--megapixels", default="0.3,1,12")
    parser.add_argument("--long-side", type=int, help="of the model, in the stages: decode less")
    parser.add_argument("--number", type=int, default=4000, help="images of 0.3 megapixels; else"
                        f" as many as have their pixels, {MIN_IMAGES} at least")  # fmt: skip
    parser.add_argument("--local", action="store_true", help="read from local disk, not from S3")
    parser.add_argument("--contenders", default=",".join(INSTANT_CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5, help="of the stages")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    figures: dict[str, Any] = result.machine() | {"stages": {}, "contest": {}, "containers": {}}
    for size in arguments.megapixels.split(","):
        megapixels = float(size)
        side = side_of(megapixels)
        number = max(min(MIN_IMAGES, arguments.number), int(arguments.number * 0.3 / megapixels))
        if arguments.only in (None, "containers"):
            with collection(None, side, number, local=False) as (prefix, _, _):
                rows = containers.compare(prefix, arguments.rounds)
            figures["containers"][size] = rows
            print(f"\n{number} images of {megapixels:g} megapixels\n\n{result.markdown(rows)}")
        if arguments.only in (None, "stages"):
            rows = stages(side, arguments)
            figures["stages"][size] = rows
            print(f"\n{megapixels:g} megapixels, {side}×{side}\n\n{result.markdown(rows)}")
        if arguments.only in (None, "contest"):
            contest = held(side, number, arguments)
            figures["contest"][size] = contest.to_json()
            print(f"\n{number} images of {megapixels:g} megapixels\n")
            print(result.markdown(contest.table()))
    print(f"\n{result.save('data', figures, arguments.output)}")


def held(side: int, number: int, arguments: argparse.Namespace) -> Contest:
    """The contest over ``number`` images with the instant model."""
    with collection(None, side, number, local=arguments.local) as (prefix, _, server):
        contest = Contest(
            Task(
                images=prefix,
                num_images=number,
                output="",
                progress="",
                model=INSTANT,
                device="cpu",
                precision="fp32",
                workers=1,
                threads=1,
                batch_size=16,
                rows_per_file=max(4, min(64, number // 10)),  # marks enough for a steady state
            ),
            server,
        )
        contest.hold(arguments.contenders.split(","), rounds=1)
        return contest


def stages(side: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of CPU an image of each stage and of the libraries under it."""
    number = max(MIN_BLOCK, min(64, int(BLOCK_MEGAPIXELS * 1e6 / side**2)))
    number = max(1, min(number, BLOCK_BYTES // (3 * side**2)))  # what is beyond is not decoded
    with (
        collection(None, side, number, local=arguments.local) as (prefix, _, _),
        tempfile.TemporaryDirectory(prefix="bench-data-") as folder,
        Lease(folder, lambda _: None) as lease,
    ):
        uris = [file.uri for file in storage.list_files(prefix)]
        images = pa.table({"image_id": pa.array(range(number), pa.int64()), "uri": uris})
        reading = Reading(storage.ReadLimits(), 200_000_000, arguments.long_side)
        schema = rows_schema(CLASSES, stats=["confidence"])
        writing = Writing(lease.worker_lease, 0, schema, last_pass=True)
        encoding = Encoding(CLASSES, schema)
        predict = InstantStage(
            Predicting(
                instant_bundle(f"{folder}/model"),
                Predict(),
                device="cpu",
                threads=1,
                original_grid=False,
                keep_label_maps=True,
            ),
            reading,
        )
        fetched = fetch_stage(images, reading, lease.worker_lease)
        decoded = decode_stage(fetched, reading)
        labelled = predict(decoded)
        encoded = encode_stage(labelled, encoding)
        files = [data.as_py() for data in fetched["data"]]
        masks = [mask.as_py() for mask in encoded["mask"]]
        rows = encoded.select(schema.names)
        ours: dict[str, Callable[[], Any]] = {
            "fetch": partial(fetch_stage, images, reading, lease.worker_lease),
            "decode": partial(decode_stage, fetched, reading),
            "encode": partial(encode_stage, labelled, encoding),
            "write": partial(write_stage, encoded, writing),
            "predict, the tables around it": partial(predict, decoded),
        }
        theirs: dict[str, dict[str, Callable[[], Any]]] = {
            "fetch": libraries.fetch(uris),
            "decode": libraries.decode(files, arguments.long_side),
            "encode": libraries.encode(masks),
            "write": libraries.write(rows, Path(folder)),
        }
        seconds = fastest(
            {("ours", stage): run for stage, run in ours.items()}
            | {(stage, name): run for stage, runs in theirs.items() for name, run in runs.items()},
            arguments.rounds,
        )
    return _rows({key: 1000 * s / number for key, s in seconds.items()}, ours, theirs)


def _rows(
    cost: Mapping[tuple[str, str], float], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    rows, sums = [], [0.0, 0.0]
    for stage in ours:
        mine = cost["ours", stage]
        named = {name: cost[stage, name] for name in theirs.get(stage, ())}
        best = min(named, key=lambda name: named[name], default=None)
        if best is not None:
            sums = [sums[0] + mine, sums[1] + named[best]]
        others = ", ".join(f"{name} {ms:.3g}" for name, ms in named.items() if name != best)
        rows.append(_row(stage, mine, named[best] if best else None, best, others))
    return [*rows, _row(f"sum of the four, goal {GOAL}", *sums, None, "")]


def _row(
    stage: str, mine: float, library: float | None, name: str | None, others: str
) -> dict[str, Any]:
    return {
        "stage": stage,
        "ms an image": mine,
        "images/s and core": 1000 / mine,
        "libraries alone, ms": library,
        "ratio": library and mine / library,
        "which": name or "",
        "others, ms": others,
    }


def fastest(
    tasks: Mapping[tuple[str, str], Callable[[], Any]], rounds: int
) -> dict[tuple[str, str], float]:
    """CPU seconds of each task, with all its threads: the least over rounds in turns."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for key, run in tasks.items():
            start = time.process_time()
            run()
            best[key] = min(best[key], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
