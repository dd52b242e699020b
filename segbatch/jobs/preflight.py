"""Preflight: what can be known to be wrong before a cluster is asked for anything.

The model is loaded, its classes are held against the formulas, the output is written to, the
first images are read. How large images are and how long the network takes settle how many of them
make a block and a file.
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.config.job import SegmentJob
from segbatch.errors import Incomplete, JobFileError, RunError, SourceError
from segbatch.images.faults import HEAD_BYTES, VIDEO_HINT, is_video
from segbatch.images.fetch import fetch
from segbatch.jobs.stages import BLOCK_BYTES, Reading
from segbatch.model.bundle import fingerprint
from segbatch.model.config import ModelConfig
from segbatch.model.patches import TileOptions
from segbatch.model.predict import Model, PredictOptions, load_model
from segbatch.results.formulas import Formula
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.storage.uris import shown

SAMPLE_IMAGES = 16
# What fetching may say of an image that is there: frames of videos are decoded by it.
READ_OR_BROKEN = frozenset({None, "undecodable", "truncated"})
MAX_BLOCK_ROWS = 128  # more only makes what a lost block costs larger
MIN_FILE_ROWS, MAX_FILE_ROWS = 64, 500
SECONDS_PER_BLOCK = 15.0
SECONDS_PER_FILE = 60.0


@dataclass(frozen=True)
class Prepared:
    """What preflight found out. ``model_sha256`` belongs to the run's identity."""

    model: Model
    model_sha256: str
    formulas: list[Formula]
    options: PredictOptions
    reading: Reading

    @property
    def config(self) -> ModelConfig:
        return self.model.config


@dataclass(frozen=True)
class Sizes:
    """Rows of a block, and of a results file: a whole number of blocks."""

    block_rows: int
    file_rows: int


def predict_options(job: SegmentJob) -> PredictOptions:
    keys = job.predict
    return PredictOptions(
        long_side=keys.long_side,
        tile=TileOptions(keys.tile.size, keys.tile.overlap) if keys.tile else None,
        flip=keys.flip,
        scales=tuple(keys.scales),
        precision=keys.precision,
        batch_size=keys.batch_size,
        compile=keys.compile,
        confidence="confidence" in job.stats,
    )


def prepare(job: SegmentJob) -> Prepared:
    """Load the model and hold the job against it; on the CPU, wherever the driver runs.

    Raises :class:`~segbatch.errors.InputError`.
    """
    options = predict_options(job)
    model = load_model(job.model, device="cpu", options=options)
    if (
        job.predict.tile is not None
        and job.predict.scales != [1.0]
        and min(job.predict.scales) < (64 / job.predict.tile.size)
    ):
        raise JobFileError("predict.scales: a tile would be smaller than 64 pixels at that scale")
    formulas = [Formula.parse(name, text, model.classes) for name, text in job.formulas.items()]
    reading = Reading(
        job.limits.of_reading(),
        job.limits.max_pixels,
        model.long_side,
        jpegs_on_device=job.predict.decode == "device",
    )
    return Prepared(model, fingerprint(job.model), formulas, options, reading)


def check_output(uri: str) -> None:
    """Write to the run's folder. Raises :class:`~segbatch.errors.RunError` if that may not be,
    ``OSError`` if storage fails.
    """
    probe = storage.join(uri, f"preflight-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(probe, b"")
        storage.delete([probe])
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        reason = str(error).replace(f"{probe}: ", "")
        raise RunError(f"output {uri}: cannot be written to: {reason}") from error


def check_first_images(images: pa.Table, prepared: Prepared) -> None:
    """Raises :class:`~segbatch.errors.SourceError` if storage gives none of the first images,
    :class:`~segbatch.errors.Incomplete` if it does not answer for any of them.

    A broken image is a failed row; that none can be had is a wrong list or wrong credentials, or
    a list of videos in the place of images.
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
            f" {shown(fetched['uri'][0].as_py())}: {errors[0]}: {messages[0]}"
        )


def sizes_for(
    job: SegmentJob,
    prepared: Prepared,
    decoded: list[tuple[int, int]],
    device: str,
    *,
    num_images: int,
    num_workers: int,
) -> Sizes:
    """Rows a block and a file; ``decoded`` are sizes of images from all over the manifest.

    ``num_images`` are still to be done; a few of them make small blocks and files, so that every
    worker has something to do and progress shows.
    """
    block_rows = min(MAX_BLOCK_ROWS, math.ceil(num_images / (4 * num_workers)))
    file_rows = min(MAX_FILE_ROWS, max(MIN_FILE_ROWS, num_images // 8))
    if decoded:
        label_map, pixels = np.mean(decoded, axis=0)
        block_rows = min(block_rows, int(BLOCK_BYTES / max(pixels, label_map)))
        if device == "cpu":
            seconds = _seconds_per_byte(prepared.model) * pixels
            block_rows = min(block_rows, int(SECONDS_PER_BLOCK / seconds))
            file_rows = min(file_rows, max(MIN_FILE_ROWS, int(SECONDS_PER_FILE / seconds)))
    if job.rows_per_file != "auto":
        file_rows = int(job.rows_per_file)
    block_rows = max(1, min(block_rows, file_rows))
    if block_rows > job.predict.batch_size:
        block_rows -= block_rows % job.predict.batch_size  # no ragged batch at its end
    return Sizes(block_rows, file_rows // block_rows * block_rows)


def _seconds_per_byte(model: Model) -> float:
    """Of an RGB image, measured on a small one: a large one could take minutes."""
    pixels = np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8)
    model.predict_batch([pixels], [None])  # what the libraries do once is not counted
    start = time.perf_counter()
    model.predict_batch([pixels], [None])
    return (time.perf_counter() - start) / pixels.nbytes
