"""Download: one object on its way, which arrives whole or not at all.

A request that breaks off costs a new one. What came before a request ran out of time stays, so
that an object that takes longer than the limit arrives in several; after any other fault it starts
over. The length is held against what was announced. Where the announcement itself is wrong, as of
a cache that holds half an object, the ETag tells: on most storage it is the MD5 of the content.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import obstore
from obstore.store import ObjectStore, S3Store

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
