"""A served model under load, and what the network alone does: scripts/bench serve.

    scripts/bench serve [--model zoo:facades] [--clients 1,8,64] [--side 512] [--seconds 20]
        [--rounds 3] [-o RESULT.json]

`segbatch serve` in a process of its own, as a user starts it, answers clients that each send a
photograph as JPEG, wait for the answer as JSON and send the next. What it is compared with is
`Model.predict_batch` in another process, on as many threads, over the same photographs, decoded
already. They take turns, so that what else happens on the machine happens to both; the figures are
medians over the rounds. The clients run on the same cores as the server. The goal: with 64 clients
at least 0.8 of `predict_batch`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402

from benchmarks import photographs, result  # noqa: E402
from benchmarks.programs import program  # noqa: E402
from segbatch.images.decode import Decoded, decode_image  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.model.predict import load_model  # noqa: E402

GOAL = 0.8
GOAL_CLIENTS = 64
MAX_PIXELS = 200_000_000
WARM_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo:facades")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=None)
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.clients.split(",")]
    files = list(photographs.jpegs(arguments.side, photographs.DISTINCT))
    figures = result.machine()
    rounds = []
    with served(arguments.model) as url, alone(arguments.model, files) as predict_batch:
        asyncio.run(load(url, files, 4, WARM_S))
        for _ in range(arguments.rounds):
            measured: dict[str, Any] = {"predict_batch": predict_batch(arguments.seconds)}
            for number in numbers:
                measured[str(number)] = asyncio.run(load(url, files, number, arguments.seconds))
            rounds.append(measured)
            print(f"round {len(rounds)}: {measured}", file=sys.stderr)
    bare = statistics.median(each["predict_batch"] for each in rounds)
    rows = []
    for number in numbers:
        medians = {
            name: statistics.median(each[str(number)][name] for each in rounds)
            for name in ("images_per_second", "p50_ms", "p99_ms")
        }
        of_bare = statistics.median(
            each[str(number)]["images_per_second"] / each["predict_batch"] for each in rounds
        )
        rows.append({"clients": number, **medians, "of_predict_batch": of_bare})
    figures |= {
        "model": arguments.model,
        "side": arguments.side,
        "seconds": arguments.seconds,
        "predict_batch_images_per_second": bare,
        "served": rows,
        "rounds": rounds,
        "goal": {"clients": GOAL_CLIENTS, "of_predict_batch": GOAL},
    }
    print(f"predict_batch: {bare:.2f} images/s\n\n{result.markdown(rows)}")
    print(f"\nwritten: {result.save('serve', figures, arguments.output)}")


@contextmanager
def served(model: str) -> Iterator[str]:
    """The URL of `segbatch serve`, which ends with the block."""
    command = [sys.executable, "-m", "segbatch", "serve", model, "--port", "0"]
    with program(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            if not url:
                sys.exit("segbatch serve did not start: see above")
            yield url
        finally:
            server.terminate()
            server.wait(60)


@contextmanager
def alone(model: str, files: list[bytes]) -> Iterator[Any]:
    """A function of seconds that gives the images a second of `predict_batch`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_predict_on_request, args=(there, model, files))
    process.start()
    there.close()  # only the process has that end, so that its death ends the waiting for it

    def measure(seconds: float) -> float:
        try:
            here.send(seconds)
            return float(here.recv())
        except (EOFError, ConnectionError):
            sys.exit("predict_batch ended before it was measured: see above")

    try:
        measure(WARM_S)
        yield measure
    finally:
        with suppress(ConnectionError):
            here.send(None)
        process.join(60)
        process.kill()


def _predict_on_request(requests: Connection, model_uri: str, files: list[bytes]) -> None:
    model = load_model(model_uri, threads=min(4, num_cores()))
    decoded = [
        image
        for file in files
        if isinstance(
            image := decode_image(file, max_pixels=MAX_PIXELS, long_side=model.long_side), Decoded
        )
    ]
    pixels = [image.pixels for image in decoded]
    sizes = [(image.height, image.width) for image in decoded]
    while (seconds := requests.recv()) is not None:
        start, done = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            done += len(model.predict_batch(pixels, sizes))
        requests.send(done / took)


async def load(url: str, files: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """What ``clients`` see that ask for ``seconds``: images a second, and milliseconds each."""
    took_ms: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            turn = number
            while (start := time.perf_counter()) < end:
                async with session.post(f"{url}predict", data=files[turn % len(files)]) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                took_ms.append((time.perf_counter() - start) * 1000)
                turn += 1

        start = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        took = time.perf_counter() - start
    cuts = statistics.quantiles(took_ms, n=100, method="inclusive")
    return {
        "images_per_second": len(took_ms) / took,
        "p50_ms": statistics.median(took_ms),
        "p99_ms": cuts[98],
    }


if __name__ == "__main__":
    main()
