"""Evaluate: a model and a labelled dataset in, metrics out. The whole job, on Ray Data.

:func:`pipeline` is the way of a labelled image: between reading and scoring it is the segment
job's. Workers count, the driver adds up, and every image is there exactly once or the job fails.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.exceptions import WorkerCrashedError

from segbatch import storage
from segbatch.config.job import EvaluateJob, Job, Limits, Predict, SegmentJob, load_kind
from segbatch.config.keys import identity_of
from segbatch.console import EVERY_S, say
from segbatch.errors import Incomplete, RunError, SegbatchError, SourceError
from segbatch.images.decode import Decoded, decode_image
from segbatch.jobs.passes import ExecutionStopped, Watch
from segbatch.jobs.preflight import Prepared, check_output, prepare
from segbatch.jobs.runstate import outages
from segbatch.jobs.runtime.executor import data_context, in_background, resolve_precision, shared
from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS, worker_cpus
from segbatch.jobs.runtime.workers import Workers, connected, resolve_device, share_out
from segbatch.jobs.scoring import Scores, Scoring, read_stage, score_stage
from segbatch.jobs.stages import BLOCK_BYTES, Predicting, PredictStage, Reading, decode_stage
from segbatch.jobs.stamp import software
from segbatch.jobs.worst import PICTURE_SIDE, Seen, page
from segbatch.labels.dataset import Dataset, open_dataset
from segbatch.masks import decode_mask
from segbatch.results.lease import Lease
from segbatch.signals import interruptible

METRICS = "metrics.json"
BLOCK_ROWS = 32


def pipeline(
    dataset: Dataset,
    split: str,
    block_rows: int,
    *,
    predicting: Predicting,
    reading: Reading,
    scoring: Scoring,
    workers: Workers,
) -> ray.data.Dataset:
    """The way of a labelled image: files of the dataset in, a row of scores for each image out."""
    shards = pa.Table.from_pylist([asdict(shard) for shard in dataset.shards_of(split)])
    task: dict[str, Any] = {"max_retries": 1}
    actor: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 1}
    tables: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
    return (
        ray.data.from_arrow([shards.slice(row, 1) for row in range(len(shards))])
        .map_batches(partial(read_stage, dataset=dataset), num_cpus=PARQUET_CPUS, **tables, **task)
        .repartition(target_num_rows_per_block=block_rows)
        .map_batches(partial(decode_stage, reading=reading), num_cpus=READ_CPUS, **tables, **task)
        .map_batches(
            PredictStage,
            fn_constructor_args=(predicting, reading),
            compute=workers.pool(),
            num_cpus=worker_cpus(workers.num_cpus),
            num_gpus=workers.num_gpus,
            **tables | {"batch_size": block_rows},  # a block, which Ray wants to be told with GPUs
            **actor,
        )
        .map_batches(partial(score_stage, scoring=scoring), num_cpus=ENCODE_CPUS, **tables, **task)
    )


def evaluate(job: str | Mapping[str, Any] | Job) -> dict[str, Any]:
    """Score a model on a split of a labelled dataset; returns what stands in ``metrics.json``.

    Leaves ``metrics.json``, ``confusion.parquet``, ``per_image.parquet`` and ``worst.html`` in the
    job's output; the same job again writes them anew. Raises
    :class:`~segbatch.errors.InputError` for what is wrong with the job, also classes that are not
    those of the labels, :class:`~segbatch.errors.JobFailed` for images that cannot be scored, and
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = load_kind(job, EvaluateJob)
    dataset = open_dataset(job.dataset)
    if job.split not in dataset.splits:
        there = ", ".join(f"{split} ({count})" for split, count in dataset.splits.items())
        raise SourceError(f"{dataset.uri}: no images in {job.split}; it has {there or 'none'}")
    prepared = prepare(_as_production(job))
    scoring = Scoring.between(dataset, prepared.config.classes, job.model)
    uri = storage.normalize(job.output)
    facts = _facts(job, dataset, prepared)
    with outages(), interruptible():
        _refuse_others(uri, facts)
        check_output(uri)
        with Lease(uri, say) as lease:
            scores = Scores(scoring)
            with connected(say):
                facts |= work_through(job, dataset, prepared, scores, lease)
            scores.check(dataset.num_rows(job.split))
            lease.confirm()
            metrics = scores.metrics() | facts
            write(uri, metrics, scores, dataset, prepared.reading)
    say(f"{storage.join(uri, 'worst.html')} shows the images that it sees worst")
    return metrics


def work_through(
    job: EvaluateJob, dataset: Dataset, prepared: Prepared, scores: Scores, lease: Lease
) -> dict[str, Any]:
    """Score every image of the split; returns what was settled on the way."""
    watch = Watch(lease, Limits().stall_minutes)
    device = resolve_device(job.resources)
    precision = resolve_precision(job.predict.precision, device, watch)
    workers = share_out(job.resources, device)
    total = dataset.num_rows(job.split)
    block_rows = _block_rows(dataset, job, workers)
    say(f"{total:,} images to score on {workers} ({device}, {precision}), {block_rows} a block")
    predicting = Predicting(
        model=shared(prepared.model),
        options=replace(prepared.options, precision=precision),
        device=device,
        threads=workers.num_cpus,
        original_grid=True,
        keep_label_maps=True,
    )
    blocks = partial(
        pipeline,
        dataset,
        job.split,
        block_rows,
        predicting=predicting,
        reading=prepared.reading,
        scoring=scores.scoring,
        workers=workers,
    )
    began = said = time.monotonic()
    for table in _run(blocks, watch):
        scores.add(table)
        if time.monotonic() - said >= EVERY_S:
            said = time.monotonic()
            pace = scores.num_images / (said - began)
            say(f"images={scores.num_images}/{total} images_per_second={pace:.2f}")
    return {"device": device, "precision": precision}


