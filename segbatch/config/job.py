"""Job files: one YAML document, typed, with every key documented here.

A key marked ``identity`` is part of what a run or a training is: running again on the same output
refuses to change it. All others are operational. :func:`load_job` refuses unknown and duplicate
keys, wrong types and contradictions by file, line and key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from segbatch import storage
from segbatch.config.images import Manifest, Source, sources_of
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
    identity_of,
    outside,
)
from segbatch.config.training import (
    Network,
    Train,
    TrainLimits,
    TrainResources,
    network_of,
    trainable,
)
from segbatch.errors import InputError, JobFileError


class Tile(Strict):
    """Sliding tiles over the image at its own size."""

    size: Annotated[int, Field(ge=64, le=8192)]
    """Side of a tile in pixels."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Pixels that neighbouring tiles share."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Tile:
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap must be at most half of size, {self.size // 2}")
        return self


class Predict(Strict):
    """How the model is applied."""

    long_side: LongSide = Field("auto", json_schema_extra=IDENTITY)
    """Downscale so that the longer side is at most this many pixels; ``auto``: what the bundle
    says, and where it says nothing, never; ``null``: never."""
    tile: Tile | None = Field(None, json_schema_extra=IDENTITY)
    """Sliding tiles instead of downscaling: ``{size: 1024, overlap: 128}``."""
    flip: bool = Field(False, json_schema_extra=IDENTITY)
    """Average with the mirrored image."""
    scales: list[Annotated[float, Field(ge=0.1, le=4.0)]] = Field(
        [1.0], min_length=1, max_length=16, json_schema_extra=IDENTITY
    )
    """Average over these scales of the image."""
    decode: Literal["cpu", "device"] = Field("cpu", json_schema_extra=IDENTITY)
    """``device``: JPEGs that need neither turning nor downscaling are decoded by the predict
    workers, on a GPU by nvJPEG; for where CPUs are the limit, as ``segbatch plan`` says. Pixels
    differ by rounding."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", json_schema_extra=IDENTITY)
    """``auto``: fp32 on the CPU, bf16 on GPUs that have it, else fp16."""
    batch_size: Positive = 16
    """Images of one padded shape that go through the network together, at most; on the CPU no more
    than 512×512 pixels of them, or one image."""
    compile: bool = False
    """Compile the network with ``torch.compile``."""

    @model_validator(mode="after")
    def _tile_or_long_side(self) -> Predict:
        if self.tile is not None and isinstance(self.long_side, int):
            raise ValueError("tile and long_side exclude each other: set one of them to null")
        return self


class Limits(Strict):
    """When an image, or the run, has failed."""

    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the manifest's rows that may fail; more, and the run ends as failed."""
    max_pixels: Positive = 200_000_000
    """Largest image, in pixels, that is decoded."""
    max_bytes: Annotated[int, Field(ge=1, le=2**40)] = 256_000_000
    """Largest object that is read."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 30
    """Seconds that one request may take."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 5
    """Further tries of a request that failed for a passing reason."""
    passes: Positive = 3
    """Passes over what is missing; the last one commits passing failures as failed."""
    stall_minutes: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 60
    """Minutes without one finished image after which the run stops, to be run again."""

    def of_reading(self) -> storage.ReadLimits:
        """The bounds of one bulk read of images."""
        return storage.ReadLimits(self.max_bytes, self.timeout_s, self.retries)


class Resources(Strict):
    """What the predict workers take."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU where there is one."""
    workers: Workers = "auto"
    """``auto``, a number, or ``[min, max]``."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 1
    """GPUs of one worker; a fraction shares one."""
    cpus_per_worker: CpusPerWorker = "auto"
    """CPUs, and threads, of one worker."""


class SegmentJob(Strict):
    """``kind: segment``: images in, a run out."""

    kind: Literal["segment"]
    images: Annotated[Any, BeforeValidator(sources_of)] = Field(json_schema_extra=IDENTITY)
    """Prefix, glob, manifest (.parquet, .csv, .jsonl with a ``uri`` column), a list of these, or
    spelled out: ``{prefix: …}``, ``{glob: …}``, ``{manifest: …}``, ``{inventory: …}``."""
    model: Location = Field(json_schema_extra=IDENTITY)
    """A model bundle, or ``zoo:NAME`` for published weights."""
    output: Output
    """The run's folder."""
    predict: Predict = Predict()
    masks: Literal["original", "model", "none"] = Field("original", json_schema_extra=IDENTITY)
    """Grid of the stored mask: the image's own, the model's, or no mask at all."""
    stats: list[Literal["confidence", "components", "boxes"]] = Field(
        ["confidence"], json_schema_extra=IDENTITY
    )
    """Statistics beyond pixels and coverage, which are always there."""
    formulas: dict[str, str] = Field({}, json_schema_extra=IDENTITY)
    """Arithmetic over coverages: ``{window_to_wall: "window / (window + wall)"}``."""
    limits: Limits = Limits()
    resources: Resources = Resources()
    rows_per_file: RowsPerFile = "auto"
    """Rows of one results file; ``auto``: about a minute of one worker's work, 64 to 500."""

    @field_validator("output")
    @classmethod
    def _can_hold_a_run(cls, output: str, given: ValidationInfo) -> str:
        if storage.scheme_of(output) not in storage.DELTA_SCHEMES:
            raise ValueError(
                f"{storage.scheme_of(output)}:// cannot hold a run: use a local folder, s3, gs"
                " or az"
            )
        outside(output, {"the model": given.data.get("model")})
        for source in given.data.get("images", []):
            if isinstance(source, Manifest):
                outside(output, {"the manifest": source.manifest})
        return output

    @property
    def sources(self) -> list[Source]:
        return list(self.images)

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as they stand in ``run.json``."""
        return identity_of(self)


class FinetuneJob(Strict):
    """``kind: finetune``: a labelled dataset in, a model bundle out."""

    kind: Literal["finetune"]
    dataset: Location = Field(json_schema_extra=IDENTITY)
    """A labelled dataset, as ``segbatch labels import`` makes it."""
    model: Annotated[Any, BeforeValidator(network_of)] = Field(
        Network(), json_schema_extra=IDENTITY
    )
    """``{arch: …, backbone: …, output_stride: …, backbone_weights: …}``, or ``{from: BUNDLE}``."""
    output: Output
    """Where the model goes, with all that its training leaves; immutable once finished."""
    train: Train = Field(Train(), json_schema_extra=IDENTITY)
    resources: TrainResources = TrainResources()
    limits: TrainLimits = TrainLimits()
    keep_checkpoints: Positive = 2
    """Checkpoints that are kept: those with the best mIoU, besides the latest."""
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where metrics go besides ``training/metrics.jsonl``; mlflow and wandb are extras."""

    @field_validator("output")
    @classmethod
    def _apart(cls, output: str, given: ValidationInfo) -> str:
        bundle = getattr(given.data.get("model"), "bundle", None)
        return outside(output, {"the dataset": given.data.get("dataset"), "the model": bundle})

    @model_validator(mode="after")
    def _trainable(self) -> FinetuneJob:
        trainable(self.train, self.resources)
        return self

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as they stand in ``run.json``."""
        return identity_of(self)


class EvaluateJob(Strict):
    """``kind: evaluate``: a model and a labelled dataset in, metrics out."""

    kind: Literal["evaluate"]
    dataset: Location = Field(json_schema_extra=IDENTITY)
    """A labelled dataset."""
    split: Literal["train", "val", "test"] = Field("val", json_schema_extra=IDENTITY)
    """The part of it that is predicted."""
    model: Location = Field(json_schema_extra=IDENTITY)
    """A model bundle, or ``zoo:NAME``."""
    output: Output
    """Folder for the metrics and the page of the worst images."""
    predict: Predict = Predict()
    resources: Resources = Resources()

    @field_validator("output")
    @classmethod
    def _apart(cls, output: str, given: ValidationInfo) -> str:
        return outside(
            output, {"the dataset": given.data.get("dataset"), "the model": given.data.get("model")}
        )

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as they stand in ``metrics.json``."""
        return identity_of(self)


Job = SegmentJob | FinetuneJob | EvaluateJob


JOBS: dict[str, type[Job]] = {
    "segment": SegmentJob,
    "finetune": FinetuneJob,
    "evaluate": EvaluateJob,
}


J = TypeVar("J", bound=Job)


def load_job(
    path: str | Mapping[str, Any] | Job,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Job:
    """The job of a file (any URI), of a mapping with the same keys, or a job as it is.

    ``overrides`` are ``key=value`` with dotted keys and YAML values; ``${VAR}`` is taken from
    ``environment`` (default: the process's). Raises :class:`~segbatch.errors.JobFileError`.
    """
    from segbatch.config.reading import read_document, validate

    if isinstance(path, Job):
        if overrides:
            raise InputError("overrides need a job file or a mapping, not a job that is made")
        return path
    return validate(read_document(path, overrides, environment), JOBS)


def load_kind(path: str | Mapping[str, Any] | Job, kind: type[J]) -> J:
    """The job of a file, a mapping or as it is, which must be of one kind."""
    job = load_job(path)
    if not isinstance(job, kind):
        wanted = next(name for name, type_ in JOBS.items() if type_ is kind)
        raise JobFileError(f"kind: {job.kind}: this takes a job of kind: {wanted}")
    return job


def refuse_misfits(job: Job, *, retry_failed: bool, only: Collection[str], repair: bool) -> None:
    """Raises :class:`~segbatch.errors.InputError` for what ``job`` has nothing to do with."""
    if only and not retry_failed:
        raise InputError("--only goes with --retry-failed")
    for option, given in (("--retry-failed", retry_failed), ("--repair", repair)):
        if given and job.kind != "segment":
            raise InputError(f"{option} is for kind: segment, and this job is {job.kind}")
