"""Checks that run before any cluster resources are requested, and the sizes of blocks and files.

The model is loaded, its classes are checked against the formulas, the output is written to, and the
first images are read. The size of images and the time of the network decide how many images make a
block and a file.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.config.job import MIN_TILE, Limits, Predict, SegmentJob
from segbatch.errors import Incomplete, JobFileError, RunError, SourceError, shortened
from segbatch.images.faults import HEAD_BYTES, VIDEO_HINT, is_video
from segbatch.images.fetch import fetch
from segbatch.images.panorama import views_each
from segbatch.images.place import has_places
from segbatch.images.sources import added_columns
from segbatch.jobs.stages import BLOCK_BYTES, ImageSize, Reading
from segbatch.model.bundle import fingerprint, load_config
from segbatch.model.config import ModelConfig
from segbatch.model.predict import Model, load_model
from segbatch.model.quantize import require_nncf
from segbatch.results.formulas import Formula
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.storage.uris import without_query

SAMPLE_IMAGES = 16
# Outcomes of fetching an image that exists; fetching decodes frames of videos.
READ_OR_BROKEN = frozenset({None, "undecodable", "truncated"})
MAX_BLOCK_ROWS = 128  # more only makes a lost block more expensive
MAX_PART_ROWS = 500  # and fewer make more requests, where a block reads a range of one object
PART_BYTES = 64_000_000  # of the files of such a block, unless it has no more rows than others
MIN_FILE_ROWS, MAX_FILE_ROWS = 64, 500
SECONDS_PER_BLOCK = 15.0
SECONDS_PER_FILE = 60.0


@dataclass(frozen=True)
class Prepared:
    """The loaded model and parsed settings. ``model_sha256`` is part of the run's identity."""

    model: Model
    model_sha256: str
    formulas: list[Formula]
    options: Predict
    reading: Reading

    @property
    def config(self) -> ModelConfig:
        return self.model.config


@dataclass(frozen=True)
class Sizes:
    """Rows of a block, and of a results file: a whole number of blocks."""

    block_rows: int
    file_rows: int


def prepare(job: SegmentJob) -> Prepared:
    """Load the model on the driver's CPU, and check the job against it.

    Raises :class:`~segbatch.errors.InputError`.
    """
    prepared = prepare_model(
        job.model, job.predict, job.limits, confidence="confidence" in job.stats
    )
    classes = prepared.model.classes
    formulas = [Formula.parse(name, text, classes) for name, text in job.formulas.items()]
    exif = tuple(field.name for field in added_columns(job.sources))
    return replace(prepared, formulas=formulas, reading=replace(prepared.reading, exif=exif))


def prepare_model(uri: str, predict: Predict, limits: Limits, *, confidence: bool) -> Prepared:
    """Load a model on the driver's CPU, and check the options against it.

    Raises :class:`~segbatch.errors.InputError`.
    """
    # int8 is made once the workers are there; until then the model predicts as it is.
    is_int8 = predict.precision == "int8" and not load_config(uri).is_graph
    options = predict.model_copy(update={"precision": "fp32"}) if is_int8 else predict
    model = load_model(uri, device="cpu", options=options, confidence=confidence)
    if is_int8:
        require_nncf()
    if (
        predict.tile is not None
        and predict.scales != [1.0]
        and min(predict.scales) < MIN_TILE / predict.tile.size
    ):
        raise JobFileError(
            f"predict.scales: a tile would be smaller than {MIN_TILE} pixels at that scale"
        )
    reading = Reading(
        limits.read_limits(),
        limits.max_pixels,
        model.long_side,
        jpegs_on_device=predict.decode == "device",
    )
    return Prepared(model, fingerprint(uri), [], predict, reading)


