"""Census: how many images a job has, and a few of them drawn from everywhere. Writes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segbatch import storage
from segbatch.config.images import Glob, Prefix
from segbatch.config.job import SegmentJob
from segbatch.images import manifest
from segbatch.jobs.runstate import RunState
from segbatch.results.encode import carried
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.results.table import Table

SEED = 0  # the same images each time, as long as the list is the same
SLICES_READ = 8  # files of a frozen manifest that images are drawn from: one may be 100 MB


@dataclass(frozen=True)
class Census:
    """What a job's sources hold; ``images`` are at least so many where not ``whole``.

    ``done`` of them have their rows already. ``listed`` keys were looked at to count them, none for
    a manifest. ``sample`` has ``image_id``, ``uri`` and the user's columns as they travel, sorted
    by ``image_id``.
    """

    images: int
    whole: bool
    done: int
    listed: int
    skipped: dict[str, int]
    sample: pa.Table


class Draw:
    """Some rows of a stream, each as likely as any other: every row draws a number, and the rows
    with the smallest stay.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(SEED)
        self._numbers = np.empty(0)
        self._rows: pa.Table | None = None
        self.seen = 0

    def add(self, batch: pa.RecordBatch) -> None:
        numbers = self._random.random(batch.num_rows)
        full = len(self._numbers) == self._size
        chosen = np.flatnonzero(numbers < (self._numbers.max() if full else 1.0))
        ids = pa.array(self.seen + chosen, pa.int64())
        rows = pa.Table.from_batches([batch]).take(pa.array(chosen)).add_column(0, "image_id", ids)
        self.seen += batch.num_rows
        self._numbers = np.concatenate([self._numbers, numbers[chosen]])
        self._rows = rows if self._rows is None else pa.concat_tables([self._rows, rows])
        smallest = np.argsort(self._numbers)[: self._size]
        self._numbers, self._rows = self._numbers[smallest], self._rows.take(pa.array(smallest))

    def rows(self) -> pa.Table:
        """Those that stayed, by their number in the stream."""
        if self._rows is None:
            raise ValueError("no batch was added")
        return self._rows.sort_by("image_id").combine_chunks()


def count_images(job: SegmentJob, size: int, list_s: float) -> Census:
    """List the sources, for ``list_s`` seconds at most, and draw ``size`` images.

    Raises what freezing them raises.
    """
    start, whole = time.monotonic(), True
    draw = Draw(size)
    reserved = RESERVED_COLUMNS | set(job.formulas)
    with manifest.listed(job.sources, reserved=reserved, leave_out=job.output) as listing:
        for batch in listing.batches:
            if draw.seen and time.monotonic() - start >= list_s:
                whole = False
                break
            draw.add(batch)
        skipped = dict(sorted(listing.skipped.items()))
    lists = any(isinstance(source, Prefix | Glob) for source in job.sources)
    return Census(
        images=draw.seen,
        whole=whole,
        done=0,
        listed=draw.seen + sum(skipped.values()) if lists else 0,
        skipped=skipped,
        sample=_carried(draw.rows()),
    )


def count_left(state: RunState, size: int) -> Census:
    """What a run that has begun still has to do: its list is frozen, and its files are counted."""
    rows = Table.open(storage.join(state.uri, "rows"))
    done = sum(file["rows"] for file in rows.files()) if rows is not None else 0
    random = np.random.default_rng(SEED)
    slices = np.linspace(0, len(state.bounds) - 1, min(SLICES_READ, len(state.bounds))).astype(int)
    each = -(-size // len(slices))
    drawn = []
    for first, end in (state.bounds[index] for index in slices):
        ids = random.choice(end - first, min(each, end - first), replace=False) + first
        drawn.append(state.images_of(np.sort(ids).astype(np.int64)))
    return Census(
        images=state.num_images,
        whole=True,
        done=done,
        listed=0,
        skipped={},
        sample=pa.concat_tables(drawn).slice(0, size),
    )


def _carried(images: pa.Table) -> pa.Table:
    return images.rename_columns([carried(name) for name in images.column_names])
