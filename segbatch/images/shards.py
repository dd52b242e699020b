"""Tar shards, as WebDataset and img2dataset write them: every image in them is an image of a run.

An image's URI is that of its shard followed by ``#member=a/0001.jpg``, its name in the archive.
Members are grouped into samples as WebDataset does: the name up to the first dot of its last part
is the sample, the rest is the kind. A sample's ``.json`` (its flat keys), ``.txt`` and ``.cls``
become columns of its images; one that has the name of one image up to the last dot, of that image.

When the images are listed, the headers of a shard are read by ranges, and the manifest keeps where
each image is. A block of images then takes one range of its shard. A compressed shard has no
ranges: it is unpacked from its beginning each time. :mod:`~segbatch.images.archive` reads headers.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS, Shards, dotted, is_glob, is_shard_name
from segbatch.console import say
from segbatch.errors import Incomplete, SourceError
from segbatch.images.archive import DAMAGE, Member, UnpackingReader, damage, is_compressed, scan
from segbatch.images.faults import Content, Undecodable, why_unreadable
from segbatch.images.listing import (
    Listing,
    list_user_files,
    listed_spelling,
    match_user_files,
    reading_source,
)
from segbatch.images.place import PART_URI, PLACE, Part, Place
from segbatch.images.tables import TableStream, open_json_lines
from segbatch.storage.arrow import open_binary
from segbatch.storage.systemfiles import system_part
from segbatch.storage.traffic import traffic

FRAGMENT = r"#member=.*"  # at the end of a member's URI
_MEMBER_URI = re.compile(
    r"(.+?\.(?:tar|tar\.gz|tgz))#member=([^&]*)(?:&occurrence=(\d+))?", re.S | re.I
)

_SHARDS_AT_ONCE = 32  # that are listed
_GAP_BYTES = 256 << 10  # between two images that are still read with one request
_PIECE_BYTES = 128 << 20  # that are read with one request

_NO_MEMBER = storage.Unreadable("not_found", "the archive has no such member")


def is_member(uri: str) -> bool:
    """Whether ``uri`` is that of a member of a tar shard."""
    return _MEMBER_URI.fullmatch(uri) is not None


def member_uri(shard: str, name: str, occurrence: int = 1) -> str:
    """The URI of a member; ``occurrence`` counts the members of one name, from 1.

    An empty name stands for what follows where an archive breaks off.
    """
    plain = re.sub(r"[%&\x00-\x1f\x7f\ud800-\udfff]", _percent_encoded, name)
    return f"{shard}#member={plain}" + (f"&occurrence={occurrence}" if occurrence > 1 else "")


def _percent_encoded(match: re.Match[str]) -> str:
    return quote(match[0], safe="", errors="surrogateescape")


def _split(uri: str) -> tuple[str, str, int]:
    """The shard, the name and the occurrence."""
    match = _MEMBER_URI.fullmatch(uri)
    assert match is not None
    return match[1], unquote(match[2], errors="surrogateescape"), int(match[3] or 1)


# ---------------------------------------------------------------------------------- listing images


def open_shards(source: Shards, listing: Listing) -> TableStream:
    """A row for each image in the shards of ``source``: :data:`PART_URI`, its place, and what
    its sample says of it.

    The list is written to a local file first, because the types of its columns are known at the
    end. Raises ``SourceError``, and ``Incomplete`` if storage does not answer.
    """
    shards = find_shards(source.shards, listing.leave_out)
    say(f"listing the images in {_counted(len(shards), 'shard')}")
    if compressed := sum(map(is_compressed, shards)):
        say(
            f"{_counted(compressed, 'shard')} of them compressed: such a shard is unpacked from its"
            " beginning for every block of its images; shards that end in .tar are read by ranges"
        )
    wanted = dotted(source.extensions)
    folder = tempfile.mkdtemp(dir=listing.scratch)

    def list_one(numbered: tuple[int, str]) -> _ListedShard:
        number, shard = numbered
        listed = _ListedShard(shard, wanted, f"{folder}/{number:07d}.jsonl.gz")
        if number and time.monotonic() > listing.deadline:
            listing.whole = False
            return listed
        with gzip.open(listed.path, "wb", compresslevel=1) as file:
            file.writelines(listed.lines())
        return listed

    before = traffic()
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
        all_listed = list(threads.map(list_one, enumerate(shards)))
    listing.header_requests += traffic().requests - before.requests
    left_out: Counter[str] = Counter()
    for listed in all_listed:
        listing.skipped.update(listed.skipped)
        left_out.update(listed.left_out)
    if not any(listed.images for listed in all_listed):
        counts = listing.skipped.items()
        found = ", ".join(f"{number:,} {extension or 'without'}" for extension, number in counts)
        raise SourceError(f"{source.shards}: no image in the shards: {found or 'they are empty'}")
    if left_out:
        reasons = ", ".join(f"{what} ({number:,})" for what, number in left_out.most_common(5))
        say(f"{source.shards}: left out of the columns: {reasons}")
    return open_json_lines(source.shards, [shard.path for shard in all_listed if shard.images])


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def find_shards(location: str, leave_out: str | None = None) -> list[str]:
    """The shards at a location: one, a glob, a folder, or numbered ones in braces.

    Raises ``SourceError`` if there is none, and ``Incomplete`` if storage does not answer.
    """
    if storage.scheme_of(location) in storage.HTTP_SCHEMES:
        raise SourceError(
            f"{location}: shards are not read over http, by ranges: download them, or copy them to"
            " object storage"
        )
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", location)  # as WebDataset writes many shards
    found = _numbered(location, numbers) if numbers else _shards_at(location, leave_out)
    if not found:
        raise SourceError(f"{location}: no file, folder or glob with .tar, .tar.gz or .tgz files")
    return found


def _numbered(location: str, numbers: re.Match[str]) -> list[str]:
    """The shards of a location with ``{000..999}``, which is listed once."""
    before, after = location[: numbers.start()], location[numbers.end() :]
    width = len(numbers[1])
    chosen = range(int(numbers[1]), int(numbers[2]) + 1)
    with reading_source(location):
        matching = f"{glob.escape(before)}*{glob.escape(after)}"
        there = {file.uri for file in match_user_files(matching)}
    shards = [storage.normalize(f"{before}{number:0{width}d}{after}") for number in chosen]
    missing = [shard for shard in shards if shard not in there]
    if missing:
        more = f", nor {len(missing) - 1:,} others" if missing[1:] else ""
        raise SourceError(f"{missing[0]}: no such file{more}")
    return shards


def list_images(shard: str) -> Iterator[Member]:
    """The images in a shard, and at its end what is wrong with it. Raises as :func:`scan`."""
    wanted = dotted(IMAGE_EXTENSIONS)
    for member in _said_once(scan(shard), wanted):
        if not member.name or (member.extension in wanted and not _is_system_file(member.name)):
            yield member


def _said_once(members: Iterable[Member], wanted: frozenset[str]) -> Iterator[Member]:
    """``members`` without the nameless last one where an image before it says the same."""
    why: Undecodable | None = None
    for member in members:
        if member.name or member.why is not why:
            yield member
        why = member.why if member.extension in wanted else None


def _shards_at(place: str, leave_out: str | None) -> list[str]:
    """The shard ``place``, or those that people put into the folder or that a glob matches."""
    with reading_source(place):
        if is_glob(place):
            files = [file.uri for file in match_user_files(place, leave_out)]
        else:
            base = listed_spelling(place)
            files = [file.uri for file in list_user_files(base, leave_out)]
            if not files and is_shard_name(place):
                if not storage.exists(base):
                    raise SourceError(f"{place}: no such file")
                files = [base]
    return [file for file in files if is_shard_name(file)]


@dataclass
class _ListedShard:
    """One shard while it is listed. ``left_out``: what did not become a column."""

    shard: str
    wanted: frozenset[str]
    path: str
    images: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[bytes]:
        """A line with a JSON object for each image."""
        try:
            with reading_source(self.shard):
                version = storage.version_of(self.shard)
            members = _said_once(scan(self.shard, _describes_sample), self.wanted)
            shown = (member for member in members if not _is_system_file(member.name))
            for _, sample in groupby(shown, key=lambda member: sample_of(member.name)):
                yield from self._rows_of(list(sample), version)
        except SourceError:  # a missing shard, a forbidden one: reading the row gives the reason
            yield self._row(Member("", 1, 0, 0, _NOT_LISTED), {}, None)

    def _rows_of(self, sample: Sequence[Member], version: str) -> Iterator[bytes]:
        """A line for each image in ``sample``.

        A file describes the image of its name, as ``2024.05.01.json`` does ``2024.05.01.jpg``; one
        that has the name of the sample, or of no image, describes all of them.
        """
        images = {_stem(m.name) for m in sample if m.extension in self.wanted}
        own: dict[str, dict[str, Any]] = {}
        shared: dict[str, Any] = {}
        disputed: set[str] = set()
        for member in sample:
            if not member.content:
                continue
            if not images:
                self.left_out[f"a {member.extension} {_ALONE}"] += 1
                continue
            stem = _stem(member.name)
            is_of_image = stem in images
            values = self._columns_of(member, member.extension[1:] if is_of_image else None)
            if is_of_image:
                own[stem] = own.get(stem, {}) | values
            if not is_of_image or stem == sample_of(member.name):
                disputed.update(k for k in values if shared.get(k, values[k]) != values[k])
                shared |= values
        shared |= dict.fromkeys(disputed)
        for member in sample:
            if not member.name or member.extension in self.wanted:
                known = own.get(_stem(member.name), {})
                lost = disputed - known.keys()
                self.left_out.update(f"{key}, of which files of a sample disagree" for key in lost)
                yield self._row(member, shared | known, version)
            elif not _describes_sample(member.name):
                self.skipped[member.extension] += 1

    def _row(self, member: Member, values: dict[str, Any], version: str | None) -> bytes:
        self.images += 1
        place = Place(None, None, version)
        if member.why is None:
            place = Place(member.offset, member.size, version)
        row = {
            PART_URI: member_uri(self.shard, member.name, member.occurrence),
            PLACE.name: place._asdict(),
        }
        return f"{json.dumps(row | values, ensure_ascii=False)}\n".encode(errors="replace")

    def _columns_of(self, member: Member, kind: str | None = None) -> dict[str, Any]:
        """The columns that a file of a sample gives; its ``kind`` is WebDataset's by default."""
        kind = kind or member.name.rpartition("/")[2].partition(".")[2].lower()
        text = member.content.decode(errors="replace").strip()
        if not kind.endswith("json"):
            is_number = kind.endswith("cls") and re.fullmatch(r"-?\d{1,18}", text)
            return {kind: int(text) if is_number else text}
        try:
            values = json.loads(text, parse_constant=lambda constant: None)
        except ValueError:
            self.left_out["a .json that is no JSON"] += 1
            return {}
        if not isinstance(values, dict):
            self.left_out["a .json that is no object"] += 1
            return {}
        nested = [key for key, value in values.items() if isinstance(value, dict | list)]
        self.left_out.update(f"the nested key {key}" for key in nested)
        kept = values.keys() - set(nested) - {PART_URI, PLACE.name, ""}
        return {key: values[key] for key in values if key in kept}


