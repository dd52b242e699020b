"""Which nodes of a ``cluster.yaml`` could do a job, in how many hours and for how much money."""

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
class Wish:
    """The deadline and the budget that the user gives; ``None``: none."""

    deadline_h: float | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Terms:
    """What all options of a job have in common."""

    images: int
    resources: Resources
    cluster: ClusterFile
    prices: Prices
    fixed_cost: float  # money that does not depend on how long the job takes
    wish: Wish


@dataclass(frozen=True)
class NodeOption:
    """Nodes that could do the job, and what it would take on them.

    ``nodes`` counts them by node type. ``reason`` says why they cannot do the job or meet the wish;
    if nothing is known of them, everything after it is ``None``.
    """

    name: str
    market: str  # spot or on_demand: where cluster.yaml takes them from
    nodes: dict[str, int]
    reason: str | None = None
    images_per_second: float | None = None  # of all nodes together
    limit: str | None = None
    hours: float | None = None
    money: dict[str, float | None] | None = None  # in all, by market; None: a price is unknown


@dataclass(frozen=True)
class _Group:
    """Node types that work together, with the throughput of one node of the first type."""

    name: str
    parts: list[tuple[NodeType, float]]  # how many nodes of each, which may be a fraction
    node: Node
    throughput: Throughput
    measured: Measurement

    @property
    def per_worker(self) -> float:
        """Images per second of one predict worker."""
        return self.throughput.bounds["device"] / self.node.workers


def node_options(measurements: Sequence[Measurement], terms: Terms) -> list[NodeOption]:
    """The options for each node type, with and without others that prepare images for it."""
    found = []
    for kind in terms.cluster.workers:
        groups = (_gpu_groups if kind.gpus else _cpu_groups)(kind, measurements, terms)
        if isinstance(groups, str):
            found.append(NodeOption(kind.name, _market(kind), {}, reason=groups))
        else:
            found += [_option(group, terms) for group in groups]
    return found


def _cpu_groups(
    kind: NodeType, measurements: Sequence[Measurement], terms: Terms
) -> list[_Group] | str:
    """Nodes that predict on their CPUs, or the reason why nothing is known of them."""
    measured = next((each for each in measurements if not each.on_gpu), None)
    if measured is None or terms.resources.device == "cuda":
        return "prepares images for the GPUs of other nodes"
    requested = terms.resources.cpus_per_worker
    threads = threads_on(kind.cpus) if requested == "auto" else int(requested)
    node = Node(
        cpus=kind.cpus,
        cores=kind.cpus,
        workers=fitting(kind.cpus - READ_CPUS, threads),
        worker_cpus=worker_cpus(threads),
        gbps=_gbps(kind, terms.prices),
    )
    reached = throughput(with_threads(measured.cost, threads / measured.threads), node)
    if not reached.images_per_second:
        return f"has no room for workers of {threads} CPUs and for reading images for them"
    return [_Group(kind.name, [(kind, 1.0)], node, reached, measured)]


def _gpu_groups(
    kind: NodeType, measurements: Sequence[Measurement], terms: Terms
) -> list[_Group] | str:
    """Nodes that predict on their GPUs, alone and with CPU nodes that prepare images for them.

    Or the reason why nothing is known of them.
    """
    instance = terms.prices.instances.get(kind.instance or "")
    gpu = kind.gpu or (instance.gpu if instance else None)
    if gpu is None:
        return f"neither cluster.yaml nor the prices say which GPU {kind.instance or 'it'} has"
    measured = next((each for each in measurements if _same_gpu(gpu, each.device)), None)
    if measured is None:
        return f"no {gpu} was measured"
    node = Node(
        cpus=kind.cpus,
        cores=kind.cpus,
        workers=kind.gpus / terms.resources.gpus_per_worker,
        worker_cpus=worker_cpus(measured.threads),
        gbps=_gbps(kind, terms.prices),
    )
    alone = throughput(measured.cost, node)
    groups = []
    if alone.images_per_second:
        groups.append(_Group(kind.name, [(kind, 1.0)], node, alone, measured))
    helper = next((other for other in terms.cluster.workers if not other.gpus), None)
    if helper is not None and alone.bounds["cpus"] < alone.bounds["device"]:
        missing = alone.bounds["device"] * measured.cost.slot_s
        missing -= max(0.0, node.cpus - node.workers * node.worker_cpus)
        cpus = node.cpus + missing
        together = throughput(measured.cost, replace(node, cpus=cpus, cores=cpus))
        name = f"{kind.name} + {helper.name}"
        parts = [(kind, 1.0), (helper, missing / helper.cpus)]
        groups.append(_Group(name, parts, node, together, measured))
    return groups or "has no CPU left to read images with"


