"""Tar archives on any storage: what is in them and where, compressed or not.

:mod:`tarfile` parses the headers. The readers under it ask storage for ranges, or unpack from the
beginning, and stop at what would never end. Nothing is ever extracted to a disk.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any

from segbatch import storage
from segbatch.images.faults import Undecodable
from segbatch.images.listing import reading_source
from segbatch.storage.arrow import open_binary

_HEAD_BYTES = 16 << 10  # of the first read at a header, and the least of every read
_MOST_BYTES = 4 << 20  # of a read while members are small and follow each other
_SKIPPED_BYTES = 64 << 10  # to the next header: less is read through, more is jumped over
_UNPACK_BYTES = 8 << 20  # of a compressed shard, read at a time
_CONTENT_BYTES = 1 << 20  # of a file that is read while its archive is listed
_HEADER_BYTES = 1 << 20  # of a name, and of the extensions of a header
_FILL_BYTES = 1 << 20  # of zeros behind an archive, in which another one is looked for
_BOMB_RATIO, _BOMB_BYTES = 100, 1 << 30  # an archive that unpacks to more than both is refused

# What tarfile and gzip raise for archives that are cut off, damaged or hostile.
DAMAGE = (
    tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file in an archive: its data are ``size`` bytes from ``offset`` on.

    ``why`` says why it cannot be read; ``content`` are its bytes if they were asked for.
    The last one has no name if the archive breaks off or is damaged there.
    """

    name: str
    occurrence: int
    offset: int
    size: int
    why: Undecodable | None = None
    content: bytes = b""

    @property
    def extension(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


class RangeReader:
    """Reads a file by ranges, in which it skips the data of members.

    A read takes what is next, and twice as much each time as long as the headers follow closely.
    ``last`` are the bytes that were read last.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""
        self._position = self._start = 0
        self._held = b""
        self._next_bytes = _HEAD_BYTES

    def read(self, size: int) -> bytes:
        _refuse_long_header(size)
        end = self._start + len(self._held)
        if not self._start <= self._position <= self._position + size <= end:
            skipped = self._position - end
            is_close = skipped + size >= 0 and skipped <= _SKIPPED_BYTES
            self._next_bytes = min(2 * self._next_bytes, _MOST_BYTES) if is_close else _HEAD_BYTES
            self._start = self._position
            self.file.seek(self._start)
            self._held = self.file.read(max(size, self._next_bytes))
        first = self._position - self._start
        self.last = self._held[first : first + size]
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def end(self) -> int:
        return self.file.seek(0, io.SEEK_END)


class UnpackingReader:
    """Reads a compressed file from its beginning on; what is skipped is unpacked as well.

    ``last`` are the bytes that were read last.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""
        self._unpacked = gzip.GzipFile(fileobj=io.BufferedReader(file, _UNPACK_BYTES))  # type: ignore[type-var]
        self._position = 0
        self._content = b""

    def read(self, size: int) -> bytes:
        _refuse_long_header(size)
        self.last = self._take(size)
        return self.last

    def seek(self, position: int) -> int:
        while self._position < position and self._take(min(position - self._position, 1 << 20)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def end(self) -> int:
        return self._position

    def content(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``; ``start`` is not before that of the last call."""
        if start < self._position:  # the same image once more
            return self._content
        self.seek(start)
        self._content = self._take(end - start)
        return self._content

    def _take(self, size: int) -> bytes:
        data = self._unpacked.read(size)
        self._position += len(data)
        if self._position > max(_BOMB_BYTES, _BOMB_RATIO * self.file.tell()):
            raise tarfile.ReadError(f"it unpacks to more than {_BOMB_RATIO} times its size")
        return data


def _refuse_long_header(size: int) -> None:
    if not 0 <= size <= _HEADER_BYTES:
        raise tarfile.ReadError(f"a header of {size:,} bytes")


def is_compressed(shard: str) -> bool:
    """Whether an archive has to be unpacked to be read."""
    return not shard.lower().endswith(".tar")


def scan(shard: str, wants_content: Callable[[str], bool] = lambda name: False) -> Iterator[Member]:
    """The files in a shard, in their order; ``wants_content`` names those to read as well.

    Raises ``SourceError`` if it cannot be opened, and ``Incomplete`` if storage does not answer.
    """
    occurrences: Counter[str] = Counter()
    pending: Member | None = None  # until the archive is known to go on behind it
    with reading_source(shard), open_binary(shard) as file:
        reader: Any = (UnpackingReader if is_compressed(shard) else RangeReader)(file)
        try:
            with tarfile.open(
                fileobj=reader, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as archive:
                while True:
                    header = archive.next()
                    if header is None:
                        why = _why_ended(reader.last)
                        header = None if why else _first_of_appended(archive)
                    if header is None:
                        break
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep all
                    if header.size < 0:  # tarfile would go back, and never end
                        raise tarfile.ReadError("a size below zero")
                    if pending:
                        yield pending
                    pending = None
                    if header.isdir():
                        continue
                    name = header.name
                    occurrences[name] += 1
                    pending = Member(
                        name,
                        occurrences[name],
                        header.offset_data,
                        header.size,
                        _why_not_whole(header),
                        _content(archive, header) if wants_content(name) else b"",
                    )
        except DAMAGE as error:
            why = damage(error)
        is_broken = pending is not None and reader.end() < pending.offset + pending.size
    if pending and is_broken:
        pending = replace(pending, why=why)
    if pending:
        yield pending
    if why:
        yield Member("", 1, 0, 0, why)


def _first_of_appended(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The first header of an archive that was appended, as ``cat a.tar b.tar`` does; zeros fill the
    one before it up to a record.
    """
    try:
        for _ in range(0, _FILL_BYTES, tarfile.BLOCKSIZE):
            try:
                return tarfile.TarInfo.fromtarfile(archive)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
                continue
    except DAMAGE:  # what follows is no archive
        pass
    return None


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    if not header.isreg() or header.issparse() or header.size > _CONTENT_BYTES:
        return b""
    file = archive.extractfile(header)
    return file.read() if file else b""


def _why_not_whole(header: tarfile.TarInfo) -> Undecodable | None:
    if header.issym() or header.islnk():
        goal = storage.one_line(ValueError(header.linkname))
        return Undecodable("unsupported", f"a link to {goal} in its archive")
    if header.issparse():
        return Undecodable("unsupported", "a sparse file in its archive: pack it without --sparse")
    return None if header.isreg() else Undecodable("unsupported", "no file in its archive")


def _why_ended(last: bytes) -> Undecodable | None:
    """What is wrong with the end of an archive, whose ``last`` block should be empty."""
    if len(last) == tarfile.BLOCKSIZE:
        is_end = not last.strip(b"\0")
        return None if is_end else Undecodable("undecodable", "the archive is damaged here")
    return Undecodable("truncated", "the archive breaks off here")


def damage(error: Exception) -> Undecodable:
    """What is wrong with an archive, by one of :data:`DAMAGE`."""
    text = storage.one_line(error)
    if isinstance(error, EOFError) or re.search("unexpected end|truncated|end of file", text):
        return Undecodable("truncated", "the archive breaks off here")
    if "not a gzip" in text.lower() or "not a tar" in text.lower() or "empty file" in text:
        return Undecodable("undecodable", "no tar archive")
    return Undecodable("undecodable", f"the archive is damaged here: {text}")
