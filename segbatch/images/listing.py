"""Where images are: prefixes, globs and S3 inventories as streams of URIs.

Nothing here holds more than a page of a listing, so a hundred million keys cost no more memory
than ten. The run's own folder is left out, because it may lie inside the prefix.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from segbatch import storage
from segbatch.config.images import MANIFEST_SUFFIXES, Glob, Inventory, Manifest, Prefix
from segbatch.errors import Incomplete, SourceError
from segbatch.storage.uris import shown

# Different extensions that are counted apart; file names that end in numbers have millions.
_MAX_EXTENSIONS = 100


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Errors of storage and of file formats as ours; ``what`` is the URI that is being read.

    Raises ``SourceError``, or ``Incomplete`` where the storage does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{shown(what)}: no such file, folder or bucket") from error
    except PermissionError as error:
        raise SourceError(f"{shown(what)}: not allowed: {storage.one_line(error)}") from error
    except (pa.ArrowInvalid, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise SourceError(f"{shown(what)}: cannot be read: {storage.one_line(error)}") from error
    except OSError as error:
        raise Incomplete(f"{shown(what)}: {storage.one_line(error)}") from error


# ------------------------------------------------------------------------------------- listings


def in_prefix(source: Prefix, leave_out: str, skipped: Counter[str]) -> Iterator[str]:
    """URIs of the images below a prefix, by key; ``skipped`` counts the other files' extensions.

    ``*`` in ``exclude`` also crosses folders, and ``**/`` also stands for no folder at all.
    Raises ``SourceError`` if there is nothing, or nothing but other files.
    """
    base = _as_listed(source.prefix)
    is_excluded = _excluded(source.exclude)
    others: Counter[str] = Counter()
    taken = excluded = 0
    for uri in _images_of(_files(base, leave_out), source.extensions, others):
        if is_excluded(uri[len(base) :].lstrip("/")):
            excluded += 1
        else:
            taken += 1
            yield uri
    if not taken:
        raise SourceError(_why_none(base, others, excluded))
    skipped.update(others)


def in_glob(source: Glob, leave_out: str) -> Iterator[str]:
    """URIs of the files that a glob names, by key, whatever their extension.

    Raises ``SourceError`` if there is none.
    """
    if not has_wildcard(source.glob):
        yield _one_file(source.glob)
        return
    nothing = True
    for file in matching(source.glob, leave_out):
        nothing = False
        yield file.uri
    if nothing:
        raise SourceError(f"{source.glob}: no file matches")


def has_wildcard(uri: str) -> bool:
    """Whether ``uri`` is a glob. In an http URL only ``*`` counts: ``?`` begins its query."""
    is_http = storage.scheme_of(uri) in storage.HTTP_SCHEMES
    return any(character in uri for character in ("*" if is_http else "*?["))


def matching(glob: str, leave_out: str | None = None) -> Iterator[storage.StoredFile]:
    """The files that ``glob`` names. Only the part before its first wildcard is listed.

    Raises ``SourceError`` if it cannot be listed or is no valid glob.
    """
    base, pattern = split_glob(glob)
    try:
        matches = re.compile(glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        raise SourceError(f"{glob}: not a glob: {error}") from error
    for file in _files(base, leave_out):
        if matches(file.uri[len(base) :].lstrip("/")):
            yield file


def split_glob(glob: str) -> tuple[str, str]:
    """The longest folder without a wildcard, and the pattern behind it."""
    parts = storage.normalize(glob).split("/")
    first = next((n for n, part in enumerate(parts) if has_wildcard(part)), len(parts) - 1)
    folder = "/".join(parts[:first])
    if storage.scheme_of(glob) and not storage.is_local(glob) and first < 3:
        raise SourceError(f"{glob}: the bucket must be named without a wildcard")
    return _as_listed(folder or "/"), "/".join(parts[first:])


def one_or_many(place: Prefix | Glob | Manifest) -> Prefix | Glob | Manifest:
    """``place``; or, where it is a prefix and there is one file of that name, that file alone."""
    if not isinstance(place, Prefix) or place.prefix.endswith("/"):
        return place
    uri = place.prefix
    if storage.scheme_of(uri) not in storage.HTTP_SCHEMES:
        with reading(uri):
            is_folder = any(file.uri != uri for file in islice(storage.list_files(uri), 1))
            is_folder |= storage.is_local(uri) and storage.local_path(uri).is_dir()
            if is_folder or not storage.exists(uri):
                return place
    return Glob(glob=uri)


def _one_file(uri: str) -> str:
    """``uri`` itself, if it is there; http servers are not asked, as many refuse HEAD."""
    if storage.scheme_of(uri) in storage.HTTP_SCHEMES:
        return uri
    if storage.is_local(uri):
        uri = storage.normalize(uri)
        if storage.local_path(uri).is_dir():
            raise SourceError(f"{uri}: is a folder: write {{prefix: {uri}}}")
    with reading(uri):
        if not storage.exists(uri):
            raise SourceError(f"{uri}: no such file")
    return uri


def _files(base: str, leave_out: str | None) -> Iterator[storage.StoredFile]:
    if storage.scheme_of(base) in storage.HTTP_SCHEMES:
        raise SourceError(
            f"{shown(base)}: http cannot be listed: write the URLs into a manifest (.csv or"
            " .parquet with a `uri` column)"
        )
    own = f"{_as_listed(leave_out)}/" if leave_out else None
    with reading(base):
        for file in storage.list_files(base):
            if own is None or not file.uri.startswith(own):
                yield file


def _as_listed(folder: str) -> str:
    """``folder`` in the spelling with which its files come out of a listing."""
    if storage.is_local(folder):
        return posixpath.normpath(storage.normalize(folder))
    if storage.scheme_of(folder) in storage.OBJECT_SCHEMES | storage.HTTP_SCHEMES:
        return storage.normalize(folder)
    fs, path = storage.filesystem(folder)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _images_of(
    files: Iterable[storage.StoredFile], extensions: list[str], others: Counter[str]
) -> Iterator[str]:
    wanted = {f".{extension.lower().lstrip('.')}" for extension in extensions}
    for file in files:
        extension = posixpath.splitext(file.uri)[1].lower()
        if extension in wanted:
            yield file.uri
        else:
            others[extension if len(others) < _MAX_EXTENSIONS else "other"] += 1


def _excluded(globs: list[str]) -> Callable[[str], object]:
    if not globs:
        return lambda path: None
    patterns = [fnmatch.translate(g) for glob in globs for g in (glob, glob.removeprefix("**/"))]
    try:
        return re.compile("|".join(patterns)).match
    except re.error as error:
        raise SourceError(f"exclude: {globs}: not a glob: {error}") from error


def _why_none(base: str, others: Counter[str], excluded: int) -> str:
    if others[".parquet"]:
        return f"{base}: holds Parquet files and no image: write images: {{manifest: {base}}}"
    if excluded:
        return f"{base}: all {excluded:,} images are excluded by exclude"
    if others:
        counts = ", ".join(f"{n:,} {extension or 'without'}" for extension, n in others.items())
        return f"{base}: {others.total():,} files, but none of them is an image: {counts}"
    if storage.is_local(base) and storage.local_path(base).is_file():
        return f"{base}: is a file, not a folder: write images: {{glob: {base}}}"
    if storage.is_local(base) and storage.local_path(base).exists():
        return f"{base}: the folder is empty"
    return f"{base}: no such folder, or nothing in it"


# --------------------------------------------------------------------------------- manifest files


def manifest_files(name: str) -> tuple[list[str], str, Literal["parquet", "csv", "json"]]:
    """The files of a manifest in their order, the folder behind which partitions begin, the kind.

    A folder is taken for its Parquet files, hidden ones (``_…``, ``.…``) excepted. Raises
    ``SourceError`` if there is nothing, and for a Delta table.
    """
    with reading(name):
        files, base = _manifest_files(name)
    if not files:
        raise SourceError(
            f"{name}: no such file, no folder with .parquet files, and no glob that matches any"
        )
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise SourceError(f"{name}: files of several kinds: {', '.join(sorted(kinds))}")
    return files, base, kinds.pop()


def _manifest_files(name: str) -> tuple[list[str], str]:
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        return [name], name.rpartition("/")[0]
    if has_wildcard(name):
        base = split_glob(name)[0]
        _refuse_delta(name, storage.list_files(storage.join(base, "_delta_log")))
        return [file.uri for file in matching(name)], base
    base = _as_listed(name)
    listed = list(storage.list_files(base))
    if not listed and storage.exists(base):
        return [base], base.rpartition("/")[0]
    _refuse_delta(name, (file for file in listed if "/_delta_log/" in file.uri))
    return [file.uri for file in listed if _is_data(file.uri.removeprefix(base))], base


def local_copy(address: str, scratch: str) -> str:
    """A copy in the folder ``scratch``; its path. Many a web server gives no parts of a file."""
    name = shown(address).lower()
    suffixes = (suffix for suffix in MANIFEST_SUFFIXES if name.endswith(suffix))
    suffix = next(suffixes, PurePosixPath(name).suffix)  # of a video, its own
    handle, copy = tempfile.mkstemp(suffix=suffix, dir=scratch)
    fs, path = storage.filesystem(address)
    with (
        os.fdopen(handle, "wb") as local,
        reading(address),
        fs.open(path, "rb", block_size=0) as remote,
    ):
        shutil.copyfileobj(remote, local)
    return copy


def _refuse_delta(name: str, log: Iterator[storage.StoredFile]) -> None:
    if next(log, None):
        raise SourceError(
            f"{name}: is a Delta table (it has a _delta_log), whose folder also holds removed rows:"
            " write its current rows to a Parquet file and name that"
        )


def _is_data(path: str) -> bool:
    is_hidden = any(part.startswith(("_", ".")) for part in path.split("/"))
    return path.lower().endswith(".parquet") and not is_hidden


def _kind(file: str) -> Literal["parquet", "csv", "json"]:
    path = shown(file).lower()
    if path.endswith(".parquet"):
        return "parquet"
    if path.endswith((".csv", ".csv.gz")):
        return "csv"
    if path.endswith(MANIFEST_SUFFIXES):
        return "json"
    raise SourceError(f"{shown(file)}: not a manifest: must end in {', '.join(MANIFEST_SUFFIXES)}")


# ------------------------------------------------------------------------------------ inventories


def in_inventory(source: Inventory, leave_out: str, skipped: Counter[str]) -> Iterator[str]:
    """URIs of the images in an Amazon S3 Inventory, latest versions only, in its order.

    Raises ``SourceError`` if it is no inventory, is in ORC, or lists no image.
    """
    what = source.inventory
    with reading(what):
        content = storage.read_bytes(what)
    try:
        report = json.loads(content)
        bucket, kind = report["sourceBucket"], report["fileFormat"].upper()
        data = f"s3://{report['destinationBucket'].rpartition(':')[2]}"
        files = [f"{data}/{file['key']}" for file in report["files"]]
        names = [_plain(name) for name in report["fileSchema"].split(",")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{what}: not the manifest.json of an Amazon S3 Inventory: {storage.one_line(error)}"
        ) from error
    if kind not in ("CSV", "PARQUET"):
        raise SourceError(f"{what}: an inventory in {kind} cannot be read: choose CSV or Parquet")

    own = f"{_as_listed(leave_out)}/"
    others: Counter[str] = Counter()
    nothing = True
    for file in files:
        with reading(file):
            keys = _csv_keys(file, names) if kind == "CSV" else _parquet_keys(file)
            stored = (storage.StoredFile(f"s3://{bucket}/{key}", 0) for key in keys)
            for uri in _images_of(stored, source.extensions, others):
                if not uri.startswith(own):
                    nothing = False
                    yield uri
    if nothing:
        raise SourceError(_why_none(what, others, 0))
    skipped.update(others)


def _plain(name: str) -> str:
    """``IsLatest`` in CSV and ``is_latest`` in Parquet are the same column."""
    return name.strip().lower().replace("_", "")


def _csv_keys(file: str, names: list[str]) -> Iterator[str]:
    """Keys of one CSV file, which has no header and percent-encodes them."""
    filesystem, path = storage.arrow_filesystem(file)
    with filesystem.open_input_stream(path) as stream:
        for row in csv.reader(io.TextIOWrapper(stream, "utf-8", newline="")):
            values = dict(zip(names, row, strict=False))
            is_latest = values.get("islatest", "true").lower() != "false"
            if is_latest and values.get("isdeletemarker", "false").lower() != "true":
                yield unquote_plus(values["key"])


def _parquet_keys(file: str) -> Iterator[str]:
    filesystem, path = storage.arrow_filesystem(file)
    with filesystem.open_input_file(path) as stream:
        table = pq.ParquetFile(stream)
        wanted = {_plain(name): name for name in table.schema_arrow.names}
        flags = [wanted[name] for name in ("islatest", "isdeletemarker") if name in wanted]
        for batch in table.iter_batches(columns=[wanted["key"], *flags]):
            rows = {_plain(name): batch.column(name).to_pylist() for name in batch.schema.names}
            every = batch.num_rows
            for key, is_latest, is_deleted in zip(
                rows["key"],
                rows.get("islatest", [True] * every),
                rows.get("isdeletemarker", [False] * every),
                strict=True,
            ):
                if is_latest is not False and not is_deleted:
                    yield key.decode() if isinstance(key, bytes) else key
