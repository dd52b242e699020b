"""Arithmetic from what a sample took to images per second, hours and money.

A node has ``cpus`` CPUs that Ray schedules, and predict workers that take some of them. Each image
takes seconds in each stage: ``wall`` by the clock, ``cpu`` summed over all cores. Four bounds
follow:

======== =========================================== =======================================
bound    images per second                           at this rate
======== =========================================== =======================================
device   workers ÷ wall(predict)                     the predict workers never wait
cpus     (cpus − CPUs of the workers) ÷ slots        the other CPUs never wait, where slots is
                                                     the wall of fetch, decode, encode and
                                                     write, each times the CPUs that it asks
                                                     Ray for (:mod:`segbatch.jobs.runtime.sharing`)
cores    cores ÷ (all cpu + overhead of a block)     no core ever waits
network  gigabits ÷ bits of an image                 the network connection never waits
======== =========================================== =======================================

A node's throughput is the least of them. ``n`` nodes have ``n`` times its throughput, up to what
one driver can schedule (``BLOCKS_PER_S``). Hours are ``start-up + images ÷ throughput``, money is
``hours × (nodes × price of a node + price of the head) + requests + transfer``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS

# Measured on 2 shared x86-64 cores, 2026-11 (docs/clusters/planning.md describes how).
BLOCKS_PER_S = 24.0  # small blocks that one driver scheduled in a second
BLOCK_CPU_S = 2 / BLOCKS_PER_S  # core-seconds that each of them took
COMMAND_S = 33.0  # of `segbatch run`: imports, start and end of Ray, the statistics
WORKER_START_S = 18.0  # from then to the first predicted image, without loading the model

MAX_NODES = 1000
# What a stage is called when it limits the throughput; other stages keep their name.
STAGES = {"fetch": "network", "decode": "decode", "predict": "device", "encode": "encode"}


@dataclass(frozen=True)
class StageCost:
    """Seconds that one image took in one stage: by the clock, and summed over all cores."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class ImageCost:
    """What one image took on average in each stage: fetch, decode, predict, encode and write.

    ``read_bytes`` came over the network; ``block_rows`` images go into a block.
    """

    stages: Mapping[str, StageCost]
    read_bytes: float
    block_rows: int

    @property
    def slot_s(self) -> float:
        """CPUs × seconds that the stages other than predict reserve in Ray."""
        wall = {name: cost.wall_s for name, cost in self.stages.items()}
        read_s = READ_CPUS * (wall["fetch"] + wall["decode"])
        return read_s + ENCODE_CPUS * wall["encode"] + PARQUET_CPUS * wall["write"]

    @property
    def core_s(self) -> float:
        """Core-seconds of all stages, with the image's share of the overhead of a block."""
        cpu_s = sum(cost.cpu_s for cost in self.stages.values())
        return cpu_s + BLOCK_CPU_S / self.block_rows

    @property
    def longest_stage(self) -> str:
        """The stage other than predict that takes longest by the clock."""
        others = {name: self.stages[name].wall_s for name in ("fetch", "decode", "encode", "write")}
        longest = max(others, key=others.__getitem__)
        return STAGES.get(longest, longest)

    @property
    def heaviest_stage(self) -> str:
        """The stage that takes most core-seconds."""
        heaviest = max(self.stages, key=lambda name: self.stages[name].cpu_s)
        return STAGES.get(heaviest, heaviest)


def with_threads(cost: ImageCost, factor: float) -> ImageCost:
    """The cost of an image where a worker on the CPU has ``factor`` times the threads."""
    predict = cost.stages["predict"]
    stages = {**cost.stages, "predict": replace(predict, wall_s=predict.wall_s / factor)}
    return replace(cost, stages=stages)


def cpus_beside_worker(cost: ImageCost) -> float:
    """CPUs that prepare images and store results as fast as one worker predicts."""
    return cost.slot_s / cost.stages["predict"].wall_s


@dataclass(frozen=True)
class Node:
    """One machine of a cluster: its CPUs and cores, and the predict workers on it."""

    cpus: float  # that Ray schedules
    cores: float
    workers: float
    worker_cpus: float  # of each worker
    gbps: float | None = None  # of the network; None: no bound


@dataclass(frozen=True)
class Throughput:
    """Images per second, what limits them, and the bounds of the module's table by name."""

    images_per_second: float
    limit: str
    bounds: Mapping[str, float] = field(default_factory=dict)