_ALONE = "without an image of its sample next to it: sort the archive with tar --sort=name"
_NOT_LISTED = Undecodable("undecodable", "the shard could not be listed")


def _describes_sample(name: str) -> bool:
    return PurePosixPath(name.lower()).suffix in (".json", ".txt", ".cls")


def _is_system_file(name: str) -> bool:
    path = "/".join(part for part in name.split("/") if part.strip("."))
    return system_part(path) is not None


def sample_of(name: str) -> str:
    """The key of a member's sample: its name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _stem(name: str) -> str:
    """A member's name without its extension."""
    return name.removesuffix(PurePosixPath(name).suffix)


# ---------------------------------------------------------------------------------- reading images


def read_members(
    parts: Sequence[Part], limits: storage.ReadLimits, raw_bytes: int = 0
) -> list[Content]:
    """The image files of members of shards, or why there are none, in the order of ``parts``.

    Members that lie close together come with one request. Raises nothing for what storage answers.
    """
    contents: list[Content | None] = [None] * len(parts)
    ranges: dict[str, list[_Range]] = {}
    for number, part in enumerate(parts):
        try:
            shard, found = _locate(part)
        except (SourceError, Incomplete) as error:
            contents[number] = why_unreadable(error)
            continue
        if not isinstance(found, Place):
            contents[number] = found
        elif why := limits.why_too_large(found.size or 0):
            contents[number] = why
        else:
            ranges.setdefault(shard, []).append(_Range(number, found))
    unpacked = {shard for shard in ranges if is_compressed(shard)}
    for shard in unpacked:
        for number, content in _unpack(shard, ranges.pop(shard)):
            contents[number] = content
    for number, content in _read_ranges(ranges, limits):
        contents[number] = content
    return [_NO_MEMBER if content is None else content for content in contents]


