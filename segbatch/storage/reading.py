"""Reads objects and pieces of objects: many at a time, or with the reason why not.

:func:`read_many` reads up to ``limits.concurrency`` of them at a time. :func:`_read_piece` repeats
the request of one until a :class:`Download` has all of it or the retries are used up. Retries are
counted here and switched off in the clients, so the number is the same for all.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import io
import math
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import obstore
from obstore.store import ObjectStore, S3Store

from segbatch.errors import InputError
from segbatch.storage import hub
from segbatch.storage.clients import (
    filesystem,
    longest_waits_s,
    obstore_client,
    reading_client,
    retry_waits,
)
from segbatch.storage.failures import (
    Replaced,
    TooLarge,
    Unreadable,
    as_os_error,
    classify,
    has_no_length,
    is_behind_the_end,
    reading_input,
)
from segbatch.storage.text import decode_text
from segbatch.storage.traffic import count_bytes, count_request
from segbatch.storage.uris import (
    HTTP_SCHEMES,
    existing_path,
    is_local,
    scheme_of,
    split_bucket,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from obstore import ObjectMeta

DISK_THREADS = 8  # for local files, which may be on a network file system
LONGEST_DOWNLOAD_S = 86_400.0  # of a file, each megabyte of which has its own limit
LAST_CALLS_S = 1.0  # how long the end of a process waits for calls of obstore's threads

# Buckets whose ETags look like an MD5 of the content and are not: SSE-KMS, SSE-C.
BUCKETS_WITHOUT_MD5: set[str] = set()
# Web servers that announce no length, which obstore needs.
SERVERS_WITHOUT_LENGTH: set[str] = set()
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=|"  # of an address that stay as they are: it may be signed


@dataclass(frozen=True)
class ReadLimits:
    """Limits of :func:`read_many`: of each object, of each request, and of requests at a time.

    ``max_pixels`` is for pictures that are decoded to read a part of them: panoramas.
    """

    max_bytes: int = 256_000_000
    timeout_s: float = 30.0
    retries: int = 5
    concurrency: int = 32
    max_pixels: int = 200_000_000

    def why_too_large(self, size: int) -> Unreadable | None:
        """Why an object of ``size`` bytes is not read; ``None`` if it is."""
        if size <= self.max_bytes:
            return None
        message = f"{size:,} bytes; limits.max_bytes is {self.max_bytes:,}"
        return Unreadable("too_large", message)

    def longest_s(self, objects: int) -> float:
        """How long reading ``objects`` may take at most, if storage answers none of them."""
        one_s = (self.retries + 1) * self.timeout_s + longest_waits_s(self.retries)
        return math.ceil(objects / self.concurrency) * one_s


@dataclass(frozen=True)
class Piece:
    """The bytes from ``start`` to ``end`` of an object; by default all of them.

    With a ``version`` (:func:`version_of`), an object that was replaced since is not read.
    """

    uri: str
    start: int = 0
    end: int | None = None
    version: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None

    def check(self, version: str) -> None:
        """Raise :class:`~segbatch.storage.failures.Replaced` if the object has another version."""
        if self.version is not None and self.version != version:
            raise Replaced


# Limits of read_bytes; its retries outlast an outage of one minute.
SINGLE = ReadLimits(max_bytes=1 << 36, timeout_s=60, retries=7)


def read_many(wanted: Sequence[str | Piece], limits: ReadLimits) -> list[bytes | Unreadable]:
    """The bytes of each object or piece, or why it could not be read, in the order of ``wanted``.

    Costs one GET each and no HEAD, ``limits.concurrency`` at a time. A transient failure is
    retried at most ``limits.retries`` times, after waits that grow to twenty seconds. A length is
    checked before the body is read, and compared with what arrived; ``limits.max_bytes`` is for
    whole objects. A piece that ends behind the end of its object is shorter. One that begins there
    is empty, which costs a HEAD. Raises no storage errors.
    """
    pieces = [Piece(item) if isinstance(item, str) else item for item in wanted]
    if all(is_local(piece.uri) for piece in pieces):
        with ThreadPoolExecutor(DISK_THREADS) as threads:
            return list(threads.map(partial(_read_local, limits=limits), pieces))
    contents: list[bytes | Unreadable] = []
    _run_to_end(_read_all(pieces, limits, contents))
    return contents


def _run_to_end(work: Coroutine[None, None, None]) -> None:
    """Run ``work`` in a loop of its own, also where one is running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def version_of(uri: str) -> str:
    """A text that changes when the object is replaced: its ETag, or on disk size and time.

    Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``.
    """
    try:
        if is_local(uri):
            return _version_of_file(existing_path(uri).stat())
        if hub.is_on_hub(uri):
            return hub.commit_of(uri)
        client = obstore_client(uri)
        count_request()
        if client is not None:
            return _version_of_object(obstore.head(*client))
        fs, path = filesystem(uri)
        return _version_of_entry(fs.info(path))
    except Exception as error:  # that of any client behind fsspec
        raise as_os_error(uri, error) from error


