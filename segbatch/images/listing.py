"""Lists images: prefixes, globs and S3 inventories as streams of URIs.

Nothing here holds more than a page of a listing, so a hundred million keys take no more memory
than ten. The run's own folder is left out, because it may lie inside the prefix.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import math
import os
import posixpath
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from segbatch import storage
from segbatch.config.images import (
    MANIFEST_SUFFIXES,
    SHARD_SUFFIXES,
    VIDEO_EXTENSIONS,
    Glob,
    Inventory,
    Manifest,
    Prefix,
    dotted,
    has_wildcard,
    is_glob,
)
from segbatch.errors import SourceError
from segbatch.images.columns import as_yaml
from segbatch.images.faults import HEIC_HINT
from segbatch.storage.uris import without_query

# Files that are no images and may hold or name some: what they are, and the key of the source.
_COLLECTIONS = {
    **dict.fromkeys(SHARD_SUFFIXES, ("tar archives", "shards")),
    **{f".{extension}": ("videos", "video") for extension in VIDEO_EXTENSIONS},
    ".parquet": ("Parquet files", "manifest"),
}
# What to do with files that are no source.
_ADVICE = {
    **dict.fromkeys((".zip", ".7z", ".rar"), "unpack it, or pack the images into a .tar"),
    **dict.fromkeys((".tar.zst", ".tar.xz", ".tar.bz2"), "unpack it, and pack it as .tar"),
    ".tsv": "if it lists images, name it .csv, with a line above them that says `uri`",
    ".json": "if it lists images, make a .jsonl of it: jq -c '.[]' A.json > A.jsonl",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV"),
    **dict.fromkeys((".heic", ".heif"), HEIC_HINT),
}
# Extensions that are counted separately: file names that end in numbers have millions.
_MAX_EXTENSIONS = 100


@contextmanager
def reading_source(uri: str) -> Iterator[None]:
    """Turn errors of storage and of file formats in the block into errors for users.

    Raises ``SourceError``, or ``Incomplete`` where the storage does not answer.
    """
    uri = without_query(uri)
    with storage.translate_errors(f"cannot read {uri}:", SourceError):
        try:
            yield
        except FileNotFoundError as error:
            raise SourceError(f"{uri}: no such file, folder or bucket") from error
        except (pa.ArrowException, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise SourceError(f"{uri}: cannot be read: {storage.one_line(error)}") from error


@dataclass
class Listing:
    """What the sources of a job share while they are listed.

    ``leave_out`` is the run's own folder, ``scratch`` a local one that lives as long as the rows.
    ``skipped`` counts files that are no images, by extension, and ``header_requests`` the requests
    for headers of shards. Shards that are not listed by ``deadline`` (:func:`time.monotonic`) are
    left out, and the listing is not ``whole``.
    """

    leave_out: str
    scratch: str
    skipped: Counter[str] = field(default_factory=Counter)
    header_requests: int = 0
    deadline: float = math.inf
    whole: bool = True


# ---------------------------------------------------------------------------------------- prefixes


def list_prefix(source: Prefix, leave_out: str, skipped: Counter[str]) -> Iterator[str]:
    """URIs of the images below a prefix, by key; ``skipped`` counts the other files' extensions.

    ``*`` in ``exclude`` also crosses folders, and ``**/`` also stands for no folder at all.
    Raises ``SourceError`` if there are no files, or no images among them.
    """
    base = listed_spelling(source.prefix)
    is_excluded = _exclusion(source.exclude)
    others: Counter[str] = Counter()
    taken = excluded = 0
    files = list_user_files(base, leave_out, others)
    for uri in _images_among(files, source.extensions, others):
        if is_excluded(storage.path_below(uri, base)):
            excluded += 1
        else:
            taken += 1
            yield uri
    if not taken:
        raise SourceError(_why_no_images(base, others, excluded))
    skipped.update(others)


def _exclusion(globs: list[str]) -> Callable[[str], object]:
    """A function that tells whether a path matches one of ``globs``."""
    if not globs:
        return lambda path: None
    patterns = [fnmatch.translate(g) for glob in globs for g in (glob, glob.removeprefix("**/"))]
    try:
        return re.compile("|".join(patterns)).match
    except re.error as error:
        raise SourceError(f"exclude: {globs}: not a glob: {error}") from error


def _images_among(
    files: Iterable[storage.StoredFile], extensions: list[str], others: Counter[str]
) -> Iterator[str]:
    """URIs of the files with one of ``extensions``; ``others`` counts those of all other files."""
    wanted = dotted(extensions)
    for file in files:
        extension = _whole_extension(file.uri)
        if extension in wanted:
            yield file.uri
        else:
            others[extension if len(others) < _MAX_EXTENSIONS else "other"] += 1


def _whole_extension(uri: str) -> str:
    """In lower case with its dot; that of a compressed archive has two."""
    double = re.search(r"\.tar\.\w+$", uri, re.I)
    return (double[0] if double else posixpath.splitext(uri)[1]).lower()


def _why_no_images(base: str, others: Counter[str], excluded: int) -> str:
    for extension, (held, key) in _COLLECTIONS.items():
        if others[extension]:
            folder = f"{base}/" if has_wildcard(base) else base  # the slash says it is no glob
            source = as_yaml({key: folder})
            return f"{base}: holds {held} and no image: write images: {source}"
    if excluded:
        return f"{base}: all {excluded:,} images are excluded by exclude"
    if others:
        number = others.total()
        found = f"{number:,} files, but none of them is an image"
        found = "1 file, but it is no image" if number == 1 else found
        counts = ", ".join(f"{n:,} {extension or 'without'}" for extension, n in others.items())
        advice = next(
            (f": {_ADVICE[end]}" for end, _ in others.most_common() if end in _ADVICE), ""
        )
        return f"{base}: {found}: {counts}{advice}"
    if storage.is_local(base) and storage.existing_path(base).is_file():
        either = (
            f"write images: {as_yaml({'glob': base})} if it is an image; if it lists images, put a"
            " line `uri` above them and name it .csv"
        )
        return f"{base}: is a file, not a folder: {_ADVICE.get(_whole_extension(base), either)}"
    if storage.is_local(base) and storage.local_path(base).exists():
        return f"{base}: the folder is empty"
    return f"{base}: no such folder, or nothing in it"


# ------------------------------------------------------------------------------------------- globs


def list_glob(source: Glob, leave_out: str, skipped: Counter[str]) -> Iterator[str]:
    """URIs of the files that match a glob, by key, with any extension; ``skipped`` counts system
    files that match it.

    Raises ``SourceError`` if no file matches.
    """
    if not is_glob(source.glob):
        yield _existing_file(source.glob)
        return
    others: Counter[str] = Counter()
    is_empty = True
    for file in match_user_files(source.glob, leave_out, others):
        is_empty = False
        yield file.uri
    if is_empty:
        why = "".join(f" but {number:,} {kinds}" for kinds, number in others.items())
        if "[" in source.glob and not storage.is_local(source.glob):
            why += f"; where [ belongs to a name, write [[]: {source.glob.replace('[', '[[]')}"
        raise SourceError(f"{source.glob}: no file matches{why}")
    skipped.update(others)


def match_user_files(
    glob: str, leave_out: str | None = None, others: Counter[str] | None = None
) -> Iterator[storage.StoredFile]:
    """The files that match ``glob``, or have exactly that name, as :func:`list_user_files`: a
    wildcard matches no system file. Only the folder before its first wildcard is listed.

    Raises ``SourceError`` if it cannot be listed or is no valid glob.
    """
    base, pattern = split_glob(glob)
    # Names on disk are compared as people read them, in any Unicode form.
    spelled = storage.composed if storage.is_local(base) else str
    try:
        matches = re.compile(glob_translate(spelled(pattern))).match
    except (ValueError, re.error) as error:
        raise SourceError(f"{glob}: not a glob: {error}") from error

    def is_match(path: str) -> bool:
        return matches(spelled(path)) is not None or path == pattern

    matching = (
        file
        for file in _list_outside_run(base, leave_out)
        if is_match(storage.path_below(file.uri, base))
    )
    yield from _without_system_files(matching, base, others, pattern)


def split_glob(glob: str) -> tuple[str, str]:
    """The longest folder without a wildcard, and the pattern below it. A folder that is there is
    meant, also where its name looks like a glob: ``cams [2024]/*.jpg``.
    """
    parts = storage.normalize(glob).split("/")
    first = 0
    while first < len(parts) - 1 and (
        not has_wildcard(parts[first])
        or (storage.is_local(glob) and os.path.isdir("/".join(parts[: first + 1])))
    ):
        first += 1
    folder = "/".join(parts[:first])
    if storage.scheme_of(glob) and not storage.is_local(glob) and first < 3:
        raise SourceError(f"{glob}: the bucket must be named without a wildcard")
    return listed_spelling(folder or "/"), "/".join(parts[first:])


def _existing_file(uri: str) -> str:
    """``uri``, if there is such a file; http servers are not asked, as many refuse HEAD."""
    if storage.scheme_of(uri) in storage.HTTP_SCHEMES:
        return uri
    if storage.is_local(uri):
        uri = storage.normalize(uri)
        if storage.existing_path(uri).is_dir():
            raise SourceError(f"{uri}: is a folder: write {as_yaml({'prefix': uri})}")
    with reading_source(uri):
        if not storage.exists(uri):
            raise SourceError(f"{uri}: no such file")
    return uri


def file_if_single(place: Prefix | Glob | Manifest) -> Prefix | Glob | Manifest:
    """Replace a prefix that is really a single file by that file."""
    if not isinstance(place, Prefix) or place.prefix.endswith("/"):
        return place
    uri = place.prefix
    if storage.is_local(uri):
        uri = str(storage.existing_path(uri))
    if storage.scheme_of(uri) not in storage.HTTP_SCHEMES:
        with reading_source(uri):
            is_folder = any(file.uri != uri for file in islice(storage.list_files(uri), 1))
            is_folder |= storage.is_local(uri) and storage.local_path(uri).is_dir()
            if is_folder or not storage.exists(uri):
                return place
    return Glob(glob=uri)


# ------------------------------------------------------------------------------------- inventories


def list_inventory(source: Inventory, leave_out: str, skipped: Counter[str]) -> Iterator[str]:
    """URIs of the images in an Amazon S3 Inventory, latest versions only, in its order.

    Raises ``SourceError`` if it is no inventory, is in ORC, or lists no image.
    """
    uri = source.inventory
    with reading_source(uri):
        content = storage.read_bytes(uri)
    try:
        report = json.loads(content)
        bucket, kind = report["sourceBucket"], report["fileFormat"].upper()
        data = f"s3://{report['destinationBucket'].rpartition(':')[2]}"
        pages = [f"{data}/{file['key']}" for file in report["files"]]
        names = [_plain_name(name) for name in report["fileSchema"].split(",")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{uri}: not the manifest.json of an Amazon S3 Inventory: {storage.one_line(error)}"
        ) from error
    if kind not in ("CSV", "PARQUET"):
        raise SourceError(f"{uri}: an inventory in {kind} cannot be read: choose CSV or Parquet")

    run_folder = f"{listed_spelling(leave_out)}/"
    others: Counter[str] = Counter()
    is_empty = True
    for page in pages:
        with reading_source(page):
            keys = _csv_keys(page, names) if kind == "CSV" else _parquet_keys(page)
            stored = (storage.StoredFile(f"s3://{bucket}/{key}", 0) for key in keys)
            files = _without_system_files(stored, f"s3://{bucket}", others)
            for image in _images_among(files, source.extensions, others):
                if not image.startswith(run_folder):
                    is_empty = False
                    yield image
    if is_empty:
        raise SourceError(_why_no_images(uri, others, 0))
    skipped.update(others)


def _plain_name(name: str) -> str:
    """``IsLatest`` in CSV and ``is_latest`` in Parquet are the same column."""
    return name.strip().lower().replace("_", "")


def _csv_keys(file: str, names: list[str]) -> Iterator[str]:
    """Keys in one CSV file of an inventory, which has no header and percent-encodes them."""
    filesystem, path = storage.arrow_filesystem(file)
    with filesystem.open_input_stream(path) as stream:
        for row in csv.reader(io.TextIOWrapper(stream, "utf-8", newline="")):
            values = dict(zip(names, row, strict=False))
            is_latest = values.get("islatest", "true").lower() != "false"
            if is_latest and values.get("isdeletemarker", "false").lower() != "true":
                yield unquote_plus(values["key"])


def _parquet_keys(file: str) -> Iterator[str]:
    """Keys in one Parquet file of an inventory."""
    filesystem, path = storage.arrow_filesystem(file)
    with filesystem.open_input_file(path) as stream:
        table = pq.ParquetFile(stream)
        wanted = {_plain_name(name): name for name in table.schema_arrow.names}
        flags = [wanted[name] for name in ("islatest", "isdeletemarker") if name in wanted]
        for batch in table.iter_batches(columns=[wanted["key"], *flags]):
            rows = {_plain_name(n): batch.column(n).to_pylist() for n in batch.schema.names}
            for key, is_latest, is_deleted in zip(
                rows["key"],
                rows.get("islatest", [True] * batch.num_rows),
                rows.get("isdeletemarker", [False] * batch.num_rows),
                strict=True,
            ):
                if is_latest is not False and not is_deleted:
                    yield key.decode() if isinstance(key, bytes) else key


# ------------------------------------------------------------------------------- files and folders


def list_user_files(
    base: str, leave_out: str | None = None, others: Counter[str] | None = None
) -> Iterator[storage.StoredFile]:
    """The files that people put below ``base``: no system or hidden ones, which ``others`` counts,
    and none below ``leave_out``.
    """
    yield from _without_system_files(_list_outside_run(base, leave_out), base, others)


def _without_system_files(
    files: Iterable[storage.StoredFile], base: str, others: Counter[str] | None, glob: str = ""
) -> Iterator[storage.StoredFile]:
    """Those of the ``files`` below ``base`` that are no system files, or that ``glob`` names."""
    system = storage.SystemFiles(glob)
    yield from system.left_out(files, lambda file: storage.path_below(file.uri, base))
    if system.counts and others is not None:
        others[str(system).partition(" ")[2]] += system.counts.total()


def _list_outside_run(base: str, leave_out: str | None) -> Iterator[storage.StoredFile]:
    """All files below ``base``, system files too, without those below ``leave_out``."""
    if storage.scheme_of(base) in storage.HTTP_SCHEMES:
        raise SourceError(
            f"{without_query(base)}: http cannot be listed: write the URLs into a manifest (.csv or"
            " .parquet with a `uri` column)"
        )
    run_folder = f"{listed_spelling(leave_out)}/" if leave_out else None
    with reading_source(base):
        for file in storage.list_files(base):
            if run_folder is None or not file.uri.startswith(run_folder):
                yield file


def listed_spelling(folder: str) -> str:
    """``folder`` spelled as the URIs of its files in a listing begin."""
    if storage.is_local(folder):
        return posixpath.normpath(str(storage.existing_path(folder).absolute()))
    if storage.scheme_of(folder) in storage.OBJECT_SCHEMES | storage.HTTP_SCHEMES:
        return storage.normalize(folder)
    fs, path = storage.filesystem(folder)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def local_copy(address: str, scratch: str) -> str:
    """The path of a copy in the folder ``scratch``, for files on web servers: many of these do not
    serve parts of a file.
    """
    name = without_query(address).lower()
    suffixes = (suffix for suffix in MANIFEST_SUFFIXES if name.endswith(suffix))
    suffix = next(suffixes, PurePosixPath(name).suffix)  # a video keeps its own
    handle, copy = tempfile.mkstemp(suffix=suffix, dir=scratch)
    os.close(handle)
    with reading_source(address):
        storage.download(address, copy)
    return copy
