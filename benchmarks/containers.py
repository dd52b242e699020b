"""The same photographs loose, in tar shards and in a table: how fast they are listed and read.

Part of `scripts/bench data`. Everything goes through the S3 server of the tests, in this process.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.config.images import parse_source
from segbatch.images import manifest
from segbatch.images.fetch import fetch
from segbatch.images.place import has_places
from segbatch.jobs.preflight import MAX_BLOCK_ROWS, MAX_PART_ROWS
from segbatch.results.schema import RESERVED_COLUMNS

SHARD_IMAGES = 1000
ROW_GROUP = 100
LIMITS = storage.ReadLimits()


def compare(prefix: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each way to store the photographs below ``prefix``, which takes turns."""
    uris = [file.uri for file in storage.list_files(prefix)]
    files = [data for data in storage.read_many(uris, LIMITS) if isinstance(data, bytes)]
    root = prefix.rstrip("/")
    for number in range(0, len(files), SHARD_IMAGES):
        some = files[number : number + SHARD_IMAGES]
        storage.write_bytes(f"{root}-shards/{number:08d}.tar", _shard(some, number))
        storage.write_bytes(f"{root}-table/{number:08d}.parquet", _table(some))
    sources = {
        "loose objects": {"prefix": prefix},
        f"shards of {SHARD_IMAGES}": {"shards": f"{root}-shards/"},
        f"Parquet, row groups of {ROW_GROUP}": {"table": f"{root}-table/"},
    }
    rows = {name: _Row(name, len(files)) for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            rows[name].measure(source)
    return [row.figures() for row in rows.values()]


class _Row:
    """The best of several rounds for one kind of source."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.list_s = self.read_s = self.cpu_s = float("inf")
        self.listing: Counter[str] = Counter()
        self.reading: Counter[str] = Counter()

    def measure(self, source: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-containers-") as folder:
            start = time.perf_counter()
            with counted() as self.listing:
                frozen = manifest.freeze(
                    [parse_source(source)], folder, reserved=RESERVED_COLUMNS, leave_out=folder
                )
            self.list_s = min(self.list_s, time.perf_counter() - start)
            images = pa.concat_tables(manifest.read_rows(folder, file) for file in frozen.files)
        block = MAX_PART_ROWS if has_places(images) else MAX_BLOCK_ROWS
        start, cpu = time.perf_counter(), time.process_time()
        with counted() as self.reading:
            for first in range(0, len(images), block):
                fetched = fetch(images.slice(first, block), LIMITS)
                assert fetched["error"].null_count == len(fetched)
        self.read_s = min(self.read_s, time.perf_counter() - start)
        self.cpu_s = min(self.cpu_s, time.process_time() - cpu)

    def figures(self) -> dict[str, Any]:
        return {
            "photographs": self.name,
            "images/s": self.number / self.read_s,
            "ms of CPU an image": 1000 * self.cpu_s / self.number,
            "requests an image": self.reading["requests"] / self.number,
            "bytes an image": self.reading["bytes"] / self.number,
            "listing: images/s": self.number / self.list_s,
            "listing: reads an image": self.listing["requests"] / self.number,
            "listing: bytes an image": self.listing["bytes"] / self.number,
        }


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the requests for objects in the block, and the bytes that they ask for.

    Pages of a listing are not counted: obstore does not tell how many it asks for.
    """
    counts: Counter[str] = Counter()
    get_async, get_range = obstore.get_async, obstore.get_range
    head, head_async = obstore.head, obstore.head_async

    async def count_get(*args: Any, **kwargs: Any) -> Any:
        result = await get_async(*args, **kwargs)
        start, end = result.range
        counts.update(requests=1, bytes=end - start)
        return result

    def count_range(*args: Any, **kwargs: Any) -> Any:
        counts.update(requests=1, bytes=kwargs["end"] - kwargs["start"])
        return get_range(*args, **kwargs)

    def count_head(*args: Any, **kwargs: Any) -> Any:
        counts.update(requests=1)
        return head(*args, **kwargs)

    async def count_head_async(*args: Any, **kwargs: Any) -> Any:
        counts.update(requests=1)
        return await head_async(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(obstore, "get_async", count_get))
        stack.enter_context(patch.object(obstore, "get_range", count_range))
        stack.enter_context(patch.object(obstore, "head", count_head))
        stack.enter_context(patch.object(obstore, "head_async", count_head_async))
        yield counts


def _shard(files: Sequence[bytes], first: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, data in enumerate(files, first):
            header = tarfile.TarInfo(f"{number:08d}.jpg")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return sink.getvalue()


def _table(files: Sequence[bytes]) -> bytes:
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": data, "path": None} for data in files], type_)
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"image": images}), sink, row_group_size=ROW_GROUP, use_dictionary=False
    )
    return sink.getvalue()
