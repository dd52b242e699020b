"""The segment job: images in, a run out, on Ray Data.

:func:`pipeline` is the path of an image. Workers write files and report each to the driver; only
the driver commits them, pass by pass (:mod:`segbatch.jobs.passes`), until every image of the frozen
manifest has its row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from segbatch import signals, storage
from segbatch.config.job import Job, SegmentJob, load_kind
from segbatch.console import say
from segbatch.jobs.imagelist import add_new_images, begin_run, say_growth
from segbatch.jobs.options import check_options
from segbatch.jobs.passes import Passes
from segbatch.jobs.preflight import Prepared, check_output, choose_sizes, prepare
from segbatch.jobs.progress import Progress
from segbatch.jobs.runstate import RunState, StartRecord, repair_run
from segbatch.jobs.runtime.compat import map_blocks
from segbatch.jobs.runtime.engines import (
    Calibration,
    engine_on_workers,
    quantize_on_worker,
    share_model,
)
from segbatch.jobs.runtime.executor import RayExecutor, predict_blocks, sample_sizes
from segbatch.jobs.runtime.nodes import NodeClock
from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS
from segbatch.jobs.runtime.workers import Workers, choose_device, connected, share_out
from segbatch.jobs.settings import stages_of
from segbatch.jobs.stages import (
    Stages,
    decode_stage,
    encode_stage,
    fetch_stage,
    write_stage,
)
from segbatch.jobs.watch import Patience, Watch
from segbatch.model.bundle import Packed
from segbatch.model.predict import load_model
from segbatch.results.lease import Lease
from segbatch.results.ledger import Ledger
from segbatch.results.write import Writing
from segbatch.run import Run, open_run
from segbatch.signals import interruptible

GRACE_S = 10.0  # after a signal, to finish files; Kubernetes kills after 30 s


def pipeline(
    images: pa.Table, block_rows: int, stages: Stages, *, file_rows: int, workers: Workers
) -> ray.data.Dataset:
    """The path of an image: rows of the manifest in, accounts of written files out.

    One task returns one block. Ray could split a large block differently when it computes it again
    after a node was lost, and rows would vanish or come twice. Ray fuses only stages that reserve
    the same CPUs: fetch and decode run in one task, which needs the memory of both. The others run
    apart, so that each keeps its own bound of memory.
    """
    blocks = [images.slice(start, block_rows) for start in range(0, len(images), block_rows)]
    worker_lease = stages.writing.worker_lease
    fetching = partial(fetch_stage, reading=stages.reading, worker_lease=worker_lease)
    fetched = map_blocks(ray.data.from_arrow(blocks), fetching, num_cpus=READ_CPUS)
    decoding = partial(decode_stage, reading=stages.reading)
    decoded = map_blocks(fetched, decoding, num_cpus=READ_CPUS)
    predicted = predict_blocks(
        decoded, workers, block_rows, stages.predicting, stages.reading, worker_lease
    )
    encoding = partial(encode_stage, encoding=stages.encoding)
    encoded = map_blocks(predicted, encoding, num_cpus=ENCODE_CPUS)
    writing = partial(write_stage, writing=stages.writing)
    return map_blocks(encoded, writing, num_cpus=PARQUET_CPUS, batch_size=file_rows)


def segment(
    job: str | Mapping[str, Any] | Job,
    *,
    retry_failed: bool = False,
    only: Collection[str] = (),
    repair: bool = False,
    extend: bool = False,
) -> Run:
    """Segment the images of a job, or resume it. Returns the finished run.

    Running a job again on the same output does only images that are not committed.
    ``retry_failed`` does failed images again, ``only`` restricts that to some kinds of error;
    ``repair`` first moves damaged files of the run to ``quarantine/`` and does their images again;
    ``extend`` adds the images that the sources have gained since the list was frozen: the old ones
    keep their ids.
    Raises :class:`~segbatch.errors.InputError` for mistakes in the job,
    :class:`~segbatch.errors.JobFailed` if too many images failed, and
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = load_kind(job, SegmentJob)
    check_options(job, retry_failed=retry_failed, only=only, repair=repair, extend=extend)
    prepared = prepare(job)
    uri = storage.normalize(job.output)
    with storage.translate_errors("storage:"), interruptible():
        state = None if repair else RunState.read(uri)
        if state is not None:
            state.refuse_changes(job, prepared.model_sha256)
            is_over = state.finished and state.verdict(job) == state.info.status
            if is_over and not (retry_failed or extend):
                try:
                    return state.close(job)
                finally:
                    say_growth(state, job)
        check_output(uri)
        with Lease(uri, say) as lease:
            if repair:
                repair_run(uri, job, prepared, lease.driver, lease.confirm)
            state = RunState.read(uri)
            if state is None:
                state = begin_run(uri, job, prepared, lease)
            state.worker_lease = lease.worker_lease
            state.refuse_changes(job, prepared.model_sha256)
            if extend:
                add_new_images(state, job, prepared, lease)
            # Another driver has finished it meanwhile, --extend has found nothing new, or the job's
            # limits were changed.
            if state.finished and not retry_failed:
                return state.close(job)
            with state.note_end():
                state.refuse_damaged_logs()
                if retry_failed:
                    state.reset_failed(lease.driver, only)
                ledger = state.open_ledger(state.schema(job, prepared.config.classes), lease.driver)
                signals.check()
                if ledger.remaining():
                    with connected(say):
                        work_through(state, job, prepared, ledger, lease)
                signals.check()
                lease.confirm()
                state.finish(ledger, job)
        return open_run(uri)


