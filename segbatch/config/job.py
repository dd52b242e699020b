"""The three kinds of jobs, with the documentation of every key, and how one is loaded.

Keys marked ``IDENTITY`` define a run or a training: running again on the same output refuses to
change them. All others are operational. :func:`load_job` refuses unknown and duplicate keys, wrong
types and contradictions, and names file, line and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from segbatch import storage
from segbatch.config.images import Manifest, Source, parse_sources
from segbatch.config.keys import (
    IDENTITY,
    MAX_COUNT,
    CpusPerWorker,
    Location,
    LongSide,
    Output,
    Positive,
    RowsPerFile,
    Strict,
    Workers,
    check_outside,
    identity_of,
    recorded,
)
from segbatch.config.training import (
    FromBackbone,
    Train,
    TrainLimits,
    TrainResources,
    check_batch_size,
    parse_network,
)
from segbatch.errors import InputError, JobFileError

MIN_TILE = 64  # pixels: smaller ones would be padded to that


class Tile(Strict):
    """Sliding tiles over the image at full size."""

    size: Annotated[int, Field(ge=MIN_TILE, le=8192)]
    """Side of a tile, in pixels."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Overlap of neighbouring tiles, in pixels."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Tile:
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap must be at most half of size, {self.size // 2}")
        return self


class Predict(Strict):
    """How the model predicts."""

    long_side: LongSide = Field("auto", json_schema_extra=IDENTITY)
    """Downscale so that the longer side is at most this many pixels; ``auto``: the bundle's value,
    if it has one; ``null``: never."""
    tile: Tile | None = Field(None, json_schema_extra=IDENTITY)
    """Sliding tiles instead of downscaling: ``{size: 1024, overlap: 128}``."""
    flip: bool = Field(False, json_schema_extra=IDENTITY)
    """Average the prediction with that of the mirrored image."""
    scales: list[Annotated[float, Field(ge=0.1, le=4.0)]] = Field(
        [1.0], min_length=1, max_length=16, json_schema_extra=IDENTITY
    )
    """Average the predictions at these scales of the image."""
    decode: Literal["cpu", "device"] = Field("cpu", json_schema_extra=IDENTITY)
    """``device``: the predict workers decode JPEGs that need neither turning nor downscaling, on a
    GPU with nvJPEG. Use it where CPUs are the limit, as ``segbatch plan`` shows. Pixels differ by
    rounding."""
    engine: Literal["auto", "torch", "openvino"] = Field("auto", json_schema_extra=IDENTITY)
    """What runs the network. ``auto``: OpenVINO on CPUs, torch on GPUs."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", json_schema_extra=IDENTITY
    )
    """``auto``: bf16 where every device of the job computes it in hardware, else fp16 on GPUs and
    fp32 on CPUs. ``int8``: quantised for CPUs, calibrated with images of the job."""
    batch_size: Positive = 16
    """Largest number of images, of one padded shape, that the network processes together. On CPUs
    they have at most 512×512 pixels in all, unless one image has more."""
    compile: bool = False
    """Compile the network with ``torch.compile``."""

    @model_validator(mode="after")
    def _engine_fits(self) -> Predict:
        if self.engine == "openvino" and self.compile:
            raise ValueError("compile is torch's: set it to false, or engine to torch")
        if self.engine == "openvino" and self.precision == "fp16":
            raise ValueError("engine openvino computes fp32, bf16 and int8: choose one of them")
        if self.precision == "int8" and (self.engine == "torch" or self.compile):
            raise ValueError("int8 runs with OpenVINO: set engine to auto, and compile to false")
        return self

    @model_validator(mode="after")
    def _tile_or_long_side(self) -> Predict:
        if self.tile is not None and isinstance(self.long_side, int):
            raise ValueError("tile and long_side exclude each other: set one of them to null")
        return self


class Limits(Strict):
    """Limits above which an image, or the run, fails."""

    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the manifest's rows that may fail; with more, the run ends as failed."""
    max_pixels: Positive = 200_000_000
    """Largest image that is decoded, in pixels."""
    max_bytes: Annotated[int, Field(ge=1, le=2**40)] = 256_000_000
    """Largest object that is read, in bytes."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 30
    """Timeout of one request, in seconds."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 5
    """Retries of a request after a transient failure."""
    passes: Positive = 3
    """Passes over the missing images; the last one commits transient failures as failed."""
    stall_minutes: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 60
    """The run stops after this many minutes without a finished image, and can be resumed."""
    idle_minutes: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 5
    """Workers that deliver nothing for this long are taken for hung, and the next pass does the
    rest. It is longer, up to ``stall_minutes``, where reading a block may take longer, or for ten
    times the longest wait for a result so far."""

    def read_limits(self) -> storage.ReadLimits:
        """The limits for reading images from storage."""
        return storage.ReadLimits(
            self.max_bytes, self.timeout_s, self.retries, max_pixels=self.max_pixels
        )


class Resources(Strict):
    """What the predict workers use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one."""
    workers: Workers = "auto"
    """``auto``, a number, or ``[min, max]``."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 1
    """GPUs of one worker; with a fraction, workers share one."""
    cpus_per_worker: CpusPerWorker = "auto"
    """CPUs, and threads, of one worker."""


class SegmentJob(Strict):
    """``kind: segment``: images in, a run out."""

    kind: Literal["segment"]
    images: Annotated[Any, BeforeValidator(parse_sources)] = Field(json_schema_extra=IDENTITY)
    """Prefix, glob, manifest (.parquet, .csv, .jsonl with a ``uri`` column), tar shards, video,
    ``hf://…``, a mapping such as ``{table: …}`` (see the sources of images), or a list of these."""
    model: Location = Field(json_schema_extra=IDENTITY)
    """A model bundle, or ``zoo:NAME`` for published weights."""
    output: Output
    """The run's folder."""
    predict: Predict = Predict()
    masks: Literal["original", "model", "none"] = Field("original", json_schema_extra=IDENTITY)
    """Size of the stored mask: the image's, the model's, or no mask."""
    stats: list[Literal["confidence", "components", "boxes"]] = Field(
        ["confidence"], json_schema_extra=IDENTITY
    )
    """Statistics in addition to pixels and coverage."""
    formulas: dict[str, str] = Field({}, json_schema_extra=IDENTITY)
    """Arithmetic over coverages: ``{window_to_wall: "window / (window + wall)"}``."""
    limits: Limits = Limits()
    resources: Resources = Resources()
    rows_per_file: RowsPerFile = "auto"
    """Rows of one results file; ``auto``: about one minute of a worker's work, 64 to 500."""

    @field_validator("output")
    @classmethod
    def _can_hold_a_run(cls, output: str, given: ValidationInfo) -> str:
        if storage.scheme_of(output) not in storage.DELTA_SCHEMES:
            raise ValueError(
                f"{storage.scheme_of(output)}:// cannot hold a run: use a local folder, s3, gs"
                " or az"
            )
        check_outside(output, {"the model": given.data.get("model")})
        for source in given.data.get("images", []):
            if isinstance(source, Manifest):
                check_outside(output, {"the manifest": source.manifest})
        return output

    @property
    def sources(self) -> list[Source]:
        return list(self.images)

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as in ``run.json``."""
        return {key: recorded(value) for key, value in identity_of(self).items()}


class FinetuneJob(Strict):
    """``kind: finetune``: a labelled dataset in, a model bundle out."""

    kind: Literal["finetune"]
    dataset: Location = Field(json_schema_extra=IDENTITY)
    """A labelled dataset made by ``segbatch labels import``."""
    model: Annotated[Any, BeforeValidator(parse_network)] = Field(
        FromBackbone(), json_schema_extra=IDENTITY
    )
    """``{arch: …, backbone: …, output_stride: …, backbone_weights: …}``, or ``{from: BUNDLE}``."""
    output: Output
    """Folder for the model and the files of its training; immutable once finished."""
    train: Train = Field(Train(), json_schema_extra=IDENTITY)
    resources: TrainResources = TrainResources()
    limits: TrainLimits = TrainLimits()
    keep_checkpoints: Positive = 2
    """Number of checkpoints with the best mIoU to keep, in addition to the latest."""
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Trackers of metrics besides ``training/metrics.jsonl``; mlflow and wandb are extras."""

    @field_validator("output")
    @classmethod
    def _apart(cls, output: str, given: ValidationInfo) -> str:
        bundle = getattr(given.data.get("model"), "bundle", None)
        folders = {"the dataset": given.data.get("dataset"), "the model": bundle}
        return check_outside(output, folders)

    @model_validator(mode="after")
    def _trainable(self) -> FinetuneJob:
        check_batch_size(self.train, self.resources)
        return self

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as in ``run.json``."""
        return identity_of(self)


class EvaluateJob(Strict):
    """``kind: evaluate``: a model and a labelled dataset in, metrics out."""

    kind: Literal["evaluate"]
    dataset: Location = Field(json_schema_extra=IDENTITY)
    """A labelled dataset."""
    split: Literal["train", "val", "test"] = Field("val", json_schema_extra=IDENTITY)
    """The split to predict."""
    model: Location = Field(json_schema_extra=IDENTITY)
    """A model bundle, or ``zoo:NAME``."""
    output: Output
    """Folder for the metrics and the page of the worst images."""
    predict: Predict = Predict()
    resources: Resources = Resources()

    @field_validator("output")
    @classmethod
    def _apart(cls, output: str, given: ValidationInfo) -> str:
        folders = {"the dataset": given.data.get("dataset"), "the model": given.data.get("model")}
        return check_outside(output, folders)

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as in ``metrics.json``."""
        return identity_of(self)


Job = SegmentJob | FinetuneJob | EvaluateJob
J = TypeVar("J", bound=Job)

JOBS: dict[str, type[Job]] = {
    "segment": SegmentJob,
    "finetune": FinetuneJob,
    "evaluate": EvaluateJob,
}


def load_job(
    path: str | Mapping[str, Any] | Job,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Job:
    """The job in a file (any URI) or in a mapping with the same keys; a job is returned as it is.

    ``overrides`` are ``key=value`` with dotted keys and YAML values; ``${VAR}`` is replaced from
    ``environment`` (default: the process's). Raises :class:`~segbatch.errors.JobFileError`.
    """
    from segbatch.config.reading import read_document, validate

    if isinstance(path, Job):
        if overrides:
            raise InputError("overrides need a job file or a mapping, not a job object")
        return path
    return validate(read_document(path, overrides, environment), JOBS)


def load_kind(path: str | Mapping[str, Any] | Job, kind: type[J]) -> J:
    """:func:`load_job` for one kind of job. Raises ``JobFileError`` for another kind."""
    job = load_job(path)
    if not isinstance(job, kind):
        wanted = next(name for name, type_ in JOBS.items() if type_ is kind)
        raise JobFileError(f"kind: {job.kind}: this needs a job of kind: {wanted}")
    return job
