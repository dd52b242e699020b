"""Offers: which nodes of a ``cluster.yaml`` could do a job, how long it takes and what it costs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segbatch.cluster.estimate import (
    BLOCKS_PER_S,
    Node,
    Solution,
    Throughput,
    Unit,
    UnitPart,
    Work,
    estimate,
    solve,
    start_up_s,
    throughput,
    with_threads,
)
from segbatch.cluster.measure import Measurement
from segbatch.config.job import Resources
from segbatch.jobs.runtime.nodes import ClusterFile, NodeType
from segbatch.jobs.runtime.sharing import READ_CPUS, worker_cpus
from segbatch.jobs.runtime.workers import fitting, pool_size, threads_on
from segbatch.results.prices import Prices

MARKETS = ("spot", "on_demand")


@dataclass(frozen=True)
class NodeOption:
    """Nodes that could do the job, by the name of their type; ``reason``, and no hours, where
    they could not, or nobody knows.

    ``images_per_second`` is that of all of them. ``money`` is that of nodes, requests and transfer,
    at the prices of spot and on_demand, ``None`` where one is missing; ``market`` is the one that
    ``cluster.yaml`` takes them from.
    """

    name: str
    market: str
    nodes: dict[str, int]
    reason: str | None = None
    images_per_second: float | None = None
    limit: str | None = None
    hours: float | None = None
    money: dict[str, float | None] | None = None


@dataclass(frozen=True)
class Wish:
    """What the user asks for: to be done in so many hours, for so much money."""

    deadline_h: float | None = None
    budget: float | None = None


@dataclass(frozen=True)
class _Choice:
    """Nodes that work together: so many of each type, or a fraction of one."""

    name: str
    parts: list[tuple[NodeType, float]]
    node: Node
    pace: Throughput
    sample: Measurement

    @property
    def per_worker(self) -> float:
        """Images per second of one predict worker."""
        return self.pace.bounds["device"] / self.node.workers


@dataclass(frozen=True)
class Terms:
    """What all options have in common; ``fixed`` is money however long the job takes."""

    images: int
    resources: Resources
    cluster: ClusterFile
    prices: Prices
    fixed: float
    wish: Wish


def node_options(samples: Sequence[Measurement], terms: Terms) -> list[NodeOption]:
    """What each type of node comes to, with and without others that prepare images for it."""
    found = []
    for kind in terms.cluster.workers:
        choices = _choices(kind, samples, terms)
        if isinstance(choices, str):
            found.append(NodeOption(kind.name, _market(kind), {}, choices))
        else:
            found += [_option(choice, terms) for choice in choices]
    return found


# ------------------------------------------------------------------------------------- choices


def _choices(kind: NodeType, samples: Sequence[Measurement], terms: Terms) -> list[_Choice] | str:
    """What may be done with one type of node, or why nobody knows how long it takes."""
    instance = terms.prices.instances.get(kind.instance or "")
    gbps = instance.gbps if instance else None
    if not kind.gpus:
        sample = next((sample for sample in samples if not sample.on_gpu), None)
        if sample is None or terms.resources.device == "cuda":
            return "prepares images for the GPUs of other nodes"
        asked = terms.resources.cpus_per_worker
        threads = threads_on(kind.cpus) if asked == "auto" else int(asked)
        node = Node(
            cpus=kind.cpus,
            cores=kind.cpus,
            workers=fitting(kind.cpus - READ_CPUS, threads),
            worker_cpus=worker_cpus(threads),
            gbps=gbps,
        )
        found = throughput(with_threads(sample.cost, threads / sample.threads), node)
        if not found.images_per_second:
            return f"has no room for workers of {threads} CPUs and for what reads images for them"
        return [_Choice(kind.name, [(kind, 1.0)], node, found, sample)]
    gpu = kind.gpu or (instance.gpu if instance else None)
    if gpu is None:
        return f"which GPU {kind.instance or 'it'} has stands in no table"
    sample = next((sample for sample in samples if _is(gpu, sample.device)), None)
    if sample is None:
        return f"no {gpu} was measured"
    node = Node(
        cpus=kind.cpus,
        cores=kind.cpus,
        workers=kind.gpus / terms.resources.gpus_per_worker,
        worker_cpus=worker_cpus(sample.threads),
        gbps=gbps,
    )
    alone = throughput(sample.cost, node)
    choices = [_Choice(kind.name, [(kind, 1.0)], node, alone, sample)]
    if not alone.images_per_second:
        choices = []
    helper = next((other for other in terms.cluster.workers if not other.gpus), None)
    if helper is not None and alone.bounds["cpus"] < alone.bounds["device"]:
        missing = alone.bounds["device"] * sample.cost.slot_s
        missing -= max(0.0, node.cpus - node.workers * node.worker_cpus)
        share = missing / helper.cpus
        cpus = node.cpus + missing
        together = throughput(sample.cost, replace(node, cpus=cpus, cores=cpus))
        name = f"{kind.name} + {helper.name}"
        choices.append(_Choice(name, [(kind, 1.0), (helper, share)], node, together, sample))
    return choices or "has no CPU left over to read images with"


def _is(gpu: str, device: str) -> bool:
    """Whether a GPU of a table (``A10G``) is the one that its driver calls ``NVIDIA A10G``."""
    words = re.split(r"[\s_-]+", device.lower())
    return re.split(r"[\s_-]+", gpu.lower())[0] in words


def _market(kind: NodeType) -> str:
    return "spot" if kind.spot else "on_demand"


# --------------------------------------------------------------------------------------- money


def _option(choice: _Choice, terms: Terms) -> NodeOption:
    prices, wish, head = terms.prices, terms.wish, terms.cluster.head
    market = _market(choice.parts[0][0])
    most = max(1, int(min(part.most / share for part, share in choice.parts)))
    caps = {"driver": BLOCKS_PER_S * choice.sample.block_rows}
    _, workers = pool_size(terms.resources, now=1)
    if workers is not None:
        caps["resources.workers"] = workers * choice.per_worker
        most = min(most, math.ceil(workers / choice.node.workers))
    cap = min(caps, key=caps.__getitem__)
    work = Work(
        images=terms.images,
        start_up_s=start_up_s(choice.sample.load_s, prices.node_start_minutes * 60),
        fixed=terms.fixed,
        head=(prices.of(head.instance, spot=False) or 0.0) if head else 0.0,
        most_per_second=caps[cap],
    )
    units = {
        name: Unit(
            [
                UnitPart(part.name, share, prices.of(part.instance, spot=spot))
                for part, share in choice.parts
                # What only helps is taken from where the file takes it.
                for spot in [name == "spot" if part is choice.parts[0][0] else part.spot]
            ],
            choice.pace,
            most,
        )
        for name in MARKETS
    }
    found, reason = estimate(work, units[market], most), None
    if wish.deadline_h is not None or wish.budget is not None:
        solution = solve(work, units[market], wish.deadline_h, wish.budget)
        found = solution.chosen or solution.closest
        reason = None if solution.chosen else _impossible(solution, prices.currency, wish)
    return NodeOption(
        name=choice.name,
        market=market,
        nodes={part.name: part.nodes(found.units) for part in units[market].parts},
        reason=reason,
        images_per_second=found.images_per_second,
        limit=choice.pace.limit if found.images_per_second < work.most_per_second else cap,
        hours=found.hours,
        money={name: estimate(work, unit, found.units).money for name, unit in units.items()},
    )


def _impossible(solution: Solution, currency: str, wish: Wish) -> str:
    """Why no number of nodes does what was asked."""
    fastest, cheapest = solution.fastest, solution.cheapest
    if cheapest is None or cheapest.money is None:
        if wish.budget is not None:
            return "has no price in the table, so that no budget can be held"
        return f"impossible: at the fastest {fastest.hours:.2g} h ({fastest.units} of them)"
    return (
        f"impossible: at the fastest {fastest.hours:.2g} h ({fastest.units} of them), at the"
        f" cheapest {cheapest.money:.2f} {currency} ({cheapest.units} of them)"
    )
