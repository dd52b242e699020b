"""Goodput on nodes that come and go: scripts/bench spot [--minutes 30] [--calm 10] [-o RESULT.json]

`segbatch run` works on more images than it can finish: for `--calm` minutes on three nodes that
stay, then for `--minutes` on three that are killed after 60 to 180 seconds each, by a seeded
schedule, and replaced. What counts is the images finished per second that a node was there, from
its joining to its death. It counts from one line of the run's progress to another: neither the
start nor the end of the run is in it.

All nodes are on this machine, so a network that computed would be slowed by the others: it sleeps
instead, for as long as an image takes on a small GPU. What starts a node and its workers is real.
Also noted: the seconds from a node's joining until it has a predict worker (does the pool grow to
what there is?), and the longest time in which no image arrived (does a lost node stall the rest?).
"""

from __future__ import annotations

import argparse
import os
import random
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
from typing import Any, NamedTuple

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; drivers find it so

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.nodes import Nodes, raylet_of  # noqa: E402
from benchmarks.memory import command_line, descendants, images_done, prepare  # noqa: E402
from benchmarks.programs import program  # noqa: E402
from segbatch import open_run  # noqa: E402

NODES = 3  # besides the head's, where the driver is
LIFE_S = (60.0, 180.0)
GAP_S = (10.0, 40.0)  # until another one comes
IMAGES = 1_000_000  # more than can be finished
IMAGE_S = 0.04
LOOK_S = 0.5
STOP_S = 120.0

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
    """A node from its joining on; ``has_worker`` is when its first predict worker was seen."""

    node: Any  # Ray's
    joined: float = field(default_factory=time.monotonic)
    has_worker: float | None = None

    def look(self) -> None:
        if self.has_worker is None:
            workers = map(command_line, descendants(raylet_of(self.node)))
            if any("PredictStage" in worker for worker in workers):
                self.has_worker = time.monotonic()


class Slot:
    """A place for a node, which is lost and replaced by its schedule, if it has one."""

    def __init__(self, cluster: Nodes, schedule: random.Random | None) -> None:
        self.cluster, self.schedule = cluster, schedule
        self.nodes = [Node(cluster.join())]
        self.is_occupied = True
        self.node_seconds = 0.0
        self.lost = 0
        self.due = float("inf")

    def start(self) -> None:
        self.nodes[0].joined = time.monotonic()
        self.due = self._life_ends()

    def look(self) -> None:
        """Look at the node; lose it, or have another one join, if that is due."""
        if self.is_occupied:
            self.nodes[-1].look()
        if time.monotonic() < self.due or self.schedule is None:
            return
        if self.is_occupied:
            self.count()
            self.lose()
            self.lost += 1
            self.due = time.monotonic() + self.schedule.uniform(*GAP_S)
        else:
            self.nodes.append(Node(self.cluster.join()))
            self.is_occupied = True
            self.due = self._life_ends()

    def count(self) -> None:
        """Count the seconds that the node was there."""
        if self.is_occupied:
            self.node_seconds += time.monotonic() - self.nodes[-1].joined

    def lose(self) -> None:
        if self.is_occupied:
            self.cluster.lose(self.nodes[-1].node)
            self.is_occupied = False

    def _life_ends(self) -> float:
        life = self.schedule.uniform(*LIFE_S) if self.schedule else float("inf")
        return self.nodes[-1].joined + life


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
        cluster = stack.enter_context(Nodes(str(folder)))
        job = prepare(folder, IMAGES)
        rows = [
            measured("nodes that stay", job, cluster, 60 * arguments.calm, None),
            measured(
                "nodes that come and go", job, cluster, 60 * arguments.minutes, arguments.seed
            ),
        ]
    calm, spot = (row["images per node-second"] for row in rows)
    print(result.markdown(rows))
    print(f"goodput: {spot / calm:.2f}")
    figures = {**result.machine(), **vars(arguments), "rows": rows, "goodput": spot / calm}
    figures.pop("output")
    print(result.save("spot", figures, arguments.output))


def measured(
    name: str, job: Path, cluster: Nodes, seconds: float, seed: int | None
) -> dict[str, Any]:
    """Run the job for so many seconds from its first images on, and stop it as a user would."""
    output = job.with_name(name.replace(" ", "-"))
    schedules = [
        None if seed is None else random.Random(f"{seed} {number}") for number in range(NODES)
    ]
    slots = [Slot(cluster, schedule) for schedule in schedules]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-m", "segbatch", "run", str(job), "--set", f"output={output}"]
    with program(command, stderr=subprocess.PIPE, text=True, env=environment) as driver:
        arrivals = Arrivals(driver)
        began = arrivals.next_after(0.0)
        for slot in slots:
            slot.start()
        due = time.monotonic() + seconds
        while arrivals.last.moment < due:
            arrivals.check()
            for slot in slots:
                slot.look()
            time.sleep(LOOK_S)
        ended = arrivals.last
        for slot in slots:
            slot.count()
        driver.send_signal(signal.SIGTERM)
        driver.wait(STOP_S)
    for slot in slots:
        slot.lose()
    audit = open_run(str(output)).audit()
    assert not audit.twice, audit
    later = [node for slot in slots for node in slot.nodes[1:]]
    waits = [node.has_worker - node.joined for node in later if node.has_worker is not None]
    node_seconds = sum(slot.node_seconds for slot in slots)
    images = ended.images - began.images
    return {
        "run": name,
        "images": images,
        "nodes lost": sum(slot.lost for slot in slots),
        "node-seconds": round(node_seconds),
        "images per node-second": images / node_seconds,
        "s until a new node has a predict worker, median": statistics.median(waits)
        if waits
        else None,
        "the same, longest": max(waits, default=None),
        "longest s between lines with new images": arrivals.longest_gap(began),
    }


class Arrival(NamedTuple):
    """A line of the driver that more images have arrived; it writes one every ten seconds."""

    moment: float
    images: int


class Arrivals:
    """What the driver says of arrived images, read in a thread."""

    def __init__(self, driver: subprocess.Popen[str]) -> None:
        self.driver = driver
        self.seen = [Arrival(0.0, 0)]
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def last(self) -> Arrival:
        return self.seen[-1]

    def next_after(self, moment: float) -> Arrival:
        while self.last.moment <= moment:
            self.check()
            time.sleep(LOOK_S)
        return self.last

    def check(self) -> None:
        if self.driver.poll() is not None:
            sys.exit(f"the run ended by itself, with {self.driver.returncode}")

    def longest_gap(self, began: Arrival) -> float:
        moments = [arrival.moment for arrival in self.seen if arrival.moment >= began.moment]
        return max(later - earlier for earlier, later in pairwise(moments))

    def _read(self) -> None:
        assert self.driver.stderr is not None
        for line in self.driver.stderr:
            print(line, end="", file=sys.stderr)
            images = images_done(line) or 0
            if images > self.last.images:
                self.seen.append(Arrival(time.monotonic(), images))


if __name__ == "__main__":
    main()
