"""Estimate: from what a sample took to images per second, hours and money. Nothing but arithmetic.

One node has ``cpus`` CPUs that Ray gives out, and predict workers that take some of them. With the
seconds that an image took in each stage (``wall``: of a clock, ``cpu``: of all cores together):

======== =========================================== =======================================
bound    images per second                           what it means
======== =========================================== =======================================
device   workers ÷ wall(predict)                     the predict workers never wait
cpus     (cpus − CPUs of the workers) ÷ slots        the CPUs beside them never wait, where
                                                     slots = wall of fetch, decode, encode and
                                                     write, each times the CPUs that it asks
                                                     Ray for (:mod:`segbatch.jobs.runtime.sharing`)
cores    cores ÷ (all cpu + overhead of a block)     no core ever waits
network  gigabits ÷ bits of an image                 the line never waits
======== =========================================== =======================================

A node's pace is the least of them. ``n`` nodes are ``n`` times as fast, up to what one driver can
hand out (``BLOCKS_PER_S``). Hours are ``start-up + images ÷ pace``, money is
``hours × (nodes × price of a node + price of the head) + requests + transfer``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS

# Measured on 2 shared x86-64 cores, 2026-11 (docs/clusters/planning.md says how).
BLOCKS_PER_S = 24.0  # small blocks that one driver handed out in a second


BLOCK_CPU_S = 2 / BLOCKS_PER_S  # so much of a core went into each


COMMAND_S = 33.0  # of `segbatch run`: its imports, Ray's start and end, the statistics


WORKER_START_S = 18.0  # from there until the first image is predicted, the model's loading aside


MAX_NODES = 1000


STAGES = {"fetch": "network", "decode": "decode", "predict": "device", "encode": "encode"}


@dataclass(frozen=True)
class StageCost:
    """Seconds of one stage for one image: of a clock, and of all cores together."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class ImageCost:
    """What one image took, on average, and how many go into a block.

    ``stages`` has fetch, decode, predict, encode and write. ``read_bytes`` came over the network.
    """

    stages: Mapping[str, StageCost]
    read_bytes: float
    block_rows: int

    @property
    def slot_s(self) -> float:
        """CPUs of Ray's × seconds that the stages beside the predict workers hold."""
        wall = {name: cost.wall_s for name, cost in self.stages.items()}
        read_s = READ_CPUS * (wall["fetch"] + wall["decode"])
        return read_s + ENCODE_CPUS * wall["encode"] + PARQUET_CPUS * wall["write"]

    @property
    def core_s(self) -> float:
        """Cores × seconds that are spent in all."""
        cpu_s = sum(cost.cpu_s for cost in self.stages.values())
        return cpu_s + BLOCK_CPU_S / self.block_rows

    @property
    def slowest_beside(self) -> str:
        """What the CPUs beside the predict workers are held by most."""
        beside = {name: self.stages[name].wall_s for name in ("fetch", "decode", "encode", "write")}
        return _named(max(beside, key=beside.__getitem__))

    @property
    def heaviest(self) -> str:
        """What the cores are busy with most."""
        return _named(max(self.stages, key=lambda name: self.stages[name].cpu_s))


def _named(stage: str) -> str:
    return STAGES.get(stage, stage)


@dataclass(frozen=True)
class Node:
    """One machine as the stages see it. ``workers`` predict, with ``worker_cpus`` CPUs each."""

    cpus: float  # that Ray gives out
    cores: float
    workers: float
    worker_cpus: float
    gbps: float | None = None


@dataclass(frozen=True)
class Throughput:
    """Images per second, and what limits them; ``bounds`` are the rows of the table above."""

    images_per_second: float
    limit: str
    bounds: Mapping[str, float] = field(default_factory=dict)


def throughput(cost: ImageCost, node: Node) -> Throughput:
    """The pace of one node."""
    bounds = {
        "device": node.workers / cost.stages["predict"].wall_s,
        "cpus": max(0.0, node.cpus - node.workers * node.worker_cpus) / cost.slot_s,
        "cores": node.cores / cost.core_s,
    }
    if node.gbps is not None:
        bounds["network"] = node.gbps * 1e9 / 8 / cost.read_bytes if cost.read_bytes else math.inf
    least = min(bounds, key=bounds.__getitem__)
    names = {"cpus": cost.slowest_beside, "cores": cost.heaviest}
    return Throughput(bounds[least], names.get(least, least), bounds)


