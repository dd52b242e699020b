"""Segment: images in, a run out. The whole job, from top to bottom, on Ray Data.

:func:`pipeline` is the way of an image. Workers write files and tell the driver of each; the
driver alone commits them, pass by pass (:mod:`segbatch.jobs.passes`), until every image of the
frozen manifest has its row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from segbatch import signals, storage
from segbatch.config.job import Job, SegmentJob, load_kind
from segbatch.console import say
from segbatch.errors import InputError
from segbatch.images import manifest
from segbatch.jobs.passes import Passes, Watch
from segbatch.jobs.preflight import Prepared, check_first_images, check_output, prepare, sizes_for
from segbatch.jobs.progress import Progress
from segbatch.jobs.runstate import RunState, outages
from segbatch.jobs.runtime.executor import RayExecutor, resolve_precision, shared, sizes_of
from segbatch.jobs.runtime.nodes import NodeClock
from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS, worker_cpus
from segbatch.jobs.runtime.workers import Workers, connected, resolve_device, share_out
from segbatch.jobs.stages import (
    Pipeline,
    Predicting,
    PredictStage,
    decode_stage,
    encode_stage,
    fetch_stage,
    write_stage,
)
from segbatch.results.encode import Encoding
from segbatch.results.lease import Lease
from segbatch.results.ledger import Ledger
from segbatch.results.schema import ERRORS, RESERVED_COLUMNS
from segbatch.results.write import Writing
from segbatch.run import Run, open_run
from segbatch.signals import interruptible

GRACE_S = 10.0  # after a signal, for files that are being written; Kubernetes kills after 30


def pipeline(
    images: pa.Table, block_rows: int, stages: Pipeline, *, file_rows: int, workers: Workers
) -> ray.data.Dataset:
    """The way of an image: rows of the manifest in, accounts of written files out.

    One task gives one block: a block that Ray split by its size could be split otherwise when it
    is made again after a node was lost, and rows would vanish or come twice. Stages that ask for
    different CPUs are not fused, so that what each of them holds at worst stays what it says.
    """
    blocks = [images.slice(start, block_rows) for start in range(0, len(images), block_rows)]
    task: dict[str, Any] = {"max_retries": 1}  # by default, what crashes is retried without end
    actor: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
    tenure = stages.writing.tenure
    tables: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            partial(fetch_stage, reading=stages.reading, tenure=tenure),
            num_cpus=READ_CPUS,
            **tables,
            **task,
        )
        .map_batches(
            partial(decode_stage, reading=stages.reading), num_cpus=READ_CPUS, **tables, **task
        )
        .map_batches(
            PredictStage,
            fn_constructor_args=(stages.predicting, stages.reading, tenure),
            compute=workers.pool(),
            num_cpus=worker_cpus(workers.num_cpus),
            num_gpus=workers.num_gpus,
            **tables | {"batch_size": block_rows},  # a block, which Ray wants to be told with GPUs
            **actor,
        )
        .map_batches(
            partial(encode_stage, encoding=stages.encoding), num_cpus=ENCODE_CPUS, **tables, **task
        )
        .map_batches(
            partial(write_stage, writing=stages.writing),
            num_cpus=PARQUET_CPUS,
            **tables | {"batch_size": file_rows},
            **task,
        )
    )


def segment(
    job: str | Mapping[str, Any] | Job,
    *,
    retry_failed: bool = False,
    only: Collection[str] = (),
    repair: bool = False,
) -> Run:
    """Segment the images of a job, or go on with it; returns the finished run.

    Running it again on the same output does only what is not committed. ``retry_failed`` takes
    failed images up again, ``only`` those of some kinds; ``repair`` first moves damaged files of
    the run to ``quarantine/``, so that their images are done again. Raises
    :class:`~segbatch.errors.InputError` for what is wrong with the job,
    :class:`~segbatch.errors.JobFailed` if too many images failed,
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = load_kind(job, SegmentJob)
    if unknown := sorted(set(only) - set(ERRORS)):
        raise InputError(f"--only {','.join(unknown)}: no such kind; kinds: {', '.join(ERRORS)}")
    prepared = prepare(job)
    uri = storage.normalize(job.output)
    with outages(), interruptible():
        state = None if repair else RunState.read(uri)
        if state is not None:
            state.refuse_changes(job, prepared.model_sha256)
            if state.finished and not retry_failed:
                return state.close(job)
        check_output(uri)
        with Lease(uri, say) as lease:
            if repair:
                RunState.repair(uri, job, prepared, lease.driver, lease.confirm)
            state = RunState.read(uri) or freeze(uri, job, prepared, lease)
            state.refuse_changes(job, prepared.model_sha256)
            if state.finished and not retry_failed:  # by another driver, or nothing was damaged
                return state.close(job)
            with state.guard():
                state.prove_logs()
                if retry_failed:
                    state.take_up_failed(lease.driver, only)
                ledger = state.open_ledger(state.schema(job, prepared.config.classes), lease.driver)
                signals.check()
                if ledger.remaining():
                    with connected(say):
                        try:
                            work_through(state, job, prepared, ledger, lease)
                        finally:
                            state.note_nodes()
                signals.check()
                lease.confirm()
                state.finish(job)
        return open_run(uri)


