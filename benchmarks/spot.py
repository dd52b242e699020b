"""Goodput on nodes that come and go: scripts/bench spot [--minutes 30].

A run over more images than can be finished, for as many minutes on nodes that stay, and then on
nodes that are killed after 60 to 180 seconds and replaced, by a seeded schedule. An image takes a
third of a second of waiting, so that nodes on one machine do not compete for its cores. What counts
is the images committed per CPU-second that the cluster had: a node's CPUs from its joining to its
death.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; drivers find it so

import ray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.bench import small_model  # noqa: E402
from segbatch import open_run  # noqa: E402
from tests import poison  # noqa: E402
from tests.collection import jpeg  # noqa: E402
from tests.drivers import driver  # noqa: E402
from tests.nodes import another_node, nodes  # noqa: E402

CPUS = 4  # of a node
NODES = 3  # besides the head's, where the driver is
LIFE_S = (60.0, 180.0)
GAP_S = (10.0, 40.0)  # until another one comes
IMAGES = 200_000  # more than can be finished
SAMPLE_S = 1.0


@dataclass
class Cluster:
    """The nodes beside the head's, and the CPU-seconds that they were there for."""

    address: str
    alive: dict[int, ExitStack] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    lost: int = 0

    def join(self, slot: int) -> None:
        stack = ExitStack()
        stack.enter_context(another_node(self.address, num_cpus=CPUS))
        self.alive[slot] = stack

    def lose(self, slot: int) -> None:
        self.alive.pop(slot).close()  # kill -9 of the node and all its workers
        self.lost += 1

    def watch(self, seconds: float) -> None:
        """Count the CPU-seconds of the next ``seconds``."""
        end = time.monotonic() + seconds
        last = time.monotonic()
        while last < end:
            time.sleep(min(SAMPLE_S, max(0.0, end - last)))
            now = time.monotonic()
            self.cpu_seconds += sum(nodes().values()) * CPUS * (now - last)
            last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # In every process: a hook of Ray's would hold for the jobs of one driver alone.
        (folder / "sitecustomize.py").write_text("from tests import poison; poison.install()\n")
        os.environ["PYTHONPATH"] = f"{folder}:{ROOT}"
        images = folder / "images"
        images.mkdir()
        data = jpeg(0, 64, 64, comment=poison.WAIT)
        for number in range(IMAGES):
            (images / f"{number:06d}.jpg").write_bytes(data)
        ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        address = ray.get_runtime_context().gcs_address
        model = small_model(str(folder))
        job: dict[str, Any] = {"kind": "segment", "images": f"{images}/", "model": model}
        rows = [
            measured(name, job | {"output": str(folder / name)}, address, arguments)
            for name in ("nodes that stay", "nodes that come and go")
        ]
    goodput = rows[1]["images per CPU-second"] / rows[0]["images per CPU-second"]
    print(result.markdown(rows))
    print(f"goodput: {goodput:.2f}")
    figures = {
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "rows": rows,
        "goodput": goodput,
    }
    print(result.save("spot", {**result.machine(), **figures}, arguments.output))


def measured(
    name: str, job: dict[str, Any], address: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run the job for some minutes, on nodes that stay or not, and stop it as a user would."""
    spot = name == "nodes that come and go"
    cluster = Cluster(address)
    for slot in range(NODES):
        cluster.join(slot)
    schedule = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as logs, driver(job, Path(logs), address) as process:
        began = time.monotonic()
        end = began + 60 * arguments.minutes
        due = {slot: began + schedule.uniform(*LIFE_S) for slot in range(NODES)}
        while time.monotonic() < end:
            slot = min(due, key=lambda number: due[number])
            moment = min(due[slot], end) if spot else end
            cluster.watch(moment - time.monotonic())
            if moment >= end:
                break
            if slot in cluster.alive:
                cluster.lose(slot)
                due[slot] = time.monotonic() + schedule.uniform(*GAP_S)
            else:
                cluster.join(slot)
                due[slot] = time.monotonic() + schedule.uniform(*LIFE_S)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(120)
        print((Path(logs) / "stderr.txt").read_text()[-600:])
    for stack in cluster.alive.values():
        stack.close()
    done = open_run(job["output"]).audit().rows
    return {
        "run": name,
        "images": done,
        "nodes lost": cluster.lost,
        "CPU-seconds": round(cluster.cpu_seconds),
        "images per CPU-second": done / cluster.cpu_seconds,
    }


if __name__ == "__main__":
    main()