def _same_gpu(gpu: str, device: str) -> bool:
    """Whether a GPU of a table (``A10G``) is the one that its driver calls ``NVIDIA A10G``."""
    words = re.split(r"[\s_-]+", device.lower())
    return re.split(r"[\s_-]+", gpu.lower())[0] in words


def _gbps(kind: NodeType, prices: Prices) -> float | None:
    instance = prices.instances.get(kind.instance or "")
    return instance.gbps if instance else None


def _market(kind: NodeType) -> str:
    return "spot" if kind.spot else "on_demand"


# ------------------------------------------------------------------------------ hours and money


def _option(group: _Group, terms: Terms) -> NodeOption:
    """The number of nodes of a group, with their hours and money."""
    prices, wish, head = terms.prices, terms.wish, terms.cluster.head
    of_each = min(kind.most / share for kind, share in group.parts)
    in_all = terms.cluster.most / sum(share for _, share in group.parts)
    max_units = max(1, int(min(of_each, in_all)))
    caps = {"driver": BLOCKS_PER_S * group.measured.block_rows}
    _, max_workers = pool_size(terms.resources, now=1)
    if max_workers is not None:
        caps["resources.workers"] = max_workers * group.per_worker
        max_units = min(max_units, math.ceil(max_workers / group.node.workers))
    cap = min(caps, key=caps.__getitem__)
    work = Work(
        images=terms.images,
        start_up_s=start_up_s(group.measured.load_s, prices.node_start_minutes * 60),
        fixed_cost=terms.fixed_cost,
        head_price=(prices.per_hour(head.instance, spot=False) or 0.0) if head else 0.0,
        max_images_per_second=caps[cap],
    )
    market = _market(group.parts[0][0])
    units = {
        name: Unit(_priced_parts(group, name, prices), group.throughput, max_units)
        for name in MARKETS
    }
    chosen, reason = estimate(work, units[market], max_units), None
    if wish.deadline_h is not None or wish.budget is not None:
        solution = solve(work, units[market], wish.deadline_h, wish.budget)
        chosen = solution.chosen or solution.closest
        reason = None if solution.chosen else _impossible(solution, prices.currency, wish)
    capped = chosen.images_per_second >= work.max_images_per_second
    return NodeOption(
        name=group.name,
        market=market,
        nodes={part.name: part.nodes(chosen.units) for part in units[market].parts},
        reason=reason,
        images_per_second=chosen.images_per_second,
        limit=cap if capped else group.throughput.limit,
        hours=chosen.hours,
        money={name: estimate(work, unit, chosen.units).money for name, unit in units.items()},
    )


def _priced_parts(group: _Group, market: str, prices: Prices) -> list[UnitPart]:
    """The parts of a group with the first one's price in ``market``.

    A helper's price stays that of the market where ``cluster.yaml`` takes it from.
    """
    (first, share), *helpers = group.parts
    parts = [UnitPart(first.name, share, prices.per_hour(first.instance, spot=market == "spot"))]
    return parts + [
        UnitPart(helper.name, share, prices.per_hour(helper.instance, spot=helper.spot))
        for helper, share in helpers
    ]


def _impossible(solution: Solution, currency: str, wish: Wish) -> str:
    """Why no number of nodes meets the deadline and the budget."""
    fastest, cheapest = solution.fastest, solution.cheapest
    if cheapest is None or cheapest.money is None:
        if wish.budget is not None:
            return "has no price in the table, so a budget cannot be checked"
        return f"impossible: at the fastest {fastest.hours:.2g} h ({fastest.units} of them)"
    return (
        f"impossible: at the fastest {fastest.hours:.2g} h ({fastest.units} of them), at the"
        f" cheapest {cheapest.money:.2f} {currency} ({cheapest.units} of them)"
    )
