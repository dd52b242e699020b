"""Job files: one YAML document, typed, with every key documented here.

A key marked ``identity`` is part of what a run is: running again on the same output refuses to
change it. All others are operational. :func:`load_job` refuses unknown and duplicate keys, wrong
types and contradictions by file, line and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from segbatch import storage
from segbatch.errors import InputError

IDENTITY: JsonDict = {"identity": True}

MANIFEST_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "tif", "tiff", "bmp", "gif")


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


def _location(uri: str) -> str:
    if not uri.strip():
        raise ValueError("must not be empty")
    if "@" in uri.partition("://")[2].split("/")[0]:
        raise ValueError("holds a user name or password; credentials belong in the environment")
    return uri


Location = Annotated[str, AfterValidator(_location)]


# ------------------------------------------------------------------------------- where images are


class Prefix(_Strict):
    """All images below a folder or prefix."""

    prefix: Location
    """Folder or prefix, at any depth."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions that count as images, in any case, with or without the dot."""
    exclude: list[str] = []
    """Globs over the part behind the prefix; what matches is left out."""


class Glob(_Strict):
    """Exactly the files that a glob names (``*``, ``**``, ``?``, ``[…]``), or one file."""

    glob: Location


class Manifest(_Strict):
    """A table with a column of URIs; its other columns travel to the results."""

    manifest: Location
    """A .parquet, .csv or .jsonl file, a glob of such, or a folder of Parquet files."""
    uri_column: str = "uri"
    """The column that holds the URIs."""
    where: str | None = None
    """SQL condition on the table's columns (DuckDB); only rows that fulfil it are taken."""
    rename: dict[str, str] = {}
    """New names of columns, old name to new."""


class Inventory(_Strict):
    """An Amazon S3 Inventory report (CSV or Parquet)."""

    inventory: Location
    """Its ``manifest.json``."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions that count as images, in any case."""


Source = Prefix | Glob | Manifest | Inventory
_SOURCES: dict[str, type[Source]] = {
    "prefix": Prefix,
    "glob": Glob,
    "manifest": Manifest,
    "inventory": Inventory,
}


