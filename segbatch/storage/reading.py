"""Bulk: many objects are read at a time, each whole or with the reason why it cannot be.

Tries are counted here, once for all clients.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from segbatch.storage.clients import bulk_client, filesystem, waits
from segbatch.storage.download import Download, TooLarge, check_size
from segbatch.storage.failures import Unreadable, may_pass, why_not
from segbatch.storage.uris import is_local, local_path

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
    """Raises :class:`~segbatch.storage.download.TooLarge`, or what the filesystem does."""
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
