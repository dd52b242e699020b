"""The sources of images: the entries of ``images:`` in a job file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, FiniteFloat, field_validator

from segbatch import storage
from segbatch.config.keys import Location, Strict

MANIFEST_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson")
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "tif", "tiff", "bmp", "gif")
VIDEO_EXTENSIONS = (
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m2v", "ts", "mts", "m2ts", "wmv",
    "asf", "flv", "f4v", "ogv", "3gp", "3g2", "vob", "mxf", "dv",
)  # fmt: skip


class Prefix(Strict):
    """All images below a folder or prefix."""

    prefix: Location
    """Folder or prefix, at any depth. System files (``._*``, ``__MACOSX/``, ``Thumbs.db``) and
    hidden files and folders below it are left out."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions of images, in any case, with or without the dot."""
    exclude: list[str] = []
    """Globs over the part after the prefix; files that match are left out."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Glob(Strict):
    """The files that match a glob (``*``, ``**``, ``?``, ``[…]``), or one file."""

    glob: Location
    """With any extension. A wildcard matches no system files and no hidden ones; ``.cache/*.jpg``
    names what is in ``.cache``."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Manifest(Strict):
    """A table with a column of URIs; its other columns are copied to the results. A relative path
    counts from the folder in which the command is typed: absolute ones, or URIs, work everywhere.
    """

    manifest: Location
    """A .parquet, .csv or .jsonl file, a glob of these, or a folder of Parquet files. Values stay
    as they are: in CSV and JSON lines dates and times are texts, and a CSV column holds numbers
    only if every value prints back the same. Columns of images are left out."""
    uri_column: str = "uri"
    """The column of the URIs."""
    where: str | None = None
    """SQL condition on the table's columns (DuckDB); only rows that meet it are used."""
    rename: dict[str, str] = {}
    """Columns to rename, old name to new name."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Table(Strict):
    """Parquet files that hold the images themselves, one a row; the other columns are copied to the
    results, but for those that hold images, too.
    """

    table: Location
    """A .parquet file, a glob of these, or a folder of them."""
    image_column: str | None = None
    """The column of the images, binary or ``struct<bytes, path>`` (Hugging Face's ``Image``);
    ``null``: the only one that holds images."""
    where: str | None = None
    """SQL condition on the other columns (DuckDB); only rows that meet it are used."""
    rename: dict[str, str] = {}
    """Columns to rename, old name to new name."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Shards(Strict):
    """Tar shards (``.tar``, ``.tar.gz``, ``.tgz``) as WebDataset writes them: a row for each image
    in them, with the columns that the ``.json``, ``.txt`` and ``.cls`` of its sample give.
    """

    shards: Location
    """A shard, a glob, a folder, or numbered ones: ``"s3://b/shard-{000000..000999}.tar"``, in
    quotes because of its braces."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions of images, in any case."""
    where: str | None = None
    """SQL condition on the columns (DuckDB); only rows that meet it are used."""
    rename: dict[str, str] = {}
    """Columns to rename, old name to new name."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Inventory(Strict):
    """An Amazon S3 Inventory report (CSV or Parquet)."""

    inventory: Location
    """The report's ``manifest.json``."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions of images, in any case."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude``, ``captured_at`` and ``compass`` from EXIF."""


class Video(Strict):
    """The frames of videos, one row each, with the columns ``frame`` and ``time_s``."""

    video: Location
    """A video or a glob without an image's extension; a folder; or a manifest of videos."""
    every: float | None = Field(None, gt=0)
    """Take one frame every this many seconds; null takes all frames."""

    @property
    def videos(self) -> Prefix | Glob | Manifest:
        """The source of the videos; a prefix may also be one file without a known extension."""
        if _path_of(self.video).endswith(MANIFEST_SUFFIXES):
            return Manifest(manifest=self.video)
        if not _is_folder(self.video) and (is_video_name(self.video) or is_glob(self.video)):
            return Glob(glob=self.video)
        return Prefix(prefix=self.video, extensions=list(VIDEO_EXTENSIONS))


class Panorama(Strict):
    """Perspective views of equirectangular panoramas, one row each, with the columns ``yaw``,
    ``pitch``, ``fov`` and ``compass``: the direction of the view, where the panorama says its own.
    """

    panorama: Any
    """The panoramas: a folder, a glob, a manifest, or any other source."""
    yaw: list[FiniteFloat] = Field([0.0, 90.0, 180.0, 270.0], min_length=1)
    """Directions of the views, in degrees right of the panorama's middle."""
    pitch: float = Field(0.0, ge=-90, le=90)
    """Degrees up."""
    fov: float = Field(90.0, gt=0, le=150)
    """Angle that a view sees, from left to right, in degrees."""
    size: int = Field(1024, ge=16, le=8192)
    """Width and height of a view, in pixels."""
    exif: bool = False
    """Adds the columns ``latitude``, ``longitude`` and ``captured_at``."""

    @field_validator("panorama")
    @classmethod
    def _source(cls, value: Any) -> Any:
        source = parse_source(value)
        if isinstance(source, Video | Panorama):
            raise ValueError("must be a source of photographs")
        if source.exif:
            raise ValueError("exif has no effect here: write exif: true beside panorama")
        return source


def dotted(extensions: Iterable[str]) -> frozenset[str]:
    """File extensions in lower case, with their dots."""
    return frozenset(f".{extension.lower().lstrip('.')}" for extension in extensions)


def is_video_name(uri: str) -> bool:
    """Whether ``uri`` has the extension of a video."""
    return _extension_of(uri) in VIDEO_EXTENSIONS


def is_shard_name(uri: str) -> bool:
    """Whether ``uri`` has the extension of a tar archive, compressed or not."""
    return _path_of(uri).endswith(SHARD_SUFFIXES)


def is_photograph_name(uri: str) -> bool:
    """Whether ``uri`` has the extension of a still image."""
    return _extension_of(uri) in IMAGE_EXTENSIONS and _extension_of(uri) != "gif"


def has_wildcard(location: str) -> bool:
    """Whether ``location`` looks like a glob. In a web address only ``*`` counts: ``?`` begins its
    query.
    """
    is_http = storage.scheme_of(location) in storage.HTTP_SCHEMES
    return any(character in location for character in ("*" if is_http else "*?["))


def is_glob(location: str) -> bool:
    """Whether ``location`` is a glob, and no file or folder whose name looks like one:
    ``list [1].csv``, ``cams [2024]/``.
    """
    if not has_wildcard(location) or _is_folder(location):
        return False
    return not (storage.is_local(location) and os.path.exists(storage.local_path(location)))


def _is_folder(location: str) -> bool:
    if location.endswith("/") and "*" not in location:
        return True
    return storage.is_local(location) and os.path.isdir(storage.local_path(location))


def _path_of(location: str) -> str:
    """``location`` in lower case; a web address without its query, which may be a signature."""
    is_web = location.lower().startswith(("http://", "https://"))
    return (location.partition("?")[0] if is_web else location).lower()


def _extension_of(location: str) -> str:
    return PurePosixPath(_path_of(location)).suffix.lstrip(".")


def location_of(source: Source) -> str:
    """Where a source is: the value of the key that names its kind."""
    if isinstance(source, Panorama):
        return location_of(source.panorama)
    return str(getattr(source, _kind_of(source)))


def moved(source: Source, location: str) -> Source:
    """``source`` at another location."""
    return source.model_copy(update={_kind_of(source): location})


def _kind_of(source: Source) -> str:
    return next(kind for kind, type_ in SOURCES.items() if type(source) is type_)


Source = Prefix | Glob | Manifest | Table | Shards | Inventory | Video | Panorama
SOURCES: dict[str, type[Source]] = {
    "prefix": Prefix,
    "glob": Glob,
    "manifest": Manifest,
    "table": Table,
    "shards": Shards,
    "inventory": Inventory,
    "video": Video,
    "panorama": Panorama,
}


def parse_source(value: Any) -> Source:
    """The source that one entry of ``images:`` describes, as a string or as a mapping."""
    if isinstance(value, Source):
        return value
    if isinstance(value, str):
        if _path_of(value).endswith(MANIFEST_SUFFIXES):
            return Manifest(manifest=value)
        if is_shard_name(value) and not _is_folder(value):
            return Shards(shards=value)
        if is_video_name(value):
            return Video(video=value)
        is_image = _extension_of(value) in IMAGE_EXTENSIONS
        # Not has_wildcard: a Glob takes a web address with a query (?) as it is, as one file.
        names_files = any(c in value for c in "*?[") and not _is_folder(value)
        return Glob(glob=value) if is_image or names_files else Prefix(prefix=value)
    kinds = [kind for kind in SOURCES if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1:
        raise ValueError(
            "must be a prefix, a glob, a manifest file, a list of these, or a mapping with exactly"
            f" one of {', '.join(SOURCES)}"
        )
    return SOURCES[kinds[0]].model_validate(value)


def parse_sources(value: Any) -> list[Source]:
    """The sources that ``images:`` describes: one entry, or a list of them."""
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError("must name at least one source of images")
    return [parse_source(entry) for entry in entries]