def share_quantized(
    state: RunState,
    job: SegmentJob,
    prepared: Prepared,
    ledger: Ledger,
    model: Callable[[], Packed],
    *,
    workers: Workers,
    watch: Watch,
) -> Callable[[], Packed]:
    """The model in int8, which the run's first start calibrates with images of the run."""
    if state.info.quantized is None:
        calibration = Calibration(
            job.model, state.int8_uri, state.calibration_uris(), prepared.model.options, job.limits
        )
        quantize_on_worker(model, calibration, workers, watch)
    state.keep_quantized(ledger)
    return share_model(load_model(state.int8_uri, "cpu"), "openvino")


def work_through(
    state: RunState, job: SegmentJob, prepared: Prepared, ledger: Ledger, lease: Lease
) -> None:
    """Bring every image of the manifest to a committed row, on the connected Ray."""
    limits = job.limits
    watch = Watch(lease, limits.stall_minutes, GRACE_S, "limits.stall_minutes")
    device = choose_device(job.resources)
    # Waits for a first node.
    choice = engine_on_workers(job.predict, prepared.config, device, watch)
    workers = share_out(job.resources, device)
    clock = NodeClock()  # counts from here on: before, nodes were waited for
    sizes = choose_sizes(
        job,
        prepared,
        state.first_images,
        sample_sizes(state.sample(), prepared.reading, watch),
        device,
        num_images=ledger.remaining(),
        num_workers=workers.expected,
    )
    slowest_read_s = limits.read_limits().longest_s(sizes.block_rows)
    patience = Patience(max(60 * limits.idle_minutes, slowest_read_s), 60 * limits.stall_minutes)
    choice = state.begin_start(ledger, device, choice, workers=str(workers), sizes=sizes)
    say(
        f"{ledger.remaining():,} images to do on {workers} ({device}, {choice}),"
        f" {sizes.block_rows} a block, {sizes.file_rows} a file"
    )
    if device == "cpu" and job.predict.decode == "device":
        say("predict.decode: device: the device is the CPU, so predict workers decode the images")
    model = share_model(prepared.model, choice.engine)
    if choice.precision == "int8" and not prepared.config.is_graph:
        model = share_quantized(state, job, prepared, ledger, model, workers=workers, watch=watch)
    schema = state.schema(job, prepared.config.classes)
    stages = stages_of(
        job,
        prepared,
        Writing(lease.worker_lease, ledger.epoch, schema, last_pass=False),
        model=model,
        options=prepared.options.model_copy(update=choice._asdict()),
        device=device,
        threads=workers.num_cpus,
    )
    make_pipeline = partial(pipeline, file_rows=sizes.file_rows, workers=workers)
    with Progress(state.uri, state.num_images, ledger.taken.count()) as progress:
        record = StartRecord(state, progress, clock.read)
        passes = Passes(
            job.limits,
            state.images_of,
            state.bounds,
            sizes.block_rows,
            ledger=ledger,
            watch=watch,
            progress=progress,
            on_commit=record.write_now_and_then,
        )
        try:
            passes.run(RayExecutor(make_pipeline, stages, workers, watch, patience))
        finally:
            record.update()
