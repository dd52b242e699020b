"""Lists, writes and deletes files on disk and in object storage."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import InvalidPathError

from segbatch.console import say_once
from segbatch.storage import hub
from segbatch.storage.clients import bucket_client, filesystem, obstore_client
from segbatch.storage.failures import as_os_error
from segbatch.storage.systemfiles import system_part
from segbatch.storage.uris import (
    OBJECT_SCHEMES,
    existing_path,
    is_local,
    local_path,
    local_uri,
    scheme_of,
    split_bucket,
)

MULTIPART_BYTES = 64 << 20  # a larger object is uploaded in parts, a smaller one in one PUT
SAID_LINKS = 5  # lines about links that a listing leaves out; a git-annex has thousands


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing: its URI and its size in bytes, 0 if the storage does not say."""

    uri: str
    size: int


def list_files(folder: str) -> Iterator[StoredFile]:
    """All files below ``folder``, at any depth, sorted by key, system files and hidden ones, too;
    nothing if the folder is missing.

    On disk, links to folders are followed once, and not to those that are listed anyway; links that
    are left out are said, and so are system and hidden folders that may not be read. A name that is
    not UTF-8 is escaped, in a ``file://`` URI.

    Raises ``FileNotFoundError`` for a missing bucket, ``PermissionError`` or ``OSError``.
    """
    if is_local(folder):
        yield from _list_local(local_path(folder))
        return
    try:
        if scheme_of(folder) in OBJECT_SCHEMES:
            yield from _list_bucket(folder)
            return
        fs, path = filesystem(folder)
        for name, info in fs.find(path, detail=True).items():
            if name != path:  # of a file fsspec finds the file itself
                yield StoredFile(fs.unstrip_protocol(name), info.get("size") or 0)
    except (ObstoreError, OSError, ValueError, NotImplementedError) as error:
        if hub.is_on_hub(folder):
            with hub.hub_errors(folder):
                raise
        raise as_os_error(folder, error) from error


def _list_bucket(folder: str) -> Iterator[StoredFile]:
    root, prefix = split_bucket(folder)
    last = ""
    try:
        for chunk in obstore.list(bucket_client(root), prefix.rstrip("/") or None):
            for entry in chunk:
                last = entry["path"]
                yield StoredFile(f"{root}/{last}", entry["size"])
    except InvalidPathError:  # obstore stops at a page with a key that it does not accept
        for key, size in _keys_after(last, folder):
            yield StoredFile(f"{root}/{key}", size)


def _keys_after(last: str, folder: str) -> Iterator[tuple[str, int]]:
    """The keys below ``folder`` behind the key ``last``, and their sizes, as fsspec lists them.

    S3 is listed page by page. The filesystems of Google Cloud and Azure offer no pages: they hold
    the whole listing in memory.
    """
    root, prefix = split_bucket(folder)
    bucket, prefix = root.partition("://")[2], prefix.rstrip("/")
    fs, path = filesystem(folder)
    if scheme_of(folder) not in ("s3", "s3a"):
        for name, info in fs.find(path, detail=True).items():
            if (key := name.removeprefix(f"{bucket}/")) > last:
                yield key, info["size"]
        return
    prefix += "/" * bool(prefix)
    is_truncated = True
    while is_truncated:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=last)
        for entry in page.get("Contents", []):
            last = entry["Key"]
            yield last, entry["Size"]
        is_truncated = page["IsTruncated"]


@dataclass
class _Links:
    """Links to folders in the listing of ``folder``: the real paths of it and of those that were
    followed, and what is said of links and folders that are left out.
    """

    folder: Path
    listed: list[str]
    left_out: list[str] = field(default_factory=list)

    def leads_into_listing(self, target: str) -> bool:
        """Whether the files of the folder ``target`` are listed without a link to it, or hold the
        folder that is listed. Hidden and system folders do not count: most callers leave them out.
        """
        inside = (target.removeprefix(f"{known.rstrip('/')}/") for known in self.listed)
        return f"{self.listed[0]}/".startswith(f"{target.rstrip('/')}/") or any(
            path != target and system_part(f"{path}/") is None for path in inside
        )


def _list_local(folder: Path) -> Iterator[StoredFile]:
    real = os.path.realpath(folder)
    links = _Links(folder, [real])
    yield from _walk(folder, real, links)
    for line in links.left_out[:SAID_LINKS]:
        say_once(line)
    if more := links.left_out[SAID_LINKS:]:
        say_once(f"{folder}: {len(more):,} more links and folders are left out")


