"""Arrow's files: how pyarrow reads an object by ranges, as few of its columns as are asked for.

By the client of the bulk reads. s3fs asks anew what its own client asked anew, and gives up on a
body that breaks off; and fsspec takes a storage that does not answer for a file that is not there.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import obstore
import pyarrow as pa
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import ObjectStore
from pyarrow.fs import FileInfo, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from segbatch.storage.clients import RETRIES, bulk_client, filesystem, waits
from segbatch.storage.failures import as_os_error, may_pass, why_not
from segbatch.storage.uris import OBJECT_SCHEMES, is_local, local_path, scheme_of


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of ``uri`` and the path in it."""
    if is_local(uri):
        return LocalFileSystem(), str(local_path(uri))
    fs, path = filesystem(uri)
    scheme = scheme_of(uri)
    handler = ObjectHandler(fs, scheme) if scheme in OBJECT_SCHEMES else FSSpecHandler(fs)
    return PyFileSystem(handler), path


class ObjectHandler(FSSpecHandler):  # type: ignore[misc]
    """fsspec's handler, but for looking at files and reading them."""

    def __init__(self, fs: Any, scheme: str) -> None:
        super().__init__(fs)
        self.scheme = scheme

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        client = bulk_client(f"{self.scheme}://{path}")
        try:
            if client is not None:
                size = obstore.head(*client)["size"]
                return FileInfo(path, FileType.File, size=size)
        except FileNotFoundError:
            pass  # a folder, it may be
        except (ObstoreError, OSError, ValueError) as error:
            raise as_os_error(f"{self.scheme}://{path}", error) from error
        [info] = super().get_file_info([path])
        return info

    def open_input_file(self, path: str) -> pa.NativeFile:
        uri = f"{self.scheme}://{path}"
        client = bulk_client(uri, retries=0)
        if client is None:
            return super().open_input_file(path)
        return pa.PythonFile(ObjectFile(uri, *client), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)


class ObjectFile(io.RawIOBase):
    """One object, read by ranges; each is tried again as often as small things are."""

    def __init__(self, uri: str, store: ObjectStore, key: str) -> None:
        self.uri, self.store, self.key = uri, store, key
        self.position = 0
        self.size: int = self._persist(lambda: obstore.head(store, key)["size"])

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
        return bytes(self._persist(lambda: self._get(start, end)))

    def _get(self, start: int, end: int) -> Any:
        data = obstore.get_range(self.store, self.key, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came of {end - start}")
        return data

    def _persist(self, ask: Any) -> Any:
        pauses = waits(RETRIES)
        while True:
            try:
                return ask()
            except (ObstoreError, OSError, ValueError) as error:
                pause = next(pauses, None) if may_pass(why_not(self.uri, error), error) else None
                if pause is None:
                    raise as_os_error(self.uri, error) from error
            time.sleep(pause)


# Blobs: columns of large binaries, made of bytes and seen as bytes without a copy.


Blob = npt.NDArray[np.uint8]


def binary_column(content: Blob, ends: Sequence[int]) -> pa.Array:
    """The large_binary column over ``content``, without copying it; what is empty is null.

    ``ends`` begins with 0 and has the end of each row's bytes.
    """
    offsets = np.array(ends, np.int64)
    valid = pa.array(np.diff(offsets) > 0)
    buffers = [valid.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(content[: ends[-1]])]
    return pa.Array.from_buffers(pa.large_binary(), len(valid), buffers)


def binary_views(column: pa.ChunkedArray) -> list[Blob | None]:
    """The bytes of each row of a binary or large_binary column; ``None`` where it is null.

    Views of the column's memory, read only. A scalar of it, ``column[row]``, would be a copy.
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
