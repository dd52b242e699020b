"""Bulk: many objects are read at a time, each whole or with the reason why it cannot be.

Tries are counted here, once for all clients.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from obstore.store import ObjectStore, S3Store

from segbatch.errors import Incomplete, InputError
from segbatch.storage.clients import bulk_client, filesystem, waits
from segbatch.storage.failures import Unreadable, may_pass, one_line, why_not
from segbatch.storage.uris import is_local, local_path

# Download: one object on its way, which arrives whole or not at all.
#
# A request that breaks off costs a new one. What came before a request ran out of time stays, so
# that an object that takes longer than the limit arrives in several; after any other fault it
# starts over. The length is held against what was announced. Where the announcement itself is
# wrong, as of a cache that holds half an object, the ETag tells: on most storage it is the MD5 of
# the content.


OPAQUE: set[str] = set()  # buckets whose ETags look like an MD5 and are none: SSE-KMS, SSE-C


class TooLarge(Exception):
    """The object is larger than we were told to read."""


class BrokenOff(OSError):
    """What came is not the whole object."""


def check_size(size: int, max_bytes: int) -> None:
    """Raises :class:`TooLarge`."""
    if size > max_bytes:
        raise TooLarge(f"{size:,} bytes; limits.max_bytes is {max_bytes:,}")


class Download:
    """One object of a bucket, asked for by :meth:`go_on` until it is there."""

    def __init__(self, store: ObjectStore, key: str, max_bytes: int) -> None:
        self.store = store
        self.key = key
        self.max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._etag: str | None = None

    async def go_on(self) -> bytes:
        """Make one request, and give the object if it is whole with what it brought.

        Raises :class:`TooLarge`, :class:`BrokenOff`, or what the client does.
        """
        parts = self._parts
        try:
            size = await self._receive(parts)
        except Exception as error:
            timed_out = "kind: Timeout" in str(error) or isinstance(error, TimeoutError)
            self._parts = parts if timed_out and self._etag else []
            raise
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        if len(data) != size:
            raise BrokenOff(f"{len(data)} bytes came of {size} that were announced")
        await self._check_content(data)
        return data

    async def _receive(self, parts: list[bytes]) -> int:
        """Add what comes to ``parts``; returns the size that the whole object has."""
        options: Any = None
        if parts:
            options = {"range": {"offset": sum(map(len, parts))}, "if_match": self._etag}
        result = await obstore.get_async(self.store, self.key, options=options)
        size: int = result.meta["size"]
        self._etag = result.meta["e_tag"]
        check_size(size, self.max_bytes)
        async for part in result.stream(min_chunk_size=1 << 20):
            parts.append(bytes(part))
        return size

    async def _check_content(self, data: bytes) -> None:
        """Raises :class:`BrokenOff` where ETag and length, asked for once more, both differ."""
        etag = (self._etag or "").strip('"')
        if not isinstance(self.store, S3Store) or not re.fullmatch("[0-9a-f]{32}", etag):
            return
        bucket = str(self.store.config.get("bucket"))
        if bucket in OPAQUE or hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            return
        size = (await obstore.head_async(self.store, self.key))["size"]
        if size != len(data):
            raise BrokenOff(f"{len(data)} bytes came of {size}")
        OPAQUE.add(bucket)


DISK_THREADS = 8  # that read local files: a folder may be a network's


@dataclass(frozen=True)
class ReadLimits:
    """Bounds of one bulk read: bytes an object, seconds a request, tries after the first."""

    max_bytes: int = 256_000_000
    timeout_s: float = 30.0
    retries: int = 5
    concurrency: int = 32


SINGLE = ReadLimits(max_bytes=1 << 36, timeout_s=60, retries=7)  # outlasts a minute without answers


def read_many(uris: Sequence[str], limits: ReadLimits) -> list[bytes | Unreadable]:
    """The bytes of each object, or why not, in the order of ``uris``.

    One GET an object and no HEAD, ``limits.concurrency`` at a time; what may pass is tried again,
    ``limits.retries`` times at most, after waits that grow to twenty seconds. The length is looked
    at before the body is read, and what came is held against it. Raises nothing for what storage
    answers.
    """
    if all(map(is_local, uris)):
        with ThreadPoolExecutor(DISK_THREADS) as threads:
            return list(threads.map(partial(_read_disk, limits=limits), uris))
    contents: list[bytes | Unreadable] = []
    asyncio.run(_read_into(contents, uris, limits))
    return contents


def _read_disk(uri: str, limits: ReadLimits) -> bytes | Unreadable:
    """A local file; what is wrong with it does not pass."""
    try:
        with _opened(local_path(uri)) as file:
            check_size(os.fstat(file.fileno()).st_size, limits.max_bytes)
            return file.read()
    except TooLarge as error:
        return Unreadable("too_large", str(error))
    except Exception as error:
        return why_not(uri, error)


async def _read_into(
    contents: list[bytes | Unreadable], uris: Sequence[str], limits: ReadLimits
) -> None:
    """Returns nothing: of what the main task returns, asyncio makes a ``repr`` when it puts the
    handler of SIGINT back (Python 3.11), and of megabytes that takes tenths of a second.
    """
    slots = asyncio.Semaphore(limits.concurrency)

    async def read(uri: str) -> bytes | Unreadable:
        async with slots:
            return await _read(uri, limits)

    contents += await asyncio.gather(*(read(uri) for uri in uris))


async def _read(uri: str, limits: ReadLimits) -> bytes | Unreadable:
    """One object, tried again here and by no client: so tries are counted once for all of them."""
    if is_local(uri):
        return await asyncio.to_thread(_read_disk, uri, limits)
    download: Download | None = None
    pauses = waits(limits.retries)
    while True:
        try:
            if download is None and (client := bulk_client(uri, limits.timeout_s, 0)):
                download = Download(*client, limits.max_bytes)
            if download is None:
                return await asyncio.to_thread(_read_other, uri, limits)
            return await download.go_on()
        except TooLarge as error:
            return Unreadable("too_large", str(error))
        except Exception as error:
            why = why_not(uri, error)
            pause = next(pauses, None) if may_pass(why, error) else None
            if pause is None:
                return why
        await asyncio.sleep(pause)


def _read_other(uri: str, limits: ReadLimits) -> bytes:
    """Raises :class:`~segbatch.storage.reading.TooLarge`, or what the filesystem does."""
    fs, path = filesystem(uri, limits.timeout_s, retries=0)
    with fs.open(path, "rb") as file:
        data: bytes = file.read(limits.max_bytes + 1)
    check_size(len(data), limits.max_bytes)
    return data


def _opened(path: Path) -> BinaryIO:
    """A regular file: to open a named pipe may take for ever, and so may reading a device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FileNotFoundError(path)
    return path.open("rb")


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``."""
    content = read_many([uri], SINGLE)[0]
    if isinstance(content, bytes):
        return content
    raised: Mapping[str, type[OSError]] = {
        "not_found": FileNotFoundError,
        "forbidden": PermissionError,
        "credentials": PermissionError,
        "timeout": TimeoutError,
    }
    raise raised.get(content.kind, OSError)(f"{uri}: {content.message}")


def read_input(uri: str, wrong: type[InputError], missing: str = "no such file") -> bytes:
    """:func:`read_bytes` of what a user named; raises as :func:`reading_input`."""
    with reading_input(uri, wrong, missing):
        return read_bytes(uri)


@contextmanager
def reading_input(uri: str, wrong: type[InputError], missing: str) -> Iterator[None]:
    """Errors about what a user named: ``wrong`` where it is missing or forbidden, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise wrong(f"{uri}: {missing}") from error
    except PermissionError as error:
        raise wrong(f"{uri}: may not be read: {one_line(error)}") from error
    except OSError as error:
        raise Incomplete(f"{uri}: cannot be read: {one_line(error)}") from error
