"""Cost: what a run took, from ``run.json``: machines, bytes, requests, and money if it is known.

Nothing is guessed: machines that no cluster file names have hours and no money, and only object
storage bills requests and transfer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segbatch import storage
from segbatch.images.video import FRAGMENT
from segbatch.results.prices import GB, Prices
from segbatch.results.query import sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.runinfo import Start

Kind = tuple[float, float, str | None, bool | None]  # CPUs, GPUs, instance, whether it is spot


IN_OBJECT_STORAGE = rf"^({'|'.join(sorted(storage.OBJECT_SCHEMES))})://"


FRAME = rf"{FRAGMENT}$"  # of a video, which is not asked for once a frame


@dataclass(frozen=True)
class Stored:
    """What of a run is in object storage: ``images``, the share of them that are objects of their
    own, and whether ``rows`` are.
    """

    images: float
    rows: bool


def find_stored(run: RunFolder) -> Stored:
    """By the URIs of its images and of the output of its job. Raises as :meth:`Run.sql`."""
    [(images, objects)] = sql(
        [run],
        f"SELECT count(*), count(*) FILTER (regexp_matches(uri, '{IN_OBJECT_STORAGE}')"
        f" AND NOT regexp_matches(uri, '{FRAME}')) FROM images",
    ).fetchall()
    output = run.info.job.get("output", run.uri)
    return Stored(
        objects / images if images else 0.0, storage.scheme_of(output) in storage.OBJECT_SCHEMES
    )


def facts(starts: Sequence[Start], prices: Prices, stored: Stored) -> dict[str, str]:
    """What the starts of a run took together, each fact in a line; without what is not known."""
    seconds = _node_seconds(starts)
    asked = _requests(starts, stored)
    transferred = stored.images * sum(start.read_bytes for start in starts)
    return {
        "workers": _workers(starts),
        "machines": "; ".join(f"{_name(kind)}: {_hours(s)}" for kind, s in seconds.items()),
        "read and written": _bytes(starts),
        "requests, about": ", ".join(f"{n:,} {name.upper()}" for name, n in asked.items() if n),
        "estimated cost": _money(seconds, asked, transferred, prices),
    }


def _workers(starts: Sequence[Start]) -> str:
    """How many there were, and the hours of all of them, with images or waiting for some."""
    seconds: Counter[str] = Counter()
    for start in starts:
        seconds.update(start.stage_s)
    known = "; ".join(dict.fromkeys(f"{s.workers}{_device(s)}" for s in starts if s.workers))
    if not seconds["predict"]:
        return known
    total = seconds["predict"] + seconds["wait"]
    share = seconds["predict"] / total
    spent = f"{_hours(total, 'worker-')}, {share:.0%} of them predicting"
    return f"{known}: {spent}" if known else spent


def _hours(seconds: float, of: str = "") -> str:
    hours = seconds >= 3600
    return f"{seconds / 3600:,.1f} {of}hours" if hours else f"{seconds / 60:,.1f} {of}minutes"


def _device(start: Start) -> str:
    return f" ({start.device})" if start.device else ""


def _node_seconds(starts: Sequence[Start]) -> Mapping[Kind, float]:
    seconds: defaultdict[Kind, float] = defaultdict(float)
    for node in (node for start in starts for node in start.nodes):
        seconds[node.cpus, node.gpus, node.instance, node.spot] += node.seconds
    return seconds


def _name(kind: Kind) -> str:
    cpus, gpus, instance, spot = kind
    size = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    return f"nodes of {size}" if instance is None else f"{instance}{' (spot)' if spot else ''}"


def _bytes(starts: Sequence[Start]) -> str:
    read = sum(start.read_bytes for start in starts)
    written = sum(start.written_bytes for start in starts)
    return f"{_size(read)} of images, {_size(written)} of rows" if read or written else ""


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB" if num_bytes >= GB else f"{num_bytes / 1e6:,.1f} MB"


def _requests(starts: Sequence[Start], stored: Stored) -> dict[str, int]:
    """As a plan reckons them of the images that were read, of object storage alone."""
    asked = Counter(get=0, put=0, list=0)
    for start in starts:
        if start.rows and start.block_rows and start.file_rows:
            rows = round(start.rows)
            asked.update(get=round(rows * stored.images))
            if stored.rows:
                of_all = requests(rows, 0, block_rows=start.block_rows, file_rows=start.file_rows)
                asked.update(get=of_all["get"] - rows, put=of_all["put"])
    return asked


def _money(
    seconds: Mapping[Kind, float], asked: dict[str, int], transferred: float, prices: Prices
) -> str:
    """An estimate where every machine has its price."""
    each = {kind: prices.of(kind[2], spot=bool(kind[3])) for kind in seconds}
    unpriced = sorted({str(kind[2]) for kind, price in each.items() if kind[2] and price is None})
    if unpriced:
        return f"not known: no price of {', '.join(unpriced)}"
    if not each or None in each.values():
        return ""
    nodes = sum(seconds[kind] / 3600 * (price or 0.0) for kind, price in each.items())
    others = transferred / GB * prices.transfer_gb + prices.of_requests(asked)
    return (
        f"{nodes + others:,.2f} {prices.currency}: machines while they worked {nodes:,.2f},"
        f" requests and transfer {others:,.2f} (list prices of {prices.region or 'a table'},"
        f" {prices.date})"
    )


# ------------------------------------------------------------------------------------ requests

LIST_PAGE = 1000  # keys that one LIST answers with


def requests(
    images: int,
    listed: int,
    *,
    block_rows: int,
    file_rows: int,
    passing_failures: float = 0.0,
    tries: int = 1,
) -> dict[str, int]:
    """Requests by kind: ``images`` are read, ``listed`` keys are looked at.

    GET: one an image, and for each share of ``passing_failures`` as many more as there are
    ``tries``; the lease twice a block and once a file. PUT: a file of rows. Commits (60 an hour)
    and heartbeats (360) are left out.
    """
    blocks, files = math.ceil(images / block_rows), math.ceil(images / file_rows)
    return {
        "get": math.ceil(images * (1 + passing_failures * (tries - 1))) + 2 * blocks + files,
        "put": files + 3,
        "list": math.ceil(listed / LIST_PAGE),
    }
