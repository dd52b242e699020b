"""Measurement: a few images go through the real stages here and now, and what that took. Without Ray.

Stages run one after the other, so that the seconds of a clock and of the cores belong to one. The
first batch is not counted: libraries do much once. Rows are written to a temporary folder.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segbatch.cluster.estimate import ImageCost, Node, StageCost
from segbatch.config.job import SegmentJob
from segbatch.console import say
from segbatch.errors import CredentialsRefused
from segbatch.images.decode import decode
from segbatch.jobs.preflight import SAMPLE_IMAGES, Prepared, choose_sizes
from segbatch.jobs.stages import (
    Predicting,
    PredictStage,
    Reading,
    accounts_of,
    decode_stage,
    decoded_sizes,
    encode_stage,
    fetch_stage,
    write_stage,
)
from segbatch.machine import cpu_model
from segbatch.model.device import device_name
from segbatch.results.encode import Encoding, user_fields
from segbatch.results.finish import LOW_CARDINALITY
from segbatch.results.lease import Lease
from segbatch.results.schema import OK, rows_schema
from segbatch.results.write import NEVER_WRITTEN, Writing


@dataclass(frozen=True)
class NodeSetup:
    """Where to measure: ``node`` as a run would have it, ``device`` is ``cpu`` or ``cuda``.

    ``threads`` are those of one predict worker.
    """

    node: Node
    device: str
    threads: int


@dataclass(frozen=True)
class Measurement:
    """What was measured. Seconds and bytes are means of one image."""

    machine: str
    node: Node
    device: str  # cpu, or the name of the GPU
    threads: int
    images: int
    load_s: float  # of the model
    stages: dict[str, StageCost]
    read_bytes: float
    decoded_bytes: float
    rows_bytes: float  # of the table with masks, as stored
    stats_bytes: float  # of the one without
    failed: dict[str, int]
    plain_share: float  # of images that the device could decode
    block_rows: int
    file_rows: int

    @property
    def cost(self) -> ImageCost:
        return ImageCost(self.stages, self.read_bytes, self.block_rows)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        stages = {name: StageCost(**cost) for name, cost in facts["stages"].items()}
        return cls(**facts | {"stages": stages, "node": Node(**facts["node"])})


def measure_stages(
    job: SegmentJob,
    prepared: Prepared,
    images: pa.Table,
    place: NodeSetup,
    *,
    num_images: int,
    seconds: float,
) -> Measurement:
    """Take ``images`` through the stages in blocks as a run would, for about ``seconds`` at most.

    ``num_images`` are those of the whole job. Raises :class:`~segbatch.errors.SegbatchError` where
    a run would end, ``OSError`` where the temporary folder cannot be written.
    """
    sizes = choose_sizes(
        job,
        prepared,
        decoded_sizes(images.slice(0, SAMPLE_IMAGES), prepared.reading),
        place.device,
        num_images=num_images,
        num_workers=max(1, int(place.node.workers)),
    )
    with (
        tempfile.TemporaryDirectory(prefix="segbatch-plan-") as folder,
        Lease(folder, say) as lease,
    ):
        way = TimedPipeline(job, prepared, images.schema, place, lease)
        way.write(way.through(images.slice(0, job.predict.batch_size)), sizes.file_rows)  # warm up
        way.clock, way.counted = _Clock(), Counter()
        rows: list[pa.Table] = []
        start, taken = time.monotonic(), 0
        while taken < len(images) and (not taken or time.monotonic() - start < seconds):
            rows.append(way.through(images.slice(taken, sizes.block_rows)))
            taken += rows[-1].num_rows
        failed = way.write(pa.concat_tables(rows), sizes.file_rows)
        return Measurement(
            machine=cpu_model(),
            node=place.node,
            device=device_name(way.predict.model.device),
            threads=place.threads,
            images=taken,
            load_s=way.load_s,
            stages=way.clock.costs(taken),
            read_bytes=way.counted["read"] / taken,
            decoded_bytes=way.counted["decoded"] / taken,
            rows_bytes=way.counted["rows"] / taken,
            stats_bytes=way.counted["stats"] / taken,
            failed=failed,
            plain_share=way.counted["plain"] / taken,
            block_rows=sizes.block_rows,
            file_rows=sizes.file_rows,
        )


class TimedPipeline:
    """The way of an image, each stage on the clock."""

    def __init__(
        self,
        job: SegmentJob,
        prepared: Prepared,
        carried: pa.Schema,
        place: NodeSetup,
        lease: Lease,
    ) -> None:
        classes = prepared.config.classes
        schema = rows_schema(
            classes,
            stats=job.stats,
            formulas=list(job.formulas),
            user_columns=user_fields(carried),
        )
        self.clock = _Clock()
        self.counted: Counter[str] = Counter()  # bytes, and plain JPEGs
        self.worker_lease = lease.worker_lease
        self.reading = prepared.reading
        self.encoding = Encoding(
            classes, schema, prepared.formulas, store_masks=job.masks != "none"
        )
        self.writing = Writing(lease.worker_lease, 0, schema, last_pass=True)
        start = time.perf_counter()
        self.predict = PredictStage(
            Predicting(
                model=job.model,
                options=prepared.options,
                device=place.device,
                threads=place.threads,
                original_grid=job.masks == "original",
                keep_label_maps=self.encoding.wants_label_maps,
                confidence=prepared.model.confidence,
            ),
            prepared.reading,
        )
        self.load_s = time.perf_counter() - start

    def through(self, images: pa.Table) -> pa.Table:
        """Rows of the manifest in, rows of results out.

        Raises :class:`~segbatch.errors.CredentialsRefused` as a run would.
        """
        with self.clock.of("fetch"):
            table = fetch_stage(images, self.reading, self.worker_lease)
        _refuse_bad_credentials(table)
        self.counted["read"] += _bytes(table["data"])
        self.counted["plain"] += _plain_jpegs(table, self.reading)
        with self.clock.of("decode"):
            table = decode_stage(table, self.reading)
        self.counted["decoded"] += _bytes(table["pixels"])
        with self.clock.of("predict"):
            table = self.predict(table)
        with self.clock.of("encode"):
            return encode_stage(table, self.encoding)

    def write(self, rows: pa.Table, file_rows: int) -> dict[str, int]:
        """Write rows, files as a run makes them; how many failed, by kind."""
        failed: Counter[str] = Counter()
        for start in range(0, rows.num_rows, file_rows):
            with self.clock.of("write"):
                written = write_stage(rows.slice(start, file_rows), self.writing)
            for account in accounts_of(written):
                self.counted["rows"] += account.file.size if account.file else 0
                if account.kind != OK:
                    failed[account.kind] += len(account.image_ids)
        columns = [name for name in self.writing.schema.names if name != "mask"]
        sink = io.BytesIO()
        pq.write_table(
            rows.select(columns),
            sink,
            compression="zstd",
            compression_level=3,
            use_dictionary=LOW_CARDINALITY[:-1],
        )
        self.counted["stats"] += sink.tell()
        return dict(failed)


class _Clock:
    """Seconds of each stage: of a clock, and of this process on all cores."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.cpu: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[stage] += time.perf_counter() - wall
        self.cpu[stage] += time.process_time() - cpu

    def costs(self, images: int) -> dict[str, StageCost]:
        return {n: StageCost(self.wall[n] / images, self.cpu[n] / images) for n in self.wall}


def _plain_jpegs(fetched: pa.Table, reading: Reading) -> int:
    """Images that ``predict.decode: device`` would leave to the device, by their headers."""
    kept = decode(
        fetched,
        max_pixels=reading.max_pixels,
        long_side=reading.long_side,
        budget_bytes=0,
        keep_jpegs=True,
    )
    return int(kept.num_rows - kept["model_width"].null_count)


def _bytes(column: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.binary_length(column)).as_py() or 0)


def _refuse_bad_credentials(table: pa.Table) -> None:
    refused = table.filter(pc.equal(table["error"], NEVER_WRITTEN))
    if refused.num_rows:
        raise CredentialsRefused(
            f"the storage refuses our credentials: {refused['message'][0]}; renew them"
        )