def with_threads(cost: ImageCost, more: float) -> ImageCost:
    """What an image costs where a worker on the CPU has ``more`` times the threads."""
    predict = cost.stages["predict"]
    stages = {**cost.stages, "predict": replace(predict, wall_s=predict.wall_s / more)}
    return replace(cost, stages=stages)


def cpus_beside_worker(cost: ImageCost) -> float:
    """CPUs that prepare images, and store results, as fast as one worker predicts."""
    return cost.slot_s / cost.stages["predict"].wall_s


def start_up_s(load_s: float, node_start_s: float = 0.0) -> float:
    """Seconds before the first image: nodes, the processes on them, the model."""
    return node_start_s + WORKER_START_S + load_s


# ------------------------------------------------------------------------------ hours and money


@dataclass(frozen=True)
class UnitPart:
    """Nodes of one type: how many belong to a unit, and the price of one for an hour."""

    name: str
    share: float
    price: float | None  # not in the table

    def nodes(self, units: int) -> int:
        """Whole nodes for so many units."""
        return math.ceil(self.share * units - 1e-9)


@dataclass(frozen=True)
class Unit:
    """Nodes that work together at a pace; the cluster may have ``most`` such units."""

    parts: Sequence[UnitPart]
    pace: Throughput
    most: int

    def price(self, units: int) -> float | None:
        """Of so many units for an hour; ``None`` if the table has not all of it."""
        total = 0.0
        for part in self.parts:
            if part.price is None:
                return None
            total += part.nodes(units) * part.price
        return total


@dataclass(frozen=True)
class Work:
    """What is to be done: ``images``, after ``start_up_s``; ``fixed`` is money however long it
    takes, ``head`` the price of the head node for an hour; at most ``most_per_second`` images.
    """

    images: int
    start_up_s: float
    fixed: float
    head: float
    most_per_second: float = math.inf


@dataclass(frozen=True)
class Estimate:
    """``units`` of a kind: how long they take, and what that costs."""

    units: int
    images_per_second: float
    hours: float
    money: float | None


def estimate(work: Work, unit: Unit, units: int) -> Estimate:
    """What ``units`` of a kind come to."""
    rate = min(units * unit.pace.images_per_second, work.most_per_second)
    seconds = 0.0 if not work.images else work.images / rate if rate else math.inf
    hours = (work.start_up_s + seconds) / 3600
    price = unit.price(units)
    money = None if price is None else hours * (price + work.head) + work.fixed
    return Estimate(units, rate, hours, money)


@dataclass(frozen=True)
class Solution:
    """``offer`` does what was asked; ``None`` if nothing does. ``cheapest`` needs a price."""

    chosen: Estimate | None
    fastest: Estimate
    cheapest: Estimate | None
    closest: Estimate


def solve(work: Work, unit: Unit, deadline_h: float | None, budget: float | None) -> Solution:
    """The fewest units that end by the deadline, within the budget if there is one.

    With a budget alone: the most that the cluster may have and the budget allows. The deadline may
    take more than the cluster may have now, ``MAX_NODES`` at most.
    """
    most = unit.most if deadline_h is None else MAX_NODES
    offers = [estimate(work, unit, units) for units in range(1, most + 1)]
    good = [
        o
        for o in offers
        if (deadline_h is None or o.hours <= deadline_h)
        and (budget is None or (o.money is not None and o.money <= budget))
    ]
    fastest = min(offers, key=lambda o: o.hours)
    priced = [o for o in offers if o.money is not None]
    cheapest = min(priced, key=lambda o: o.money or 0.0, default=None)
    in_order = good if deadline_h is not None else good[::-1]
    late = deadline_h is not None and fastest.hours > deadline_h
    return Solution(
        in_order[0] if good else None, fastest, cheapest, fastest if late else cheapest or fastest
    )


def share_at_most(seen: int, of: int) -> float:
    """The largest share, 0 to 1, that fits ``seen`` of ``of`` in 95 of 100 samples.

    Wilson's score interval, one-sided (z = 1.645): E. B. Wilson, JASA 22 (1927), p. 209.
    """
    if not of:
        return 1.0
    z, share = 1.645, seen / of
    centre = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return min(1.0, (centre + spread) / (1 + z * z / of))