def freeze(uri: str, job: SegmentJob, prepared: Prepared, lease: Lease) -> RunState:
    """List the images once and for all, and begin the run with its ``run.json``."""
    say("freezing the list of images")

    def confirm() -> None:
        signals.check()
        lease.confirm()

    frozen = manifest.freeze(
        job.sources,
        storage.join(uri, "manifest"),
        reserved=RESERVED_COLUMNS | set(job.formulas),
        leave_out=uri,
        confirm=confirm,
    )
    skipped = ", ".join(
        f"{count} {end or 'without extension'}" for end, count in sorted(frozen.skipped.items())
    )
    say(f"{frozen.rows:,} images" + (f"; skipped {skipped}" if skipped else ""))
    if frozen.duplicates:
        say(f"{frozen.duplicates:,} of them are URIs that stand there before; each gets its row")
    state = RunState.of(uri, job, prepared, frozen)
    check_first_images(state.first_images, prepared)
    lease.confirm()
    state.write("running")
    return state


def work_through(
    state: RunState, job: SegmentJob, prepared: Prepared, ledger: Ledger, lease: Lease
) -> None:
    """Bring every image of the manifest to a committed row."""
    watch = Watch(lease, job.limits.stall_minutes, GRACE_S)
    device = resolve_device(job.resources)
    if device == "cpu" and job.predict.decode == "device":
        say("predict.decode: device, and the device is the CPU: predict workers decode, alone")
    # Here a cluster scaled to zero is waited for.
    precision = state.settle(device, resolve_precision(job.predict.precision, device, watch))
    workers = share_out(job.resources, device)
    state.nodes = NodeClock().read
    sizes = sizes_for(
        job,
        prepared,
        sizes_of(state.sample(), prepared.reading, watch),
        device,
        num_images=ledger.remaining(),
        num_workers=workers.expected,
    )
    state.note_start(workers=str(workers), block_rows=sizes.block_rows, file_rows=sizes.file_rows)
    say(
        f"{ledger.remaining():,} images to do on {workers} ({device}, {precision}),"
        f" {sizes.block_rows} a block, {sizes.file_rows} a file"
    )
    classes = prepared.config.classes
    schema = state.schema(job, classes)
    encoding = Encoding(classes, schema, prepared.formulas, store_masks=job.masks != "none")
    stages = Pipeline(
        prepared.reading,
        Predicting(
            model=shared(prepared.model),
            options=replace(prepared.options, precision=precision),
            device=device,
            threads=workers.num_cpus,
            original_grid=job.masks == "original",
            keep_label_maps=encoding.wants_label_maps,
        ),
        encoding,
        Writing(lease.tenure, ledger.epoch, schema, last_pass=False),
    )
    dataset = partial(pipeline, file_rows=sizes.file_rows, workers=workers)
    with Progress(state.uri, state.num_images, ledger.taken.count()) as progress:
        state.progress = progress
        Passes(
            job.limits,
            state.images_of,
            state.bounds,
            sizes.block_rows,
            ledger=ledger,
            watch=watch,
            progress=progress,
            on_commit=state.note_progress,
        ).run(RayExecutor(dataset, stages, workers, watch))
