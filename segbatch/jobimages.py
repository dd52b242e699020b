"""Where images are: what an entry of ``images:`` may be, short or spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from segbatch.jobkeys import Location, Strict

MANIFEST_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "tif", "tiff", "bmp", "gif")


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


def sources_of(value: Any) -> list[Source]:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError("must name at least one source of images")
    return [source_of(entry) for entry in entries]