@dataclass(frozen=True)
class _Range:
    """The bytes of one of the wanted members."""

    number: int
    place: Place

    @property
    def start(self) -> int:
        return self.place.offset or 0

    @property
    def end(self) -> int:
        return self.start + (self.place.size or 0)


def _locate(part: Part) -> tuple[str, Place | Content]:
    """The shard of a part and its place there, or why it has none."""
    shard, name, occurrence = _split(part.uri)
    place = part.place
    if place is not None and place.offset is not None:
        return shard, place
    with reading_source(shard):
        version = storage.version_of(shard)
    if place is not None and place.version not in (None, version):
        return shard, storage.REPLACED
    member = _members_of(shard, version).get((name, occurrence))
    if member is None:
        return shard, _NO_MEMBER
    return shard, member.why or Place(member.offset, member.size, version)


@lru_cache(maxsize=4)
def _members_of(shard: str, version: str) -> dict[tuple[str, int], Member]:
    """What is in a shard, for images that come without their places."""
    return {(member.name, member.occurrence): member for member in scan(shard)}


def _read_ranges(
    ranges: dict[str, list[_Range]], limits: storage.ReadLimits
) -> Iterator[tuple[int, Content]]:
    """The numbers of the wanted members and their contents."""
    groups = [(shard, group) for shard, wanted in ranges.items() for group in _neighbours(wanted)]
    pieces = [
        storage.Piece(shard, group[0].start, max(r.end for r in group), group[0].place.version)
        for shard, group in groups
    ]
    for (_, group), piece, data in zip(
        groups, pieces, storage.read_many(pieces, limits), strict=True
    ):
        for wanted in group:
            if not isinstance(data, bytes):
                yield wanted.number, data
                continue
            content = data[wanted.start - piece.start : wanted.end - piece.start]
            yield wanted.number, _whole(content, wanted)


