"""Storage: every byte that is read or written goes through here.

Objects are read (many at a time in :mod:`segbatch.storage.reading`, whose names stand here, too),
listed, written (on disk and in object storage as a whole or not at all), and deleted. Which client
does it is decided in :mod:`segbatch.storage.clients`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import InvalidPathError

from segbatch.errors import Incomplete, InputError
from segbatch.storage.clients import bucket_client, bulk_client, filesystem
from segbatch.storage.failures import as_os_error, one_line
from segbatch.storage.uris import OBJECT_SCHEMES, is_local, local_path, scheme_of, split_bucket

# Above this an object is sent in parts; below, in one atomic PUT.
MULTIPART_BYTES = 64 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing: its URI and its size in bytes."""

    uri: str
    size: int


@contextmanager
def writing_output() -> Iterator[None]:
    """Errors about what a user wants written: :class:`~segbatch.errors.InputError` where it may not
    be, or where there is a folder or a file in its way, and :class:`~segbatch.errors.Incomplete`
    where storage does not answer.
    """
    try:
        yield
    except (
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
        FileExistsError,
    ) as error:
        raise InputError(f"cannot write {one_line(error)}") from error
    except OSError as error:
        raise Incomplete(f"cannot write {one_line(error)}; do it again") from error


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of ``uri`` and the path in it."""
    from segbatch.storage import arrow as arrowfiles  # and pyarrow only where it is needed

    return arrowfiles.arrow_filesystem(uri)


def writes_whole(uri: str) -> bool:
    """Whether whoever is killed while writing to ``uri`` leaves all of a file or nothing: on disk
    and in object storage. What else fsspec speaks to may keep a part.
    """
    return is_local(uri) or scheme_of(uri) in OBJECT_SCHEMES


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object: where storage :func:`writes_whole`, either all of it is seen under
    ``uri`` or what was there before.

    Raises ``PermissionError`` or ``OSError``.
    """
    if is_local(uri):
        _write_local(local_path(uri), data)
        return
    try:
        large = len(data) > MULTIPART_BYTES
        client = bulk_client(uri, 300.0 if large else 60.0)
        if client is None:
            fs, path = filesystem(uri)
            fs.pipe_file(path, data)
        else:
            obstore.put(*client, data, use_multipart=large)
    except (ObstoreError, OSError, ValueError) as error:
        raise as_os_error(uri, error) from error


def upload(path: Path, uri: str) -> None:
    """Move a local file, however large, to ``uri``; seen there as by :func:`write_bytes`.

    A file that cannot be moved to its place is gone. Raises ``PermissionError`` or ``OSError``.
    """
    if is_local(uri):
        target = local_path(uri)
        _make_room(target)
        path.chmod(0o644)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            shutil.move(path, beside)  # which copies, where it comes from another disk
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        return
    try:
        fs, key = filesystem(uri)
        fs.put_file(str(path), key)  # in parts
    except Exception as error:  # of botocore, and of whatever else is behind fsspec
        raise as_os_error(uri, error) from error
    path.unlink()


def _make_room(path: Path) -> None:
    """The folder that a file is to be in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # the system would name the temporary file as well
        raise IsADirectoryError(f"{path}: is a folder: name a file in it")


def _write_local(path: Path, data: bytes) -> None:
    _make_room(path)
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


def exists(uri: str) -> bool:
    """Whether the object is there. Raises ``PermissionError`` or ``OSError``, never guesses."""
    if is_local(uri):
        return local_path(uri).exists()
    try:
        client = bulk_client(uri)
        if client is None:
            fs, path = filesystem(uri)
            return bool(fs.exists(path))
        obstore.head(*client)
    except FileNotFoundError:
        return False
    except (ObstoreError, OSError, ValueError) as error:
        raise as_os_error(uri, error) from error
    return True


def list_files(folder: str) -> Iterator[StoredFile]:
    """All files below ``folder``, at any depth, by key; nothing where there is no such folder.

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
                pass  # one key that obstore does not take ends its listing: fsspec goes on
        yield from (file for file in _list_other(folder) if file.uri > last)
    except (ObstoreError, OSError, ValueError, NotImplementedError) as error:
        raise as_os_error(folder, error) from error


def _list_local(folder: Path) -> Iterator[StoredFile]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    # By key, as object storage lists: a folder stands where its files' keys do.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir()):
        if entry.is_dir():
            yield from _list_local(Path(entry.path))
        elif entry.is_file():
            yield StoredFile(entry.path, entry.stat().st_size)


def _list_other(folder: str) -> Iterator[StoredFile]:
    fs, path = filesystem(folder)
    for name, info in fs.find(path, detail=True).items():
        yield StoredFile(fs.unstrip_protocol(name), info["size"])


def delete(uris: Iterable[str]) -> None:
    """Delete objects; one that is not there is no error. Raises ``OSError``."""
    for uri in uris:
        try:
            if is_local(uri):
                local_path(uri).unlink(missing_ok=True)
            elif (client := bulk_client(uri)) is not None:
                obstore.delete(*client)
            else:
                fs, path = filesystem(uri)
                fs.rm_file(path)
        except FileNotFoundError:
            continue
        except (ObstoreError, ValueError) as error:
            raise as_os_error(uri, error) from error
