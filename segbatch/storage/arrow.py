"""pyarrow and storage: reading files by ranges, and binary columns without copies.

pyarrow reads only the columns it needs, through obstore. s3fs would retry what its own client has
retried already and give up on a body that breaks off, and fsspec reports storage that does not
answer as a missing file.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import obstore
import pyarrow as pa
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import ObjectStore
from pyarrow.fs import FileInfo, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from segbatch.storage.clients import RETRIES, filesystem, obstore_client, retry_waits
from segbatch.storage.failures import as_os_error, classify
from segbatch.storage.traffic import count_bytes, count_request
from segbatch.storage.uris import OBJECT_SCHEMES, is_local, local_path, scheme_of

Blob = npt.NDArray[np.uint8]
T = TypeVar("T")


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of ``uri`` and the path in it."""
    if is_local(uri):
        return LocalFileSystem(), str(local_path(uri))
    fs, path = filesystem(uri)
    scheme = scheme_of(uri)
    handler = ObjectHandler(fs, scheme) if scheme in OBJECT_SCHEMES else FSSpecHandler(fs)
    return PyFileSystem(handler), path


def open_binary(uri: str) -> IO[bytes]:
    """A file on any storage, to be read and sought in; each read is a request to object storage.

    Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``.
    """
    if is_local(uri):
        return local_path(uri).open("rb")
    client = obstore_client(uri, retries=0)
    if client is not None:
        return cast(IO[bytes], ObjectFile(uri, *client))
    fs, path = filesystem(uri)
    return cast(IO[bytes], fs.open(path, "rb"))


class ObjectHandler(FSSpecHandler):  # type: ignore[misc]
    """fsspec's handler, with obstore to look at files and to read them."""

    def __init__(self, fs: Any, scheme: str) -> None:
        super().__init__(fs)
        self.scheme = scheme

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        client = obstore_client(f"{self.scheme}://{path}")
        try:
            if client is not None:
                size = obstore.head(*client)["size"]
                return FileInfo(path, FileType.File, size=size)
        except FileNotFoundError:
            pass  # it may be a folder
        except (ObstoreError, OSError, ValueError) as error:
            raise as_os_error(f"{self.scheme}://{path}", error) from error
        [info] = super().get_file_info([path])
        return info

    def open_input_file(self, path: str) -> pa.NativeFile:
        uri = f"{self.scheme}://{path}"
        client = obstore_client(uri, retries=0)
        if client is None:
            return super().open_input_file(path)
        return pa.PythonFile(ObjectFile(uri, *client), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)


class ObjectFile(io.RawIOBase):
    """One object as a file, read by ranges with retries."""

    def __init__(self, uri: str, store: ObjectStore, key: str) -> None:
        self.uri, self.store, self.key = uri, store, key
        self.position = 0
        self.size = self._retry(lambda: int(obstore.head(store, key)["size"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        end = self.size if size is None or size < 0 else min(self.position + size, self.size)
        start, self.position = self.position, max(self.position, end)
        if end <= start:
            return b""
        return self._retry(lambda: self._get(start, end))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _get(self, start: int, end: int) -> bytes:
        data = obstore.get_range(self.store, self.key, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes arrived")
        count_bytes(len(data))
        return bytes(data)

    def _retry(self, request: Callable[[], T]) -> T:
        waits = retry_waits(RETRIES)
        while True:
            count_request()
            try:
                return request()
            except (ObstoreError, OSError, ValueError) as error:
                failure = classify(self.uri, error)
                wait = next(waits, None) if failure.transient else None
                if wait is None:
                    raise failure.as_os_error(self.uri) from error
            time.sleep(wait)


def binary_column(content: Blob, ends: Sequence[int]) -> pa.Array:
    """A large_binary column over ``content``, without a copy; a row without bytes is null.

    ``ends`` has a 0, then the end of each row's bytes.
    """
    offsets = np.array(ends, np.int64)
    valid = pa.array(np.diff(offsets) > 0)
    buffers = [valid.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(content[: ends[-1]])]
    return pa.Array.from_buffers(pa.large_binary(), len(valid), buffers)


def binary_views(column: pa.ChunkedArray) -> list[Blob | None]:
    """The bytes of each row of a binary or large_binary column; ``None`` where it is null.

    Read-only views of the column's memory. A scalar of it, ``column[row]``, would be a copy.
    """
    offset_type = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    views: list[Blob | None] = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, offset_type)[chunk.offset :]
        content = np.frombuffer(data or b"", np.uint8)
        content.flags.writeable = False
        views += [
            content[ends[row] : ends[row + 1]] if valid else None
            for row, valid in enumerate(chunk.is_valid().to_pylist())
        ]
    return views
