"""Lists, writes and deletes files on disk and in object storage."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import InvalidPathError

from segbatch.console import say
from segbatch.storage.clients import bucket_client, filesystem, obstore_client
from segbatch.storage.failures import as_os_error
from segbatch.storage.uris import (
    OBJECT_SCHEMES,
    is_local,
    local_path,
    local_uri,
    scheme_of,
    split_bucket,
)

MULTIPART_BYTES = 64 << 20  # a larger object is uploaded in parts, a smaller one in one PUT


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing: its URI and its size in bytes."""

    uri: str
    size: int


def list_files(folder: str) -> Iterator[StoredFile]:
    """All files below ``folder``, at any depth, sorted by key; nothing if the folder is missing.

    On disk, links to folders are followed, but not to those that are listed anyway. A name that is
    not UTF-8 is escaped, in a ``file://`` URI.

    Raises ``FileNotFoundError`` for a missing bucket, ``PermissionError`` or ``OSError``.
    """
    if is_local(folder):
        yield from _list_local(local_path(folder))
        return
    root, prefix = split_bucket(folder)
    last = ""
    try:
        if scheme_of(folder) in OBJECT_SCHEMES:
            try:
                for chunk in obstore.list(bucket_client(root), prefix.rstrip("/") or None):
                    for entry in chunk:
                        last = f"{root}/{entry['path']}"
                        yield StoredFile(last, entry["size"])
                return
            except InvalidPathError:
                pass  # obstore stops at a key that it does not accept: fsspec lists the rest
        fs, path = filesystem(folder)
        for name, info in fs.find(path, detail=True).items():
            uri = fs.unstrip_protocol(name)
            if uri > last:
                yield StoredFile(uri, info["size"])
    except (ObstoreError, OSError, ValueError, NotImplementedError) as error:
        raise as_os_error(folder, error) from error


def _list_local(folder: Path, listed: tuple[str, ...] = ()) -> Iterator[StoredFile]:
    """``listed`` are the real paths of the folder that is listed and of links that led here."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    listed = listed or (os.path.realpath(folder),)
    # In the order of object storage, where a folder sorts as its files' keys do.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir()):
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _list_local(Path(entry.path), listed)
                continue
            target = os.path.realpath(entry.path)
            if any(f"{target}/".startswith(f"{known}/") for known in listed) or any(
                f"{known}/".startswith(f"{target}/") for known in listed
            ):
                say(
                    f"{entry.path}: a link to {target}, whose files are listed without it; left out"
                )
            else:
                yield from _list_local(Path(entry.path), (*listed, target))
        elif entry.is_file():
            yield StoredFile(local_uri(entry.path), entry.stat().st_size)


def exists(uri: str) -> bool:
    """Whether the object exists. Raises ``PermissionError`` or ``OSError`` if that is unknown."""
    if is_local(uri):
        return local_path(uri).exists()
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
    path.parent.mkdir(parents=True, exist_ok=True)
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