def _walk(folder: Path, real: str, links: _Links) -> Iterator[StoredFile]:
    """The files below ``folder``, whose real path is ``real``."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError:
        below = f"{folder.relative_to(links.folder)}/"
        if folder == links.folder or system_part(below) is None:
            raise
        links.left_out.append(f"{folder}: may not be read; left out")  # lost+found of every disk
        return
    # In the order of object storage, where a folder sorts as its files' keys do.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * _is_folder(entry)):
        is_link = entry.is_symlink()
        target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
        if _is_folder(entry):
            if target in links.listed or (is_link and links.leads_into_listing(target)):
                links.left_out.append(
                    f"{entry.path}: a link to {target}, whose files are listed without it; left out"
                    if is_link
                    else f"{entry.path}: its files are listed already, through a link; left out"
                )
                continue
            links.listed += [target] * is_link
            yield from _walk(Path(entry.path), target, links)
        elif os.path.isfile(entry.path) if is_link else entry.is_file():
            yield StoredFile(local_uri(entry.path), entry.stat().st_size)
        elif is_link and system_part(entry.name) is None:
            links.left_out.append(f"{entry.path}: a link to {target}, which is no file; left out")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link that leads to itself makes entry.is_dir() raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def exists(uri: str) -> bool:
    """Whether the object exists. Raises ``PermissionError`` or ``OSError`` if that is unknown."""
    if is_local(uri):
        return existing_path(uri).exists()
    try:
        client = obstore_client(uri)
        if client is None:
            fs, path = filesystem(uri)
            return bool(fs.exists(path))
        obstore.head(*client)
    except FileNotFoundError:
        return False
    except (ObstoreError, OSError, ValueError) as error:
        raise as_os_error(uri, error) from error
    return True


def writes_whole(uri: str) -> bool:
    """Whether a process that is killed while it writes to ``uri`` leaves no incomplete file.

    True on disk and in object storage; other protocols of fsspec may keep a part.
    """
    return is_local(uri) or scheme_of(uri) in OBJECT_SCHEMES


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object. Where storage :func:`writes_whole`, readers see all of it or what
    was there before.

    Raises ``PermissionError`` or ``OSError``.
    """
    if is_local(uri):
        _write_local(local_path(uri), data)
        return
    try:
        large = len(data) > MULTIPART_BYTES
        client = obstore_client(uri, 300.0 if large else 60.0)
        if client is None:
            fs, path = filesystem(uri)
            fs.pipe_file(path, data)
        else:
            obstore.put(*client, data, use_multipart=large)
    except (ObstoreError, OSError, ValueError) as error:
        raise as_os_error(uri, error) from error


def _write_local(path: Path, data: bytes) -> None:
    _make_parent(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def upload(path: Path, uri: str) -> None:
    """Move a local file of any size to ``uri``; readers see it as with :func:`write_bytes`.

    If the file cannot be put in its place on disk, it is deleted. Raises ``PermissionError`` or
    ``OSError``.
    """
    if is_local(uri):
        target = local_path(uri)
        _make_parent(target)
        path.chmod(0o644)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            shutil.move(path, temporary)  # copies, if it comes from another disk
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return
    try:
        fs, key = filesystem(uri)
        fs.put_file(str(path), key)  # in parts
    except Exception as error:  # botocore's, or that of another client behind fsspec
        raise as_os_error(uri, error) from error
    path.unlink()


def _make_parent(path: Path) -> None:
    """Create the folder of a file. Raises ``IsADirectoryError`` if ``path`` itself is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path}: {path.parent} is not a folder") from error
    if path.is_dir():  # the system's message would name the temporary file
        raise IsADirectoryError(f"{path}: is a folder: name a file in it")


def delete(uris: Iterable[str]) -> None:
    """Delete objects; a missing one is no error. Raises ``OSError``."""
    for uri in uris:
        try:
            if is_local(uri):
                local_path(uri).unlink(missing_ok=True)
            elif (client := obstore_client(uri)) is not None:
                obstore.delete(*client)
            else:
                fs, path = filesystem(uri)
                fs.rm_file(path)
        except FileNotFoundError:
            continue
        except (ObstoreError, ValueError) as error:
            raise as_os_error(uri, error) from error


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of ``uri`` and the path in it."""
    from segbatch.storage import arrow  # imports pyarrow, which takes time

    return arrow.arrow_filesystem(uri)