def throughput(cost: ImageCost, node: Node) -> Throughput:
    """The throughput of one node."""
    bounds = {
        "device": node.workers / cost.stages["predict"].wall_s,
        "cpus": max(0.0, node.cpus - node.workers * node.worker_cpus) / cost.slot_s,
        "cores": node.cores / cost.core_s,
    }
    if node.gbps is not None:
        bounds["network"] = node.gbps * 1e9 / 8 / cost.read_bytes if cost.read_bytes else math.inf
    least = min(bounds, key=bounds.__getitem__)
    names = {"cpus": cost.longest_stage, "cores": cost.heaviest_stage}
    return Throughput(bounds[least], names.get(least, least), bounds)


def start_up_s(load_s: float, node_start_s: float = 0.0) -> float:
    """Seconds before the first image: start of the nodes and workers, loading of the model."""
    return node_start_s + WORKER_START_S + load_s


# ------------------------------------------------------------------------------ hours and money


@dataclass(frozen=True)
class Work:
    """What a job has to do, and what it costs besides the nodes that work."""

    images: int
    start_up_s: float
    fixed_cost: float  # money that does not depend on how long the job takes
    head_price: float  # of the head node for an hour
    max_images_per_second: float = math.inf


@dataclass(frozen=True)
class UnitPart:
    """The nodes of one type in a unit; ``share`` is their number, which may be a fraction."""

    name: str
    share: float
    price: float | None  # of one node for an hour; None: unknown

    def nodes(self, units: int) -> int:
        """Whole nodes of this type in ``units`` units."""
        return math.ceil(self.share * units - 1e-9)


@dataclass(frozen=True)
class Unit:
    """Nodes that work together, and their throughput; a cluster has at most ``max_units``."""

    parts: Sequence[UnitPart]
    throughput: Throughput
    max_units: int

    def price(self, units: int) -> float | None:
        """The price of ``units`` units for an hour; ``None`` if a price is unknown."""
        total = 0.0
        for part in self.parts:
            if part.price is None:
                return None
            total += part.nodes(units) * part.price
        return total


@dataclass(frozen=True)
class Estimate:
    """How long ``units`` units take, and what that costs; ``None`` if a price is unknown."""

    units: int
    images_per_second: float
    hours: float
    money: float | None


def estimate(work: Work, unit: Unit, units: int) -> Estimate:
    """Estimate the hours and the money of ``work`` on ``units`` units."""
    rate = min(units * unit.throughput.images_per_second, work.max_images_per_second)
    seconds = 0.0 if not work.images else work.images / rate if rate else math.inf
    hours = (work.start_up_s + seconds) / 3600
    price = unit.price(units)
    money = None if price is None else hours * (price + work.head_price) + work.fixed_cost
    return Estimate(units, rate, hours, money)


@dataclass(frozen=True)
class Solution:
    """The estimate that meets a deadline and a budget, and the nearest ones if none does."""

    chosen: Estimate | None
    fastest: Estimate
    cheapest: Estimate | None  # None: no price is known
    closest: Estimate


def solve(work: Work, unit: Unit, deadline_h: float | None, budget: float | None) -> Solution:
    """The fewest units that meet the deadline, and the budget if there is one.

    With a budget alone: the most units that the cluster may have and the budget pays for. A
    deadline may take more units than the cluster may have now, but at most ``MAX_NODES``.
    """
    max_units = unit.max_units if deadline_h is None else MAX_NODES
    estimates = [estimate(work, unit, units) for units in range(1, max_units + 1)]
    fitting = [
        e
        for e in estimates
        if (deadline_h is None or e.hours <= deadline_h)
        and (budget is None or (e.money is not None and e.money <= budget))
    ]
    chosen = None
    if fitting:
        chosen = fitting[0] if deadline_h is not None else fitting[-1]
    fastest = min(estimates, key=lambda e: e.hours)
    priced = [e for e in estimates if e.money is not None]
    cheapest = min(priced, key=lambda e: e.money or 0.0, default=None)
    too_late = deadline_h is not None and fastest.hours > deadline_h
    return Solution(chosen, fastest, cheapest, fastest if too_late else cheapest or fastest)


def share_at_most(seen: int, of: int) -> float:
    """The upper 95 % confidence bound of a share, 0 to 1, of which ``seen`` in ``of`` were seen.

    Wilson's score interval, one-sided (z = 1.645): E. B. Wilson, JASA 22 (1927), p. 209.
    """
    if not of:
        return 1.0
    z, share = 1.645, seen / of
    centre = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return min(1.0, (centre + spread) / (1 + z * z / of))
