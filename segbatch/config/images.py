"""Where images are: what an entry of ``images:`` may be, short or spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from segbatch.config.keys import Location, Strict

MANIFEST_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "tif", "tiff", "bmp", "gif")
VIDEO_EXTENSIONS = (
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m2v", "ts", "mts", "m2ts", "wmv",
    "asf", "flv", "f4v", "ogv", "3gp", "3g2", "vob", "mxf", "dv",
)  # fmt: skip


class Prefix(Strict):
    """All images below a folder or prefix."""

    prefix: Location
    """Folder or prefix, at any depth."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions that count as images, in any case, with or without the dot."""
    exclude: list[str] = []
    """Globs over the part behind the prefix; what matches is left out."""


class Glob(Strict):
    """Exactly the files that a glob names (``*``, ``**``, ``?``, ``[…]``), or one file."""

    glob: Location


class Manifest(Strict):
    """A table with a column of URIs; its other columns travel to the results."""

    manifest: Location
    """A .parquet, .csv or .jsonl file, a glob of such, or a folder of Parquet files."""
    uri_column: str = "uri"
    """The column that holds the URIs."""
    where: str | None = None
    """SQL condition on the table's columns (DuckDB); only rows that fulfil it are taken."""
    rename: dict[str, str] = {}
    """New names of columns, old name to new."""


class Inventory(Strict):
    """An Amazon S3 Inventory report (CSV or Parquet)."""

    inventory: Location
    """Its ``manifest.json``."""
    extensions: list[str] = list(IMAGE_EXTENSIONS)
    """File extensions that count as images, in any case."""


class Video(Strict):
    """The frames of videos: a row for each, with the columns ``frame`` and ``time_s``."""

    video: Location
    """A video or a glob, of any name but a photograph's; a folder; or a manifest of videos."""
    every: float | None = Field(None, gt=0)
    """Take one frame of each so many seconds; null takes all of them."""

    @property
    def videos(self) -> Prefix | Glob | Manifest:
        """Where the videos are; a prefix may as well be one file, of a name that says nothing."""
        if _path_of(self.video).endswith(MANIFEST_SUFFIXES):
            return Manifest(manifest=self.video)
        if is_video_name(self.video) or any(c in self.video for c in "*?["):
            return Glob(glob=self.video)
        return Prefix(prefix=self.video, extensions=list(VIDEO_EXTENSIONS))


def is_video_name(uri: str) -> bool:
    """Whether the extension of ``uri`` is one of videos."""
    return _extension_of(uri) in VIDEO_EXTENSIONS


def is_photograph_name(uri: str) -> bool:
    """Whether the extension of ``uri`` is one of images that do not move."""
    return _extension_of(uri) in IMAGE_EXTENSIONS and _extension_of(uri) != "gif"


def _path_of(location: str) -> str:
    """In lower case; of a web address without its query, which may be a signature."""
    is_web = location.lower().startswith(("http://", "https://"))
    return (location.partition("?")[0] if is_web else location).lower()


def _extension_of(location: str) -> str:
    return PurePosixPath(_path_of(location)).suffix.lstrip(".")


Source = Prefix | Glob | Manifest | Inventory | Video
_SOURCES: dict[str, type[Source]] = {
    "prefix": Prefix,
    "glob": Glob,
    "manifest": Manifest,
    "inventory": Inventory,
    "video": Video,
}


def source_of(value: Any) -> Source:
    """The source that one entry of ``images:`` stands for, short (a string) or spelled out."""
    if isinstance(value, Source):
        return value
    if isinstance(value, str):
        if _path_of(value).endswith(MANIFEST_SUFFIXES):
            return Manifest(manifest=value)
        if is_video_name(value):
            return Video(video=value)
        is_image = _extension_of(value) in IMAGE_EXTENSIONS
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


def sources_of(value: Any) -> list[Source]:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError("must name at least one source of images")
    return [source_of(entry) for entry in entries]