def _neighbours(wanted: Iterable[_Range]) -> Iterator[list[_Range]]:
    """The members of one shard in groups that are read with one request each."""
    group: list[_Range] = []
    for one in sorted(wanted, key=lambda one: one.start):
        is_near = group and one.start - group[-1].end <= _GAP_BYTES
        if group and not (is_near and one.end - group[0].start <= _PIECE_BYTES):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _unpack(shard: str, wanted: Sequence[_Range]) -> Iterator[tuple[int, Content]]:
    """As :func:`_read_ranges`, from a compressed shard."""
    left = sorted(wanted, key=lambda one: one.start)
    why: Content = storage.REPLACED
    try:
        with reading_source(shard), open_binary(shard) as file:
            if left[0].place.version in (None, storage.version_of(shard)):
                reader = UnpackingReader(file)
                while left:
                    content = reader.content(left[0].start, left[0].end)
                    yield left[0].number, _whole(content, left.pop(0))
    except (SourceError, Incomplete) as error:
        why = why_unreadable(error)
    except DAMAGE as error:
        why = damage(error)
    for one in left:
        yield one.number, why


def _whole(content: bytes, wanted: _Range) -> bytes | Undecodable:
    if len(content) == wanted.end - wanted.start:
        return content
    return Undecodable("truncated", "the archive breaks off here")