def _version_of_file(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _version_of_object(meta: ObjectMeta) -> str:
    return str(meta["e_tag"] or meta["size"])


def _version_of_entry(info: Mapping[str, Any]) -> str:
    """The version of a file of fsspec, whose filesystems name things differently."""
    names = ("ETag", "etag", "blob_id", "mtime", "last_modified", "LastModified")
    known = (info[name] for name in names if info.get(name))
    return f"{info.get('size')}-{next(known, '')}"


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``."""
    [content] = read_many([uri], SINGLE)
    if isinstance(content, Unreadable):
        raise content.as_os_error(uri)
    return content


def download(address: str, path: str) -> None:
    """Copy a file on a web server to the local ``path``; its length costs no memory.

    Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``.
    """
    contents: list[bytes | Unreadable] = []

    async def copy(file: IO[bytes]) -> None:
        contents.append(await _finish(Download(Piece(address), SINGLE, file)))

    with open(path, "wb") as file:
        _run_to_end(copy(file))
    [content] = contents
    if isinstance(content, Unreadable):
        raise content.as_os_error(address)


def read_input(uri: str, wrong: type[InputError], missing: str = "no such file") -> bytes:
    """Read an object that a user named; its errors are those of :func:`reading_input`."""
    with reading_input(uri, wrong, missing):
        return read_bytes(uri)


def read_text(uri: str, wrong: type[InputError], missing: str = "no such file") -> str:
    """:func:`read_input` for a text file; see :func:`~segbatch.storage.text.decode_text`."""
    return decode_text(read_input(uri, wrong, missing), uri, wrong)


def _wait_for_last_calls() -> None:
    """Let obstore's threads return from Python before the interpreter ends.

    A thread of obstore hands over a result by a call of Python, and may still be inside it when the
    result has been read and the process ends. Before Python 3.14 such a thread aborts the process
    (python/cpython#87135): the exit code is that of SIGABRT, whatever the program returned.
    """
    deadline = time.monotonic() + LAST_CALLS_S
    while time.monotonic() < deadline:
        threads_of_python = {thread.ident for thread in threading.enumerate()}
        if sys._current_frames().keys() <= threads_of_python:
            return
        time.sleep(0.001)


atexit.register(_wait_for_last_calls)


async def _read_all(
    pieces: Sequence[Piece], limits: ReadLimits, contents: list[bytes | Unreadable]
) -> None:
    """Read all pieces into ``contents``.

    Returns nothing because asyncio (Python 3.11) takes the ``repr`` of what its main task returns
    when it restores the handler of SIGINT; for megabytes that takes tenths of a second.
    """
    slots = asyncio.Semaphore(limits.concurrency)

    async def read(piece: Piece) -> bytes | Unreadable:
        async with slots:
            return await _read_piece(piece, limits)

    contents += await asyncio.gather(*map(read, pieces))


async def _read_piece(piece: Piece, limits: ReadLimits) -> bytes | Unreadable:
    """Read one object or a piece of it, with retries."""
    if is_local(piece.uri):
        return await asyncio.to_thread(_read_local, piece, limits)
    if piece.start == piece.end:
        return b""
    return await _finish(Download(piece, limits))


async def _finish(download: Download) -> bytes | Unreadable:
    """Repeat the request of a download until it is complete or its retries are used up."""
    waits = retry_waits(download.limits.retries)
    while True:
        try:
            return await download.request()
        except Exception as error:
            failure = classify(download.piece.uri, error)
        wait = next(waits, None) if failure.transient else None
        if wait is None:
            return failure
        await asyncio.sleep(wait)


class Download:
    """One object or a piece of it, requested until all of it has arrived.

    After a timeout the next request asks for the rest only, so an object that takes longer than the
    limit arrives in several requests. After any other failure the download starts over.

    With a ``file`` the bytes go there and not into memory. Such an object may be of any length, so
    the time limit is for each megabyte of it.
    """

    def __init__(self, piece: Piece, limits: ReadLimits, file: IO[bytes] | None = None) -> None:
        self.piece = piece
        self.limits = limits
        self._file = file
        self._part_timeout_s = None if file is None else limits.timeout_s
        self._parts: list[bytes] = []
        self._arrived = 0  # bytes
        self._etag: str | None = None

    async def request(self) -> bytes:
        """Make one request; returns the bytes if they are complete with it, none with a ``file``.

        Raises :class:`~segbatch.storage.failures.TooLarge`,
        :class:`~segbatch.storage.failures.Replaced`, ``OSError`` for an incomplete object, and the
        client's own exceptions.
        """
        server = split_bucket(self.piece.uri)[0]
        if self.piece.is_whole and server in SERVERS_WITHOUT_LENGTH:
            return await asyncio.to_thread(self._receive_without_length)
        timeout_s = self.limits.timeout_s if self._file is None else LONGEST_DOWNLOAD_S
        client = reading_client(self.piece.uri, timeout_s, retries=0)
        if client is None:
            return await asyncio.to_thread(_read_with_fsspec, self.piece, self.limits)
        try:
            size = await self._receive(*client)
        except Exception as error:
            if self.piece.start and not self._arrived and is_behind_the_end(error):
                await self._check_end(*client, error)
                return b""
            is_http = scheme_of(self.piece.uri) in HTTP_SCHEMES
            if is_http and self.piece.is_whole and has_no_length(error):
                SERVERS_WITHOUT_LENGTH.add(server)
                return await asyncio.to_thread(self._receive_without_length)
            if self._etag is None or classify(self.piece.uri, error).kind != "timeout":
                self._start_over()
            raise
        arrived, data = self._arrived, b"".join(self._parts)
        if arrived != size:
            self._start_over()
            raise OSError(f"{arrived} of {size} announced bytes arrived")
        self._parts, self._arrived = [], 0
        if self.piece.is_whole and self._file is None:
            await self._verify(*client, data)
        return data

    def _start_over(self) -> None:
        self._parts, self._arrived = [], 0
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    async def _receive(self, store: ObjectStore, key: str) -> int:
        """Append what arrives to the parts or to the file; returns the size of all of it."""
        options: Any = {}
        start, end = self.piece.start + self._arrived, self.piece.end
        if start or end is not None:
            options["range"] = {"offset": start} if end is None else (start, end)
        if self._arrived:
            options["if_match"] = self._etag
        count_request()
        async with asyncio.timeout(self._part_timeout_s):
            result = await obstore.get_async(store, key, options=options or None)
        self._etag = result.meta["e_tag"]
        size: int = result.meta["size"]
        if self.piece.is_whole:
            _check_size(size, self.limits)
        if not hub.is_on_hub(self.piece.uri):  # files of a commit do not change
            self.piece.check(_version_of_object(result.meta))
        parts = aiter(result.stream(min_chunk_size=1 << 20))
        while True:
            async with asyncio.timeout(self._part_timeout_s):
                part = await anext(parts, None)
            if part is None:
                break
            count_bytes(len(part))
            self._arrived += len(part)
            if self._file is None:
                self._parts.append(bytes(part))
            else:
                self._file.write(part)
        return min(size, size if end is None else end) - self.piece.start

    def _receive_without_length(self) -> bytes:
        """Request an object of a web server that announces no length, as of what it makes."""
        if self._file is not None:
            _copy_with_fsspec(self.piece.uri, self._file, sock_read=self.limits.timeout_s)
            return b""
        memory = _BoundedBuffer(self.limits)
        _copy_with_fsspec(self.piece.uri, memory, total=self.limits.timeout_s)
        return memory.getvalue()

    async def _check_end(self, store: ObjectStore, key: str, refused: Exception) -> None:
        """Raises :class:`~segbatch.storage.failures.Replaced` if the object has another version,
        and ``refused`` if the piece does not begin behind its end.
        """
        count_request()
        meta = await obstore.head_async(store, key)
        if not hub.is_on_hub(self.piece.uri):
            self.piece.check(_version_of_object(meta))
        if self.piece.start < meta["size"]:
            raise refused

    async def _verify(self, store: ObjectStore, key: str, data: bytes) -> None:
        """Raises ``OSError`` if the announced size was wrong, as from a cache with half an object.

        The check is the ETag, which on most storage is the MD5 of the content. Where it is not,
        the size is asked for once more; if it is right, the bucket has ETags of another kind.
        """
        etag = (self._etag or "").strip('"')
        if not isinstance(store, S3Store) or not re.fullmatch("[0-9a-f]{32}", etag):
            return
        bucket = str(store.config.get("bucket"))
        if bucket in BUCKETS_WITHOUT_MD5:
            return
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            return
        count_request()
        size = (await obstore.head_async(store, key))["size"]
        if size != len(data):
            raise OSError(f"{len(data)} of {size} bytes arrived")
        BUCKETS_WITHOUT_MD5.add(bucket)


def _read_with_fsspec(piece: Piece, limits: ReadLimits) -> bytes:
    fs, path = filesystem(piece.uri, limits.timeout_s, retries=0)
    count_request()
    if piece.version is not None and not hub.is_on_hub(piece.uri):
        piece.check(_version_of_entry(fs.info(path)))
    with fs.open(path, "rb") as file:
        if not piece.is_whole:
            file.seek(piece.start)
            part = bytes(file.read(-1 if piece.end is None else piece.end - piece.start))
            count_bytes(len(part))
            return part
        data: bytes = file.read(limits.max_bytes + 1)
    count_bytes(len(data))
    _check_size(len(data), limits)
    return data


class _BoundedBuffer(io.BytesIO):
    """A file in memory, not larger than ``limits`` allow an object to be."""

    def __init__(self, limits: ReadLimits) -> None:
        super().__init__()
        self._limits = limits

    def write(self, data: ReadableBuffer, /) -> int:
        written = super().write(data)
        _check_size(min(self.tell(), self._limits.max_bytes + 1), self._limits)
        return written


def _copy_with_fsspec(
    address: str, file: IO[bytes], *, total: float | None = None, sock_read: float | None = None
) -> None:
    """Copy a file on a web server; the limits are aiohttp's, in seconds."""
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    timeout = ClientTimeout(total=total, sock_read=sock_read)
    count_request()
    try:
        fs = HTTPFileSystem(client_kwargs={"timeout": timeout}, encoded=True)
        fs.get_file(quote(address, safe=_URL_CHARACTERS), file)
        count_bytes(file.tell())
    except Exception:
        file.seek(0)
        file.truncate()
        raise


def _read_local(piece: Piece, limits: ReadLimits) -> bytes | Unreadable:
    """Read a local file, without retries: a failure of the disk is not transient."""
    try:
        path = existing_path(piece.uri)
        # Before opening it: opening a named pipe or reading a device may block for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileNotFoundError(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            piece.check(_version_of_file(status))
            if piece.is_whole:
                _check_size(status.st_size, limits)
            file.seek(piece.start)
            return file.read(-1 if piece.end is None else piece.end - piece.start)
    except Exception as error:
        return classify(piece.uri, error)


def _check_size(size: int, limits: ReadLimits) -> None:
    """Raises :class:`~segbatch.storage.failures.TooLarge`."""
    if why := limits.why_too_large(size):
        raise TooLarge(why.message)