def source_of(value: Any) -> Source:
    """The source that one entry of ``images:`` stands for, short (a string) or spelled out."""
    if isinstance(value, Prefix | Glob | Manifest | Inventory):
        return value
    if isinstance(value, str):
        if value.lower().endswith(MANIFEST_SUFFIXES):
            return Manifest(manifest=value)
        is_image = PurePosixPath(value).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
        return (
            Glob(glob=value) if is_image or any(c in value for c in "*?[") else Prefix(prefix=value)
        )
    kinds = [kind for kind in _SOURCES if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1:
        raise ValueError(
            "must be a prefix, a glob, a manifest file, a list of these, or a mapping with exactly"
            f" one of {', '.join(_SOURCES)}"
        )
    return _SOURCES[kinds[0]].model_validate(value)


def _sources_of(value: Any) -> list[Source]:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError("must name at least one source of images")
    return [source_of(entry) for entry in entries]


# ------------------------------------------------------------------------------------ small types


def _auto_or(kind: str, check: Any) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if value == "auto" or check(value):
            return value
        raise ValueError(f"must be auto or {kind}, not {value!r}")

    return BeforeValidator(validate)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_workers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(_is_count(v) for v in value) and value[0] <= value[1]
    return _is_count(value)


Positive = Annotated[int, Field(ge=1)]
Workers = Annotated[Any, _auto_or("a number of workers, or [min, max]", _is_workers)]
LongSide = Annotated[
    int | str | None,
    _auto_or("null or a whole number of pixels", lambda v: v is None or _is_count(v)),
]
RowsPerFile = Annotated[
    int | str, _auto_or("a number from 1 to 500", lambda v: _is_count(v) and v <= 500)
]
CpusPerWorker = Annotated[int | str, _auto_or("a number of CPUs", _is_count)]


# ------------------------------------------------------------------------------------ the job file


class Tile(_Strict):
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


class Predict(_Strict):
    """How the model is applied."""

    long_side: LongSide = Field("auto", json_schema_extra=IDENTITY)
    """Downscale so that the longer side is at most this many pixels; ``auto``: what the bundle
    says, and where it says nothing, never; ``null``: never."""
    tile: Tile | None = Field(None, json_schema_extra=IDENTITY)
    """Sliding tiles instead of downscaling: ``{size: 1024, overlap: 128}``."""
    flip: bool = Field(False, json_schema_extra=IDENTITY)
    """Average with the mirrored image."""
    scales: list[Annotated[float, Field(ge=0.1, le=4.0)]] = Field(
        [1.0], min_length=1, json_schema_extra=IDENTITY
    )
    """Average over these scales of the image."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", json_schema_extra=IDENTITY)
    """``auto``: fp32 on the CPU, bf16 on GPUs that have it, else fp16."""
    batch_size: Positive = 16
    """Images of one padded shape that go through the network together, at most."""
    compile: bool = False
    """Compile the network with ``torch.compile``."""

    @model_validator(mode="after")
    def _tile_or_long_side(self) -> Predict:
        if self.tile is not None and isinstance(self.long_side, int):
            raise ValueError("tile and long_side exclude each other: set one of them to null")
        return self


class Limits(_Strict):
    """When an image, or the run, has failed."""

    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the manifest's rows that may fail; more, and the run ends as failed."""
    max_pixels: Positive = 200_000_000
    """Largest image, in pixels, that is decoded."""
    max_bytes: Positive = 256_000_000
    """Largest object that is read."""
    timeout_s: Annotated[float, Field(gt=0)] = 30
    """Seconds that one request may take."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further tries of a request that failed for a passing reason."""
    passes: Positive = 3
    """Passes over what is missing; the last one commits passing failures as failed."""
    stall_minutes: Annotated[float, Field(gt=0)] = 60
    """Minutes without one finished image after which the run stops, to be run again."""


class Resources(_Strict):
    """What the predict workers take."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU where there is one."""
    workers: Workers = "auto"
    """``auto``, a number, or ``[min, max]``."""
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """GPUs of one worker; a fraction shares one."""
    cpus_per_worker: CpusPerWorker = "auto"
    """CPUs, and threads, of one worker."""


class SegmentJob(_Strict):
    """``kind: segment``: images in, a run out."""

    kind: Literal["segment"]
    images: Annotated[Any, BeforeValidator(_sources_of)] = Field(json_schema_extra=IDENTITY)
    """Prefix, glob, manifest (.parquet, .csv, .jsonl with a ``uri`` column), a list of these, or
    spelled out: ``{prefix: …}``, ``{glob: …}``, ``{manifest: …}``, ``{inventory: …}``."""
    model: Location = Field(json_schema_extra=IDENTITY)
    """A model bundle, or ``zoo:NAME`` for published weights."""
    output: Location
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
    def _delta_can_write(cls, output: str) -> str:
        if storage.scheme_of(output) not in storage.DELTA_SCHEMES:
            raise ValueError(
                f"{storage.scheme_of(output)}:// cannot hold a run: use a local folder, s3, gs"
                " or az"
            )
        return output

    @property
    def sources(self) -> list[Source]:
        return list(self.images)

    def identity(self) -> dict[str, Any]:
        """The identity keys, dotted, with their values as they stand in ``run.json``."""
        return _identity_of(self)


def _identity_of(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    values = model.model_dump(mode="json")
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if info.json_schema_extra == IDENTITY:
            keys[prefix + name] = values[name]
        elif isinstance(value, BaseModel):
            keys |= _identity_of(value, f"{prefix}{name}.")
    return keys


JOBS: dict[str, type[SegmentJob]] = {"segment": SegmentJob}


def load_job(
    path: str | Mapping[str, Any] | SegmentJob,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> SegmentJob:
    """The job of a file (any URI), of a mapping with the same keys, or a job as it is.

    ``overrides`` are ``key=value`` with dotted keys and YAML values; ``${VAR}`` is taken from
    ``environment`` (default: the process's). Raises :class:`~segbatch.errors.JobFileError`.
    """
    from segbatch.jobfile import read_document, validate

    if isinstance(path, SegmentJob):
        if overrides:
            raise InputError("overrides need a job file or a mapping, not a job that is made")
        return path
    return validate(read_document(path, overrides, environment), JOBS)
