"""The evaluate job: a model and a labelled dataset in, metrics out, on Ray Data.

:func:`pipeline` shows what happens to a labelled image; between reading and scoring it is what the
segment job does. Workers count and the driver adds up; unless every image is scored exactly once,
the job fails.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
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
from segbatch.config.job import EvaluateJob, Job, Limits, Predict, load_kind
from segbatch.config.keys import identity_of
from segbatch.console import ImageBar, say
from segbatch.errors import Incomplete, InputError, RunError, SourceError
from segbatch.images.decode import Decoded, decode_image
from segbatch.jobs.passes import ExecutionStopped
from segbatch.jobs.preflight import Prepared, check_output, prepare_model
from segbatch.jobs.runtime.compat import map_blocks
from segbatch.jobs.runtime.engines import (
    Calibration,
    engine_on_workers,
    quantize_on_worker,
    share_model,
)
from segbatch.jobs.runtime.executor import data_context, in_background, predict_blocks
from segbatch.jobs.runtime.rayerrors import causes_of, raised_on_purpose
from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS
from segbatch.jobs.runtime.workers import Workers, choose_device, connected, share_out
from segbatch.jobs.scoring import ClassMapping, Scores, read_stage, score_stage
from segbatch.jobs.stages import BLOCK_BYTES, Predicting, Reading, decode_stage
from segbatch.jobs.stamp import software
from segbatch.jobs.watch import Watch
from segbatch.jobs.worst import PICTURE_SIDE, WorstImage, worst_page
from segbatch.labels.dataset import Dataset, open_dataset
from segbatch.masks import decode_mask
from segbatch.model.quantize import drawn
from segbatch.results.lease import Lease
from segbatch.signals import interruptible

METRICS = "metrics.json"
BLOCK_ROWS = 32


def evaluate(job: str | Mapping[str, Any] | Job) -> dict[str, Any]:
    """Score a model on a split of a labelled dataset; returns the content of ``metrics.json``.

    Writes ``metrics.json``, ``confusion.parquet``, ``per_image.parquet`` and ``worst.html`` to the
    job's output, and ``int8/`` where it quantises the model; running the same job again replaces
    them. Raises
    :class:`~segbatch.errors.InputError` for what is wrong with the job, also classes that are not
    those of the labels, :class:`~segbatch.errors.JobFailed` for images that cannot be scored, and
    :class:`~segbatch.errors.Incomplete` if it should be run again.
    """
    job = load_kind(job, EvaluateJob)
    dataset = open_dataset(job.dataset)
    if job.split not in dataset.splits:
        there = ", ".join(f"{split} ({count})" for split, count in dataset.splits.items())
        raise SourceError(f"{dataset.uri}: no images in {job.split}; it has {there or 'none'}")
    prepared = prepare_model(job.model, job.predict, Limits(), confidence=False)
    mapping = ClassMapping.by_name(dataset, prepared.config.classes, job.model)
    uri = storage.normalize(job.output)
    facts = _facts(job, dataset, prepared)
    with storage.translate_errors("storage:"), interruptible():
        with storage.translate_errors("output", RunError):
            _refuse_other_evaluation(uri, facts)
        check_output(uri)
        with Lease(uri, say) as lease:
            with connected(say):
                if job.predict.precision == "int8" and not prepared.config.is_graph:
                    prepared = quantize(job, dataset, prepared, storage.join(uri, "int8"), lease)
                scores, used = score_images(job, dataset, prepared, mapping, lease)
                scores.check(dataset.num_rows(job.split))
                metrics = scores.metrics()
                cost = cost_of_int8(
                    job, dataset, prepared, mapping, lease=lease, miou=metrics["miou"]
                )
            lease.confirm()
            metrics |= facts | used | cost
            write(uri, metrics, scores, _worst_images(scores, dataset, prepared.reading, mapping))
    say(f"{storage.join(uri, 'worst.html')} shows the images with the worst predictions")
    return metrics


def quantize(
    job: EvaluateJob, dataset: Dataset, prepared: Prepared, out: str, lease: Lease
) -> Prepared:
    """The model in int8, whose bundle goes to ``out``.

    One worker calibrates it with images of the split, as in a segment job with images of the run.
    """
    watch = Watch(lease, Limits().stall_minutes)
    device = choose_device(job.resources)
    choice = engine_on_workers(job.predict, prepared.config, device, watch)
    rows = [
        f"{storage.join(dataset.uri, shard.path)}#row={row}&column=image"
        for shard in dataset.shards_of(job.split)
        for row in range(shard.rows)
    ]
    uris = [rows[position] for position in drawn(len(rows))]
    calibration = Calibration(job.model, out, uris, prepared.model.options, Limits())
    packed = share_model(prepared.model, choice.engine)
    quantize_on_worker(packed, calibration, share_out(job.resources, device), watch)
    return prepare_model(out, job.predict, Limits(), confidence=False)


def cost_of_int8(
    job: EvaluateJob,
    dataset: Dataset,
    prepared: Prepared,
    mapping: ClassMapping,
    *,
    lease: Lease,
    miou: float,
) -> dict[str, Any]:
    """What a quantised model has lost in mIoU against the one it was made from, which is scored
    for that; nothing for other models, and where that model is gone.
    """
    if not prepared.config.is_quantized:
        return {}
    original = prepared.config.provenance["quantized_from"]
    options = job.predict.model_copy(update={"precision": "auto"})
    try:
        before = prepare_model(original, options, Limits(), confidence=False)
    except InputError as error:
        say(f"what int8 costs is unknown: {error}")
        return {}
    if before.model_sha256 != prepared.config.provenance["sha256"]:
        say(f"what int8 costs is unknown: {original} has changed since")
        return {}
    say(f"scoring {original}, from which it was quantised")
    of_original, _ = score_images(
        job.model_copy(update={"predict": options}), dataset, before, mapping, lease
    )
    old = of_original.metrics()["miou"]
    say(f"int8 costs {old - miou:.4f} mIoU: {miou:.4f} instead of {old:.4f}")
    return {"quantized_from": {"uri": original, "miou": old, "cost": old - miou}}


def _facts(job: EvaluateJob, dataset: Dataset, prepared: Prepared) -> dict[str, Any]:
    """What is evaluated; it must be the same when a job is run again on its output."""
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


def _refuse_other_evaluation(uri: str, facts: dict[str, Any]) -> None:
    """Raises :class:`~segbatch.errors.RunError` if the output has other metrics already."""
    file = storage.join(uri, METRICS)
    try:
        old = json.loads(storage.read_bytes(file))
        for name, before, now in (
            ("dataset", old["dataset"]["fingerprint"], facts["dataset"]["fingerprint"]),
            ("split", old["split"], facts["split"]),
            ("model", old["model"]["sha256"], facts["model"]["sha256"]),
            # A key that is newer than the evaluation had its default.
            ("predict", identity_of(Predict()) | old["predict"], facts["predict"]),
        ):
            if before != now:
                raise RunError(
                    f"{file}: is of another {name} ({before}, and {now} now): choose a new output"
                )
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: is not an evaluation's: choose a new output") from error


def score_images(
    job: EvaluateJob,
    dataset: Dataset,
    prepared: Prepared,
    mapping: ClassMapping,
    lease: Lease,
) -> tuple[Scores, dict[str, Any]]:
    """Score every image of the split; returns the device, engine and precision used, too."""
    scores = Scores(mapping.classes)
    watch = Watch(lease, Limits().stall_minutes)
    device = choose_device(job.resources)
    choice = engine_on_workers(job.predict, prepared.config, device, watch)
    workers = share_out(job.resources, device)
    total = dataset.num_rows(job.split)
    block_rows = _block_rows(dataset, job.split, workers)
    say(f"{total:,} images to score on {workers} ({device}, {choice}), {block_rows} a block")
    predicting = Predicting(
        model=share_model(prepared.model, choice.engine),
        options=prepared.options.model_copy(update=choice._asdict()),
        device=device,
        threads=workers.num_cpus,
        original_grid=True,
        keep_label_maps=True,
        confidence=False,
    )
    # The first lost block ends the execution, and tells why.
    with _errors_of_stages(), data_context(watch.stall_minutes, max_errored_blocks=0):
        blocks = pipeline(
            dataset,
            job.split,
            block_rows,
            predicting=predicting,
            reading=prepared.reading,
            mapping=mapping,
            workers=workers,
        )
        with in_background(blocks) as next_table, ImageBar("evaluate", total) as bar:
            for table in watch.results_of(next_table):
                watch.note_progress()
                scores.add(table)
                bar.add(table.num_rows)
    return scores, {"device": device, **choice._asdict()}


def _block_rows(dataset: Dataset, split: str, workers: Workers) -> int:
    """Rows of a block, so that its label maps stay below ``BLOCK_BYTES``; by the first shard."""
    first = dataset.read_shard(dataset.shards_of(split)[0], ["width", "height"])
    pixels = float(np.mean(first["width"].to_numpy() * first["height"].to_numpy().astype(float)))
    share = ceil(dataset.num_rows(split) / (4 * workers.expected))
    return max(1, min(BLOCK_ROWS, share, int(BLOCK_BYTES / pixels)))


@contextmanager
def _errors_of_stages() -> Iterator[None]:
    """Raises the error that a stage raised on purpose, ``Incomplete`` for any other that stops the
    pipeline.
    """
    try:
        yield
    except ExecutionStopped as stopped:
        if known := raised_on_purpose(stopped):
            raise known from stopped
        why = str(stopped)
        if any(isinstance(cause, WorkerCrashedError) for cause in causes_of(stopped)):
            why = "a worker's process died twice over the same images"
        raise Incomplete(f"{why}; run again") from stopped


def pipeline(
    dataset: Dataset,
    split: str,
    block_rows: int,
    *,
    predicting: Predicting,
    reading: Reading,
    mapping: ClassMapping,
    workers: Workers,
) -> ray.data.Dataset:
    """Files of the dataset in, a row of scores for each labelled image out."""
    shards = pa.Table.from_pylist([asdict(shard) for shard in dataset.shards_of(split)])
    files = ray.data.from_arrow([shards.slice(row, 1) for row in range(len(shards))])
    read = map_blocks(files, partial(read_stage, dataset=dataset), num_cpus=PARQUET_CPUS)
    blocks = read.repartition(target_num_rows_per_block=block_rows)
    decoded = map_blocks(blocks, partial(decode_stage, reading=reading), num_cpus=READ_CPUS)
    predicted = predict_blocks(decoded, workers, block_rows, predicting, reading)
    return map_blocks(predicted, partial(score_stage, mapping=mapping), num_cpus=ENCODE_CPUS)


def write(
    uri: str, metrics: dict[str, Any], scores: Scores, worst_images: Iterable[WorstImage]
) -> None:
    """Write everything, ``metrics.json`` last."""
    model, dataset = (storage.name_of(metrics[key]["uri"]) for key in ("model", "dataset"))
    title = f"Evaluation of {model} on {dataset}"
    counts = scores.confusion.counts
    html = worst_page(title, metrics, list(worst_images), scores.classes, counts)
    for name, content in (
        ("confusion.parquet", _parquet(scores.confusion_table())),
        ("per_image.parquet", _parquet(scores.per_image().drop_columns(["message"]))),
        ("worst.html", html.encode()),
        (METRICS, f"{json.dumps(metrics, indent=2, ensure_ascii=False)}\n".encode()),
    ):
        storage.write_bytes(storage.join(uri, name), content)


def _worst_images(
    scores: Scores, dataset: Dataset, reading: Reading, mapping: ClassMapping
) -> Iterator[WorstImage]:
    """The worst images, worst first; their photographs are read from the dataset again."""
    worst = {row["image_id"]: row for row in scores.worst}
    files = {row["file"] for row in scores.worst}
    found: dict[int, dict[str, Any]] = {}
    for shard in dataset.shards:
        if shard.path in files:
            rows = dataset.read_shard(shard, ["image_id", "image", "mask"])
            chosen = rows.filter(pc.is_in(rows["image_id"], pa.array(list(worst), pa.int64())))
            found |= {row["image_id"]: row for row in chosen.to_pylist()}
    names = scores.classes.names
    for image_id, row in worst.items():
        photo = decode_image(
            found[image_id]["image"]["bytes"],
            max_pixels=reading.max_pixels,
            long_side=PICTURE_SIDE,
        )
        if isinstance(photo, Decoded):
            yield WorstImage(
                row["uri"],
                row["miou"],
                dict(zip(names, row["iou"].values(), strict=True)),
                photo.pixels,
                mapping.decode_truth(found[image_id]["mask"]["bytes"]),
                decode_mask(row["mask"]),
            )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
