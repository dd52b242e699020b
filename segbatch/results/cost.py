"""What a run cost, from ``run.json``: machines, bytes, requests, and money if prices are known.

Nothing is guessed: machines without an instance type have hours but no price, and only object
storage bills requests and transfer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from segbatch import storage
from segbatch.images.parts import KINDS, part_kind
from segbatch.results.prices import GB, Prices
from segbatch.results.query import sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.runinfo import Start

LIST_PAGE = 1000  # keys in one answer to a LIST request
IN_OBJECT_STORAGE = rf"^({'|'.join(sorted(storage.OBJECT_SCHEMES))})://"


class Machine(NamedTuple):
    """A kind of machine; ``instance`` and ``spot`` are ``None`` where no cluster file names it."""

    cpus: float
    gpus: float
    instance: str | None
    spot: bool | None


@dataclass(frozen=True)
class ObjectStorageUse:
    """What a run has in object storage: a share of its ``images``, and its ``rows`` or not.

    ``parts``: the share of its images that are parts of objects there. A block of them takes
    ``part_requests``.
    """

    images: float
    rows: bool
    parts: float = 0.0
    part_requests: float = 0.0


def object_storage_use(run: RunFolder) -> ObjectStorageUse:
    """What ``run`` has in object storage, by the URIs of its images and of the job's output.

    Raises as :func:`~segbatch.results.query.sql`.
    """
    counts = ["count(*)"]
    for fragment in ("", *(f"{kind.fragment}$" for kind in KINDS)):
        there = f"regexp_matches(uri, '{IN_OBJECT_STORAGE}')"
        counts.append(f"count(*) FILTER ({there} AND regexp_matches(uri, '{fragment}'))")
    [(images, stored, *parts)] = sql([run], f"SELECT {', '.join(counts)} FROM images").fetchall()
    output = run.info.job.get("output", run.uri)
    return ObjectStorageUse(
        stored / max(1, images),
        storage.scheme_of(output) in storage.OBJECT_SCHEMES,
        sum(parts) / max(1, images),
        sum(kind.requests * n for kind, n in zip(KINDS, parts, strict=True)) / max(1, images),
    )


def part_requests(uris: Sequence[str]) -> tuple[float, float]:
    """The share of ``uris`` that are parts of objects with others in one request, and the requests
    of a block like them.
    """
    kinds = [kind for kind in map(part_kind, uris) if kind is not None and kind.requests]
    number = max(1, len(uris))
    return len(kinds) / number, sum(kind.requests for kind in kinds) / number


def count_requests(
    images: int,
    listed: int,
    *,
    block_rows: int,
    file_rows: int,
    passing_failures: float = 0.0,
    tries: int = 1,
    parts: float = 0.0,
    part_requests: float = 0.0,
    headers: int = 0,
    views: int = 1,
) -> dict[str, int]:
    """Requests by kind for reading ``images`` and listing ``listed`` keys.

    GET: one for each object that is an image or has ``views`` of them, with ``tries`` of them for
    the share ``passing_failures``; ``part_requests`` for each block where the share ``parts`` of
    the images are parts of objects; ``headers`` of shards; the lease twice for each block and once
    for each file. PUT: one for each file of rows. Commits (60 an hour) and heartbeats (360 an hour)
    are left out.
    """
    blocks, files = math.ceil(images / block_rows), math.ceil(images / file_rows)
    objects = math.ceil(images / views * (1 - parts) * (1 + passing_failures * (tries - 1)))
    return {
        "get": objects + math.ceil(blocks * part_requests) + headers + 2 * blocks + files,
        "put": files + 3,
        "list": math.ceil(listed / LIST_PAGE),
    }


def cost_facts(starts: Sequence[Start], prices: Prices, stored: ObjectStorageUse) -> dict[str, str]:
    """The cost of all starts of a run, one line for each fact; unknown facts are empty."""
    seconds = _node_seconds(starts)
    asked = _requests(starts, stored)
    transferred = stored.images * sum(start.read_bytes for start in starts)
    return {
        "workers": _workers(starts),
        "machines": "; ".join(f"{_name(machine)}: {_hours(s)}" for machine, s in seconds.items()),
        "read and written": _bytes(starts),
        "requests, about": ", ".join(f"{n:,} {name.upper()}" for name, n in asked.items() if n),
        "estimated cost": _money(seconds, asked, transferred, prices),
    }


def _workers(starts: Sequence[Start]) -> str:
    """The number of workers, and the hours of all of them together, idle time included."""
    seconds: Counter[str] = Counter()
    for start in starts:
        seconds.update(start.stage_s)
    workers = [f"{s.workers} ({s.device})" if s.device else s.workers for s in starts if s.workers]
    known = "; ".join(dict.fromkeys(workers))
    if not seconds["predict"]:
        return known
    total = seconds["predict"] + seconds["wait"]
    share = seconds["predict"] / total
    spent = f"{_hours(total, 'worker-')}, {share:.0%} of them predicting"
    return f"{known}: {spent}" if known else spent


def _hours(seconds: float, of: str = "") -> str:
    hours = seconds >= 3600
    return f"{seconds / 3600:,.1f} {of}hours" if hours else f"{seconds / 60:,.1f} {of}minutes"


def _node_seconds(starts: Sequence[Start]) -> Mapping[Machine, float]:
    seconds: defaultdict[Machine, float] = defaultdict(float)
    for node in (node for start in starts for node in start.nodes):
        machine = Machine(node.cpus, node.gpus, node.instance, node.spot)
        seconds[machine] += node.seconds
    return seconds


def _name(machine: Machine) -> str:
    if machine.instance is None:
        gpus = f" and {machine.gpus:g} GPUs" if machine.gpus else ""
        return f"nodes of {machine.cpus:g} CPUs{gpus}"
    return f"{machine.instance} (spot)" if machine.spot else machine.instance


def _bytes(starts: Sequence[Start]) -> str:
    read = sum(start.read_bytes for start in starts)
    written = sum(start.written_bytes for start in starts)
    return f"{_size(read)} of images, {_size(written)} of rows" if read or written else ""


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB" if num_bytes >= GB else f"{num_bytes / 1e6:,.1f} MB"


def _requests(starts: Sequence[Start], stored: ObjectStorageUse) -> dict[str, int]:
    """Requests to object storage for the images that were read, counted as in a plan."""
    asked = Counter(get=0, put=0, list=0)
    for start in starts:
        if start.rows and start.block_rows and start.file_rows:
            rows = round(start.rows)
            if start.requests and stored.images:
                asked.update(get=round(start.requests))
            else:
                asked.update(get=_estimated_gets(start, stored))
            if stored.rows:
                of_all = count_requests(
                    rows, 0, block_rows=start.block_rows, file_rows=start.file_rows
                )
                asked.update(get=of_all["get"] - rows, put=of_all["put"])
    return asked


def _estimated_gets(start: Start, stored: ObjectStorageUse) -> int:
    """Requests for the images of a start that did not count them."""
    objects = round(start.rows * (stored.images - stored.parts))
    blocks = math.ceil(start.rows / (start.block_rows or 1))
    return objects + math.ceil(blocks * stored.part_requests)


def _money(
    seconds: Mapping[Machine, float], asked: dict[str, int], transferred: float, prices: Prices
) -> str:
    """An estimate of the money, if the price of every machine is known."""
    hourly = {m: prices.per_hour(m.instance, spot=bool(m.spot)) for m in seconds}
    unpriced = sorted({m.instance for m, price in hourly.items() if m.instance and price is None})
    if unpriced:
        return f"not known: no price of {', '.join(unpriced)}"
    if not hourly or None in hourly.values():
        return ""
    nodes = sum(seconds[machine] / 3600 * (price or 0.0) for machine, price in hourly.items())
    others = transferred / GB * prices.transfer_gb + prices.for_requests(asked)
    return (
        f"{nodes + others:,.2f} {prices.currency}: machines while they worked {nodes:,.2f},"
        f" requests and transfer {others:,.2f} (list prices of {prices.region or 'a table'},"
        f" {prices.date})"
    )