def write(
    uri: str, metrics: dict[str, Any], scores: Scores, dataset: Dataset, reading: Reading
) -> None:
    """Write everything, ``metrics.json`` last."""
    title = f"{storage.name_of(metrics['model']['uri'])} on {storage.name_of(dataset.uri)}"
    images = list(_seen(scores, dataset, reading))
    html = page(f"Evaluation of {title}", metrics, images, scores.scoring.classes)
    for name, content in (
        ("confusion.parquet", _parquet(scores.confusion_table())),
        ("per_image.parquet", _parquet(scores.per_image().drop_columns(["message"]))),
        ("worst.html", html.encode()),
        (METRICS, f"{json.dumps(metrics, indent=2, ensure_ascii=False)}\n".encode()),
    ):
        storage.write_bytes(storage.join(uri, name), content)


def _as_production(job: EvaluateJob) -> SegmentJob:
    """The segment job whose predictions are measured."""
    return SegmentJob(
        kind="segment",
        images=job.dataset,
        model=job.model,
        output=".",
        predict=job.predict,
        stats=[],
    )


def _facts(job: EvaluateJob, dataset: Dataset, prepared: Prepared) -> dict[str, Any]:
    """What is measured; running again on one output, none of it may be another."""
    identity = job.identity()
    options = {key: identity[key] for key in identity if key.startswith("predict.")}
    return {
        "kind": job.kind,
        "dataset": {"uri": dataset.uri, "fingerprint": dataset.fingerprint},
        "split": job.split,
        "model": {
            "uri": job.model,
            "sha256": prepared.model_sha256,
            "long_side": prepared.reading.long_side,
        },
        "predict": {key.removeprefix("predict."): value for key, value in options.items()},
        "software": software("deltalake"),
    }


def _refuse_others(uri: str, facts: dict[str, Any]) -> None:
    """Raises :class:`~segbatch.errors.RunError` where another evaluation's metrics are."""
    where = storage.join(uri, METRICS)
    try:
        old = json.loads(storage.read_bytes(where))
        for name, kept, now in (
            ("dataset", old["dataset"]["fingerprint"], facts["dataset"]["fingerprint"]),
            ("split", old["split"], facts["split"]),
            ("model", old["model"]["sha256"], facts["model"]["sha256"]),
            # A key that is younger than the evaluation had its default.
            ("predict", identity_of(Predict()) | old["predict"], facts["predict"]),
        ):
            if kept != now:
                raise RunError(
                    f"{where}: is of another {name} ({kept}, and {now} now): choose a new output"
                )
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{where}: is not an evaluation's: choose a new output") from error


def _block_rows(dataset: Dataset, job: EvaluateJob, workers: Workers) -> int:
    """Rows a block, so that its label maps stay below ``BLOCK_BYTES``; by the first shard."""
    first = dataset.read_shard(dataset.shards_of(job.split)[0], ["width", "height"])
    pixels = float(np.mean(first["width"].to_numpy() * first["height"].to_numpy().astype(float)))
    share = ceil(dataset.num_rows(job.split) / (4 * workers.expected))
    return max(1, min(BLOCK_ROWS, share, int(BLOCK_BYTES / pixels)))


def _run(blocks: Callable[[], ray.data.Dataset], watch: Watch) -> Iterator[pa.Table]:
    """What a pipeline gives, while lease and signals are looked at.

    Raises what a stage raised on purpose, and ``Incomplete`` for whatever else ended it.
    """
    try:
        with data_context(watch.stall_minutes):
            ray.data.DataContext.get_current().max_errored_blocks = 0  # the first one tells why
            with in_background(blocks()) as tables:
                for table in watch.over(tables):
                    watch.moved()
                    yield table
    except ExecutionStopped as stopped:
        why = str(stopped)
        error: BaseException | None = stopped
        while error is not None:
            if isinstance(error, SegbatchError):
                raise error from stopped
            if isinstance(error, WorkerCrashedError):
                why = "a worker's process died twice over the same images"
            error = getattr(error, "cause", None) or error.__cause__
        raise Incomplete(f"{why}; run again") from stopped


def _seen(scores: Scores, dataset: Dataset, reading: Reading) -> Iterator[Seen]:
    """The worst images, worst first; their photographs are read from the dataset once more."""
    wanted = {row["image_id"]: row for row in scores.worst}
    files = {row["file"] for row in scores.worst}
    found: dict[int, dict[str, Any]] = {}
    for shard in dataset.shards:
        if shard.path in files:
            rows = dataset.read_shard(shard, ["image_id", "image", "mask"])
            chosen = rows.filter(pc.is_in(rows["image_id"], pa.array(list(wanted), pa.int64())))
            found |= {row["image_id"]: row for row in chosen.to_pylist()}
    names = scores.scoring.classes.names
    for image_id, row in wanted.items():
        photo = decode_image(
            found[image_id]["image"]["bytes"],
            max_pixels=reading.max_pixels,
            long_side=PICTURE_SIDE,
        )
        if isinstance(photo, Decoded):
            yield Seen(
                row["uri"],
                row["miou"],
                dict(zip(names, row["iou"].values(), strict=True)),
                photo.pixels,
                scores.scoring.truth(found[image_id]["mask"]["bytes"]),
                decode_mask(row["mask"]),
            )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
