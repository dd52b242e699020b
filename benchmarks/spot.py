"""Goodput on nodes that come and go: scripts/bench spot [--minutes 30] [--calm 10] [-o RESULT.json]

`segbatch run` works on more images than it can finish: for `--calm` minutes on three nodes that
stay, then for `--minutes` on three that are killed after 60 to 180 seconds each, by a seeded
schedule, and replaced. What counts is the images committed per second that a node was there, from
its joining to its death.

All nodes are on this machine, so a network that computed would be slowed by the others: it sleeps
instead, for as long as an image takes on a small GPU. What starts a node and its workers is real.
Also noted: the seconds from a node's joining until it predicts (does the pool grow to what there
is?), and the longest time in which no image arrived (does a lost node stall the rest?).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; drivers find it so

import ray
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.bench import small_model  # noqa: E402
from benchmarks.memory import command_line, descendants  # noqa: E402
from segbatch import open_run  # noqa: E402
from tests.collection import jpeg  # noqa: E402
from tests.nodes import another_node  # noqa: E402

CPUS = 4  # of a node
NODES = 3  # besides the head's, where the driver is
LIFE_S = (60.0, 180.0)
GAP_S = (10.0, 40.0)  # until another one comes
IMAGES = 1_000_000  # more than can be finished
DISTINCT = 64
IMAGE_S = 0.04
LOOK_S = 0.5
STOP_S = 120.0
JOINING = threading.Lock()  # two nodes that start at once may pick the same ports

# In every process that Ray starts: the network waits instead of computing.
SLEEPING = f"""
import time, wrapt

@wrapt.when_imported("segbatch.model.predict")
def sleep_first(module):
    predict_batch = module.Model.predict_batch

    def slow(self, images, *arguments, **options):
        time.sleep({IMAGE_S} * len(images))
        return predict_batch(self, images, *arguments, **options)

    module.Model.predict_batch = slow
"""


@dataclass
class Node:
    """A node from its joining on; ``predicts`` is when its first predict worker was seen."""

    stack: ExitStack
    raylet: int
    joined: float = field(default_factory=time.monotonic)
    predicts: float | None = None

    @classmethod
    def join(cls, address: str) -> Node:
        stack = ExitStack()
        return cls(stack, stack.enter_context(another_node(address, CPUS)))

    def look(self) -> None:
        if self.predicts is None:
            workers = map(command_line, descendants(self.raylet))
            if any("PredictStage" in worker for worker in workers):
                self.predicts = time.monotonic()


class Slot:
    """A place for a node: a thread keeps one there, by its schedule, until it is told to stop."""

    def __init__(self, address: str, schedule: random.Random | None) -> None:
        self.address, self.schedule = address, schedule
        self.nodes = [Node.join(address)]
        self.node_seconds = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep)

    def start(self) -> None:
        self.nodes[0].joined = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stopped.is_set():
            node = self.nodes[-1]
            life = self.schedule.uniform(*LIFE_S) if self.schedule else float("inf")
            while time.monotonic() < node.joined + life and not self._stopped.wait(LOOK_S):
                node.look()
            self.node_seconds += time.monotonic() - node.joined
            if self._stopped.is_set() or self.schedule is None:
                return
            node.stack.close()  # kill -9 of the node and all its workers
            if not self._stopped.wait(self.schedule.uniform(*GAP_S)):
                with JOINING:
                    self.nodes.append(Node.join(self.address))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--calm", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "sitecustomize.py").write_text(SLEEPING)
        os.environ["PYTHONPATH"] = f"{folder}:{ROOT}"
        ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        address = ray.get_runtime_context().gcs_address
        job = {"kind": "segment", "images": manifest(folder), "model": small_model(str(folder))}
        rows = [
            measured("nodes that stay", job, address, 60 * arguments.calm, None),
            measured(
                "nodes that come and go", job, address, 60 * arguments.minutes, arguments.seed
            ),
        ]
    calm, spot = (row["images per node-second"] for row in rows)
    print(result.markdown(rows))
    print(f"goodput: {spot / calm:.2f}")
    figures = {**result.machine(), **vars(arguments), "rows": rows, "goodput": spot / calm}
    figures.pop("output")
    print(result.save("spot", figures, arguments.output))


def manifest(folder: Path) -> str:
    """A list that names a few small images again and again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(DISTINCT):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, 64, 64))
    uris = [f"{folder}/{number % DISTINCT:02d}.jpg" for number in range(IMAGES)]
    pq.write_table(pa.table({"uri": uris}), folder / "images.parquet")
    return str(folder / "images.parquet")


def measured(
    name: str, job: dict[str, Any], address: str, seconds: float, seed: int | None
) -> dict[str, Any]:
    """Run the job for so many seconds from its first images on, and stop it as a user would."""
    folder = Path(job["model"]).parent
    output, file = folder / name.replace(" ", "-"), folder / "job.yaml"
    file.write_text(yaml.safe_dump({**job, "output": str(output)}))
    schedules = [
        None if seed is None else random.Random(f"{seed} {number}") for number in range(NODES)
    ]
    slots = [Slot(address, schedule) for schedule in schedules]
    environment = {**os.environ, "RAY_ADDRESS": address}
    driver = subprocess.Popen(
        [sys.executable, "-m", "segbatch", "run", str(file)],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    arrivals = Arrivals(driver)
    arrivals.first.wait()
    began = time.monotonic()
    for slot in slots:
        slot.start()
    time.sleep(seconds)
    driver.send_signal(signal.SIGINT)
    ended = time.monotonic()
    for slot in slots:
        slot.stop()
    driver.wait(STOP_S)
    nodes = [node for slot in slots for node in slot.nodes]
    for node in nodes:
        node.stack.close()
    waits = [
        node.predicts - node.joined for node in nodes[NODES:] or nodes
        if node.predicts is not None and node.joined > began
    ]  # fmt: skip
    node_seconds = sum(slot.node_seconds for slot in slots)
    images = open_run(str(output)).audit().rows
    return {
        "run": name,
        "images": images,
        "nodes lost": len(nodes) - NODES,
        "node-seconds": round(node_seconds),
        "images per node-second": images / node_seconds,
        "s until a new node predicts, median": statistics.median(waits) if waits else None,
        "the same, longest": max(waits, default=None),
        "longest s without an image": arrivals.longest_gap(began, ended),
    }


class Arrivals:
    """When the driver said that more images had arrived, read in a thread."""

    def __init__(self, driver: subprocess.Popen[str]) -> None:
        self.driver = driver
        self.first = threading.Event()
        self.moments: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.driver.stderr is not None
        images = 0
        for line in self.driver.stderr:
            print(line, end="", file=sys.stderr)
            progress = re.search(r"images=(\d+)/\d+", line)
            if progress and int(progress[1]) > images:
                images = int(progress[1])
                self.moments.append(time.monotonic())
                self.first.set()

    def longest_gap(self, began: float, ended: float) -> float:
        inside = [moment for moment in self.moments if began < moment < ended]
        times = [began, *inside, ended]
        return max(later - earlier for earlier, later in pairwise(times))


if __name__ == "__main__":
    main()
