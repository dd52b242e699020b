"""Reads objects: many at a time, each whole, or with the reason why it could not be read.

:func:`read_many` reads up to ``limits.concurrency`` objects at a time. :func:`_read_object` repeats
the request of one object until a :class:`Download` has all of it or the retries are used up.
Retries are counted here and switched off in the clients, so the number is the same for all.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import obstore
from obstore.store import ObjectStore, S3Store

from segbatch.errors import InputError
from segbatch.storage.clients import filesystem, longest_waits_s, obstore_client, retry_waits
from segbatch.storage.failures import TooLarge, Unreadable, classify, reading_input
from segbatch.storage.text import decode_text
from segbatch.storage.uris import is_local, local_path

DISK_THREADS = 8  # for local files, which may be on a network file system

# Buckets whose ETags look like an MD5 of the content and are not: SSE-KMS, SSE-C.
BUCKETS_WITHOUT_MD5: set[str] = set()


@dataclass(frozen=True)
class ReadLimits:
    """Limits of :func:`read_many`: of each object, of each request, and of requests at a time."""

    max_bytes: int = 256_000_000
    timeout_s: float = 30.0
    retries: int = 5
    concurrency: int = 32

    def longest_s(self, objects: int) -> float:
        """How long reading ``objects`` may take at most, if storage answers none of them."""
        one_s = (self.retries + 1) * self.timeout_s + longest_waits_s(self.retries)
        return math.ceil(objects / self.concurrency) * one_s


# Limits of read_bytes; its retries outlast an outage of one minute.
SINGLE = ReadLimits(max_bytes=1 << 36, timeout_s=60, retries=7)


def read_many(uris: Sequence[str], limits: ReadLimits) -> list[bytes | Unreadable]:
    """The bytes of each object, or why it could not be read, in the order of ``uris``.

    Costs one GET an object and no HEAD, ``limits.concurrency`` at a time. A transient failure is
    retried at most ``limits.retries`` times, after waits that grow to twenty seconds. The length is
    checked before the body is read, and compared with what arrived. Raises no storage errors.
    """
    if all(map(is_local, uris)):
        with ThreadPoolExecutor(DISK_THREADS) as threads:
            return list(threads.map(partial(_read_local, limits=limits), uris))
    contents: list[bytes | Unreadable] = []
    asyncio.run(_read_all(uris, limits, contents))
    return contents


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``."""
    [content] = read_many([uri], SINGLE)
    if isinstance(content, Unreadable):
        raise content.as_os_error(uri)
    return content


def read_input(uri: str, wrong: type[InputError], missing: str = "no such file") -> bytes:
    """Read an object that a user named; its errors are those of :func:`reading_input`."""
    with reading_input(uri, wrong, missing):
        return read_bytes(uri)


def read_text(uri: str, wrong: type[InputError], missing: str = "no such file") -> str:
    """:func:`read_input` for a text file; see :func:`~segbatch.storage.text.decode_text`."""
    return decode_text(read_input(uri, wrong, missing), uri, wrong)


async def _read_all(
    uris: Sequence[str], limits: ReadLimits, contents: list[bytes | Unreadable]
) -> None:
    """Read all objects into ``contents``.

    Returns nothing because asyncio (Python 3.11) takes the ``repr`` of what its main task returns
    when it restores the handler of SIGINT; for megabytes that takes tenths of a second.
    """
    slots = asyncio.Semaphore(limits.concurrency)

    async def read(uri: str) -> bytes | Unreadable:
        async with slots:
            return await _read_object(uri, limits)

    contents += await asyncio.gather(*map(read, uris))


async def _read_object(uri: str, limits: ReadLimits) -> bytes | Unreadable:
    """Read one object, with retries."""
    if is_local(uri):
        return await asyncio.to_thread(_read_local, uri, limits)
    download = Download(uri, limits)
    waits = retry_waits(limits.retries)
    while True:
        try:
            return await download.request()
        except Exception as error:
            failure = classify(uri, error)
        wait = next(waits, None) if failure.transient else None
        if wait is None:
            return failure
        await asyncio.sleep(wait)


class Download:
    """One object, requested until all of it has arrived.

    After a timeout the next request asks for the rest only, so an object that takes longer than the
    limit arrives in several requests. After any other failure the download starts over.
    """

    def __init__(self, uri: str, limits: ReadLimits) -> None:
        self.uri = uri
        self.limits = limits
        self._parts: list[bytes] = []
        self._etag: str | None = None

    async def request(self) -> bytes:
        """Make one request; returns the object if it is complete with it.

        Raises :class:`~segbatch.storage.failures.TooLarge`, ``OSError`` for an incomplete object,
        and the client's own exceptions.
        """
        client = obstore_client(self.uri, self.limits.timeout_s, retries=0)
        if client is None:
            return await asyncio.to_thread(_read_with_fsspec, self.uri, self.limits)
        try:
            size = await self._receive(*client)
        except Exception as error:
            if self._etag is None or classify(self.uri, error).kind != "timeout":
                self._parts = []
            raise
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if len(data) != size:
            raise OSError(f"{len(data)} of {size} announced bytes arrived")
        await self._verify(*client, data)
        return data

    async def _receive(self, store: ObjectStore, key: str) -> int:
        """Append what arrives to the parts; returns the size of the whole object."""
        options: Any = None
        if self._parts:
            options = {"range": {"offset": sum(map(len, self._parts))}, "if_match": self._etag}
        result = await obstore.get_async(store, key, options=options)
        self._etag = result.meta["e_tag"]
        size: int = result.meta["size"]
        _check_size(size, self.limits)
        async for part in result.stream(min_chunk_size=1 << 20):
            self._parts.append(bytes(part))
        return size

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
        size = (await obstore.head_async(store, key))["size"]
        if size != len(data):
            raise OSError(f"{len(data)} of {size} bytes arrived")
        BUCKETS_WITHOUT_MD5.add(bucket)


def _read_with_fsspec(uri: str, limits: ReadLimits) -> bytes:
    fs, path = filesystem(uri, limits.timeout_s, retries=0)
    with fs.open(path, "rb") as file:
        data: bytes = file.read(limits.max_bytes + 1)
    _check_size(len(data), limits)
    return data


def _read_local(uri: str, limits: ReadLimits) -> bytes | Unreadable:
    """Read a local file, without retries: a failure of the disk is not transient."""
    try:
        path = _existing(local_path(uri))
        # Before opening it: opening a named pipe or reading a device may block for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileNotFoundError(path)
        with path.open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, limits)
            return file.read()
    except Exception as error:
        return classify(uri, error)


def _existing(path: Path) -> Path:
    """``path``, or the file of the same name in another Unicode form (macOS decomposes names)."""
    if not path.exists() and not str(path).isascii():
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if other.exists():
                return other
    return path


def _check_size(size: int, limits: ReadLimits) -> None:
    """Raises :class:`~segbatch.storage.failures.TooLarge`."""
    if size > limits.max_bytes:
        raise TooLarge(f"{size:,} bytes; limits.max_bytes is {limits.max_bytes:,}")