def check_output(uri: str) -> None:
    """Write a probe to the run's folder, and check that its statistics can be made.

    Raises :class:`~segbatch.errors.InputError` if not, ``OSError`` if storage fails.
    """
    storage.require_extra(uri)
    probe = storage.join(uri, f"preflight-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(probe, b"")
        storage.delete([probe])
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        reason = str(error).replace(f"{probe}: ", "")
        raise RunError(f"output {uri}: cannot be written to: {reason}") from error


def refuse_changes(uri: str, before: Mapping[str, Any], now: Mapping[str, Any], why: str) -> None:
    """Raises :class:`~segbatch.errors.RunError` that names an identity key with another value than
    ``before``, as the output's ``run.json`` has it, and ``why`` that is refused.
    """
    for key, new in now.items():
        old = before.get(key)
        if old != new:
            raise RunError(
                f"{uri}: {key} was {shortened(old)} and is {shortened(new)} now; {why}: choose a"
                " new output"
            )


def check_first_images(images: pa.Table, prepared: Prepared) -> None:
    """Fetch the first images; one must be readable.

    A broken image is only a failed row. If none can be read, the list or the credentials are wrong,
    or the list holds videos. Raises :class:`~segbatch.errors.SourceError` then, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer for any of them.
    """
    fetched = fetch(images, prepared.reading.limits)
    errors, messages = fetched["error"].to_pylist(), fetched["message"].to_pylist()
    for row, head in enumerate(pc.binary_slice(fetched["data"], 0, HEAD_BYTES).to_pylist()):
        if head is not None and is_video(head):
            errors[row], messages[row] = "unsupported", f"a video: {VIDEO_HINT}"
    kinds = set(errors)
    if not kinds & READ_OR_BROKEN:
        passing = kinds <= set(TRANSIENT_ERRORS)
        raise (Incomplete if passing else SourceError)(
            f"none of the first {fetched.num_rows} images can be read; the first one,"
            f" {without_query(fetched['uri'][0].as_py())}: {errors[0]}: {messages[0]}"
        )


def choose_sizes(
    job: SegmentJob,
    prepared: Prepared,
    images: pa.Table,
    sizes: list[ImageSize],
    device: str,
    *,
    num_images: int,
    num_workers: int,
) -> Sizes:
    """Rows of a block and of a file.

    ``images`` are some rows of the manifest: neighbours that are parts come with one request.
    ``sizes``: of sample images. ``num_images``: images left to do; few of them give small blocks
    and files, so that every worker has work and progress shows. The views of a panorama stay in a
    block, which decodes it once.
    """
    most_rows = MAX_BLOCK_ROWS
    if sizes and has_places(images):
        files = float(np.mean([size.file_bytes for size in sizes]))
        most_rows = min(MAX_PART_ROWS, max(MAX_BLOCK_ROWS, int(PART_BYTES / files)))
    block_rows = min(most_rows, math.ceil(num_images / (4 * num_workers)))
    file_rows = min(MAX_FILE_ROWS, max(MIN_FILE_ROWS, num_images // 8))
    if sizes:
        label_map, pixels, _ = np.mean(sizes, axis=0)
        block_rows = min(block_rows, int(BLOCK_BYTES / max(pixels, label_map)))
        if device == "cpu":
            seconds = _seconds_per_byte(prepared.model) * pixels
            block_rows = min(block_rows, int(SECONDS_PER_BLOCK / seconds))
            file_rows = min(file_rows, max(MIN_FILE_ROWS, int(SECONDS_PER_FILE / seconds)))
    if job.rows_per_file != "auto":
        file_rows = int(job.rows_per_file)
    block_rows = max(1, min(block_rows, file_rows))
    if block_rows > job.predict.batch_size:
        block_rows -= block_rows % job.predict.batch_size  # no ragged last batch
    together = views_each(job.sources)
    block_rows = max(together, block_rows - block_rows % together)
    return Sizes(block_rows, max(1, file_rows // block_rows) * block_rows)


def _seconds_per_byte(model: Model) -> float:
    """Seconds of the network per byte of an RGB image, measured on a small image."""
    pixels = np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8)
    model.predict_batch([pixels], [None])  # the first call includes one-time work of the libraries
    start = time.perf_counter()
    model.predict_batch([pixels], [None])
    return (time.perf_counter() - start) / pixels.nbytes
