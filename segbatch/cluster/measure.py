"""Measures what a sample of a job's images takes in each stage, in this process and without Ray.

The stages run one after the other, so that the seconds of the clock and of the cores belong to one
stage. A first batch is not counted, because libraries do one-time work in it. Rows are written to a
temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.cluster.estimate import ImageCost, Node, StageCost
from segbatch.config.job import SegmentJob
from segbatch.console import say
from segbatch.errors import CredentialsRefused, SourceError
from segbatch.images.decode import decode
from segbatch.images.panorama import views_each
from segbatch.jobs.preflight import SAMPLE_IMAGES, Prepared, choose_sizes
from segbatch.jobs.settings import schema_of, stages_of
from segbatch.jobs.stages import (
    COUNTED,
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
from segbatch.model.bundle import Packed
from segbatch.model.device import computes_bf16, device_name
from segbatch.model.patches import Pixels
from segbatch.model.predict import Model, unpack_model
from segbatch.model.quantize import (
    has_nncf,
    quantized,
    read_calibration_images,
    save_quantized,
)
from segbatch.results.cost import part_requests
from segbatch.results.finish import write_stats_file
from segbatch.results.lease import Lease
from segbatch.results.schema import OK
from segbatch.results.write import Writing

NUM_COMPARED = 4  # images with which precisions are compared


@dataclass(frozen=True)
class NodeSetup:
    """How a run would use a node: its predict workers, their device and threads."""

    node: Node
    device: str  # cpu or cuda
    threads: int  # of one predict worker


@dataclass(frozen=True)
class Measurement:
    """What a sample of images took on one node. Seconds and bytes are means of one image."""

    machine: str
    node: Node
    device: str  # cpu, or the name of the GPU
    threads: int
    engine: str  # and the precision
    other_precisions: dict[str, float]  # how many times as fast the network would be
    images: int
    load_s: float  # of the model
    stages: dict[str, StageCost]
    read_bytes: float
    parts: float  # share of images that are parts of objects, 0 to 1
    part_requests: float  # to storage, for a block of such images
    decoded_bytes: float
    rows_bytes: float  # of the table with masks, as stored
    stats_bytes: float  # of the table without masks
    failed: dict[str, int]  # images by kind of error
    plain_share: float  # of images that the device could decode, 0 to 1
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
    setup: NodeSetup,
    *,
    num_images: int,
    seconds: float,
) -> Measurement:
    """Take ``images`` through the stages, in blocks as in a run, for about ``seconds`` at most.

    ``num_images`` is the number of images of the whole job. Raises
    :class:`~segbatch.errors.SegbatchError` where a run would end, and ``OSError`` if the temporary
    folder cannot be written to.
    """
    sizes = choose_sizes(
        job,
        prepared,
        images,
        decoded_sizes(images.slice(0, SAMPLE_IMAGES), prepared.reading),
        setup.device,
        num_images=num_images,
        num_workers=max(1, int(setup.node.workers)),
    )
    with (
        tempfile.TemporaryDirectory(prefix="segbatch-plan-") as folder,
        Lease(folder, say) as lease,
    ):
        pipeline = TimedPipeline(job, prepared, images, setup, lease)
        warm_up = pipeline.run(images.slice(0, job.predict.batch_size))
        pipeline.write(warm_up, sizes.file_rows)
        pipeline.reset()
        model = pipeline.predict.model
        parts, requests = part_requests(images["uri"].to_pylist())

        rows: list[pa.Table] = []
        start, taken = time.monotonic(), 0
        while taken < len(images) and (not taken or time.monotonic() - start < seconds):
            rows.append(pipeline.run(images.slice(taken, sizes.block_rows)))
            taken += rows[-1].num_rows
        pipeline.write(pa.concat_tables(rows), sizes.file_rows)
        return Measurement(
            machine=cpu_model(),
            node=setup.node,
            device=device_name(pipeline.predict.model.device),
            threads=setup.threads,
            engine=f"{model.engine.name} {model.precision}",
            other_precisions=speed_of_other_precisions(
                model, job, images["uri"][:NUM_COMPARED].to_pylist()
            ),
            images=taken,
            load_s=pipeline.load_s,
            stages=pipeline.costs(taken),
            # The sample has single views of panoramas; a run reads one for all of its views.
            read_bytes=pipeline.counts["read"] / taken / views_each(job.sources),
            parts=parts,
            part_requests=requests,
            decoded_bytes=pipeline.counts["decoded"] / taken,
            rows_bytes=pipeline.counts["rows"] / taken,
            stats_bytes=pipeline.counts["stats"] / taken,
            failed=dict(pipeline.failed),
            plain_share=pipeline.counts["plain"] / taken,
            block_rows=sizes.block_rows,
            file_rows=sizes.file_rows,
        )


def speed_of_other_precisions(
    model: Model, job: SegmentJob, uris: Sequence[str]
) -> dict[str, float]:
    """How many times as fast ``model`` would predict on this CPU in bf16 and int8, where it does
    not do so already and they can be had.
    """
    if model.device.type != "cpu" or model.module is None:
        return {}
    try:
        images = read_calibration_images(uris, job.limits, model.long_side)
    except SourceError:
        return {}
    others: dict[str, Model] = {}
    packed = Packed(model.config, graph=model.graph)
    if has_nncf():
        packed_int8 = replace(packed, graph=quantized(model, images))
        others["int8"] = unpack_model(packed_int8, "cpu", options=model.options)
    if model.precision == "fp32" and computes_bf16():
        in_bf16 = model.options.model_copy(update={"precision": "bf16"})
        others["bf16"] = unpack_model(packed, "cpu", options=in_bf16)
    usual = _seconds(model, images)
    return {name: usual / _seconds(other, images) for name, other in others.items()}


def _seconds(model: Model, images: list[Pixels]) -> float:
    """Seconds to predict a batch of ``images``, repeated to fill it, after a warm-up."""
    batch = (images * NUM_COMPARED)[: 2 * NUM_COMPARED]
    model.predict_batch(batch, [None] * len(batch))
    start = time.perf_counter()
    model.predict_batch(batch, [None] * len(batch))
    return time.perf_counter() - start


class TimedPipeline:
    """The stages of a run in this process, with the seconds and bytes that each has taken.

    ``load_s`` is how long the model took to load.
    """

    def __init__(
        self,
        job: SegmentJob,
        prepared: Prepared,
        images: pa.Table,
        setup: NodeSetup,
        lease: Lease,
    ) -> None:
        model_uri = job.model
        if prepared.options.precision == "int8" and not prepared.config.is_graph:
            model_uri = storage.join(lease.run_uri, "int8")
            uris = images["uri"].to_pylist()
            save_quantized(prepared.model, job.model, model_uri, uris, job.limits)
        schema = schema_of(job, prepared.config.classes, images)
        self.stages = stages_of(
            job,
            prepared,
            Writing(lease.worker_lease, 0, schema, last_pass=True),
            model=model_uri,
            options=prepared.options,
            device=setup.device,
            threads=setup.threads,
        )
        start = time.perf_counter()
        self.predict = PredictStage(self.stages.predicting, self.stages.reading)
        self.load_s = time.perf_counter() - start
        self.reset()

    def reset(self) -> None:
        """Forget the seconds and the counts so far."""
        self._wall_s: defaultdict[str, float] = defaultdict(float)
        self._cpu_s: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()  # bytes by what they are; plain: number of images
        self.failed: Counter[str] = Counter()  # images by kind of error

    def costs(self, images: int) -> dict[str, StageCost]:
        """Seconds of each stage for one of ``images`` images."""
        return {
            stage: StageCost(wall_s / images, self._cpu_s[stage] / images)
            for stage, wall_s in self._wall_s.items()
        }

    def run(self, images: pa.Table) -> pa.Table:
        """Take rows of the manifest to rows of results.

        Raises :class:`~segbatch.errors.CredentialsRefused` as a run would.
        """
        reading = self.stages.reading
        with self._timed("fetch"):
            table = fetch_stage(images, reading, self.stages.writing.worker_lease)
        _check_credentials(table)
        self.counts["read"] += pc.sum(table[f"{COUNTED}read_bytes"]).as_py() or 0
        self.counts["plain"] += _num_plain_jpegs(table, reading)
        with self._timed("decode"):
            table = decode_stage(table, reading)
        self.counts["decoded"] += _num_bytes(table["pixels"])
        with self._timed("predict"):
            table = self.predict(table)
        with self._timed("encode"):
            return encode_stage(table, self.stages.encoding)

    def write(self, rows: pa.Table, file_rows: int) -> None:
        """Write rows to files as a run does, and a file of statistics as its finish does."""
        for start in range(0, rows.num_rows, file_rows):
            with self._timed("write"):
                written = write_stage(rows.slice(start, file_rows), self.stages.writing)
            for account in accounts_of(written):
                self.counts["rows"] += account.file.size if account.file else 0
                if account.kind != OK:
                    self.failed[account.kind] += len(account.image_ids)
        without_masks = rows.drop_columns("mask")
        self.counts["stats"] += write_stats_file(without_masks, self.stages.writing.folder, 0).size

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self._wall_s[stage] += time.perf_counter() - wall_s
        self._cpu_s[stage] += time.process_time() - cpu_s


def _check_credentials(table: pa.Table) -> None:
    refused = table.filter(pc.equal(table["error"], storage.REFUSED_CREDENTIALS))
    if refused.num_rows:
        raise CredentialsRefused(
            f"the storage refuses our credentials: {refused['message'][0]}; renew them"
        )


def _num_bytes(column: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.binary_length(column)).as_py() or 0)


def _num_plain_jpegs(fetched: pa.Table, reading: Reading) -> int:
    """Number of JPEGs that ``predict.decode: device`` leaves to the device, by their headers."""
    kept = decode(
        fetched,
        max_pixels=reading.max_pixels,
        long_side=reading.long_side,
        budget_bytes=0,
        keep_jpegs=True,
    )
    return int(kept.num_rows - kept["model_width"].null_count)
