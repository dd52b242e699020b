"""Reads the Delta log and the data files of a table, verified by checksums.

The step *commit* (:mod:`segbatch.results.table`) writes the entries that are read here, with three
checksums: a digest of what the commit meant to write stands in the entry, the next commit notes the
entry's SHA-256, and ``run.json`` notes that of the newest entry. A change of any byte contradicts
one of them. Delta's own readers check none of this; drivers, audit and repair do, and therefore
read the entries here without deltalake.

Whether a stored file is damaged is decided by its SHA-256 alone: an error while reading it may also
be the storage's fault, or ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged

_NAME = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"_last_checkpoint|\d{20}\.checkpoint.*\.parquet")
_ACTIONS = frozenset({"commitInfo", "protocol", "metaData", "add", "remove"})

# What our commits note in ``commitInfo``, in addition to what Delta writes there.
NOTED = frozenset(
    {
        "commit_id", "driver", "event",
        "sha256",  # of each file that the commit adds
        "log",  # version → SHA-256 of earlier entries: the previous one, and repaired ones
        "run",  # in the first entry: what was frozen, as JSON
        "engine", "precision", "quantized",  # of the predictions in the files
        "rows",  # of stats/: the version of rows/ that it was made from
    }
)  # fmt: skip


@dataclass(frozen=True)
class TableFile:
    """A data file that a table holds, as the table's log describes it."""

    name: str  # relative to the table's folder
    size: int
    rows: int
    first_id: int
    last_id: int


@dataclass(frozen=True)
class LogEntry:
    """One entry of a Delta log: the files that it adds, the names that it removes, its note."""

    version: int
    sha256: str
    add: list[TableFile]
    remove: list[str]
    note: dict[str, Any]


@dataclass(frozen=True)
class DeltaLog:
    """A table's log: its intact entries by version, and the versions that are damaged or gone."""

    uri: str  # of the table
    version: int  # the newest
    entries: dict[int, LogEntry]
    damaged: list[int]
    checkpoints: list[str]  # we write none

    @classmethod
    def read(cls, table_uri: str, noted: Mapping[str, str]) -> DeltaLog | None:
        """The log of a table; ``None`` if it has none.

        ``noted`` is what ``run.json`` says about the log: version → SHA-256. Raises ``OSError`` if
        storage fails, which is not damage.
        """
        folder = storage.join(table_uri, "_delta_log")
        names = [storage.name_of(file.uri) for file in storage.list_files(folder)]
        versions = {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
        newest = max([*versions, *map(int, noted)], default=-1)
        if newest < 0:
            return None
        entries = _read_verified(table_uri, newest, versions, noted)
        damaged = [version for version in range(newest + 1) if version not in entries]
        checkpoints = [storage.join(folder, name) for name in names if _CHECKPOINT.fullmatch(name)]
        return cls(table_uri, newest, entries, damaged, checkpoints)

    def files(self) -> list[TableFile]:
        """The files that the table holds, by ``first_id``."""
        files: dict[str, TableFile] = {}
        for entry in self.entries.values():
            files |= {file.name: file for file in entry.add}
            for name in entry.remove:
                files.pop(name, None)
        return sorted(files.values(), key=lambda file: file.first_id)

    @cached_property
    def added_in(self) -> dict[str, int]:
        """The version that added each data file, by the file's name."""
        return {file.name: v for v, entry in self.entries.items() for file in entry.add}

    @cached_property
    def sha256(self) -> dict[str, str]:
        """The SHA-256 of each data file by its name, as noted by the commit that added it."""
        notes = [entry.note.get("sha256", {}) for entry in self.entries.values()]
        return {name: sha256 for note in notes for name, sha256 in note.items()}

    def refuse_damage(self) -> None:
        """Raise :class:`~segbatch.errors.Damaged` for a damaged log: nothing is added to one."""
        if self.damaged:
            raise Damaged(entry_uri(self.uri, self.damaged[0]), "it is not what was committed")


def entry_uri(table_uri: str, version: int) -> str:
    return storage.join(table_uri, "_delta_log", f"{version:020d}.json")


def read_entry(table_uri: str, version: int) -> LogEntry:
    """Read one entry, and check it against its own digest.

    Raises :class:`~segbatch.errors.Damaged`, ``FileNotFoundError`` or ``OSError``.
    """
    uri = entry_uri(table_uri, version)
    entry = _parse(version, storage.read_bytes(uri))
    if entry is None:
        raise Damaged(uri, "it is not an entry of a Delta log")
    return entry


def digest(
    note: Mapping[str, Any], add: Iterable[tuple[str, int, str]], remove: Iterable[str]
) -> str:
    """SHA-256 of a commit's content: its note, ``path, size, stats`` of added files, removed paths.

    Only keys in :data:`NOTED` count: Delta adds others to the note.
    """
    ours = {key: value for key, value in note.items() if key in NOTED}
    text = json.dumps([ours, sorted(add), sorted(remove)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_verified(
    table_uri: str, newest: int, listed: set[int], noted: Mapping[str, str]
) -> dict[int, LogEntry]:
    """The intact entries up to version ``newest``, by version.

    They are checked from the newest to the oldest: each notes the checksums of earlier ones.
    """
    uris = [entry_uri(table_uri, version) for version in range(newest + 1)]
    contents = storage.read_many(uris, storage.ReadLimits())
    entries: dict[int, LogEntry] = {}
    checksums: dict[str, str] = {}  # by version, as noted by later entries
    for version in range(newest, -1, -1):
        sha256 = checksums.get(str(version)) or noted.get(str(version))
        content = contents[version]
        entry = _parse(version, content, sha256) if isinstance(content, bytes) else None
        if entry is None and version in listed:  # read again: a transfer error is not damage
            entry = _parse(version, _read_listed(uris[version]), sha256)
        if entry is not None:
            entries[version] = entry
            for earlier, noted_sha256 in entry.note.get("log", {}).items():
                checksums.setdefault(earlier, noted_sha256)
    return dict(sorted(entries.items()))


def _parse(version: int, data: bytes, sha256: str | None = None) -> LogEntry | None:
    """The entry in ``data``; ``None`` if there is no valid one or a checksum contradicts it."""
    actual = hashlib.sha256(data).hexdigest()
    if sha256 is not None and actual != sha256:
        return None
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
        pairs = [(key, value) for action in actions for key, value in action.items()]
        if not {key for key, _ in pairs} <= _ACTIONS:
            return None
        added = [value for key, value in pairs if key == "add"]
        remove = [value["path"] for key, value in pairs if key == "remove"]
        [note] = [value for key, value in pairs if key == "commitInfo"]
        expected = digest(note, [(a["path"], a["size"], a["stats"]) for a in added], remove)
        if note.get("digest", expected) != expected or (version > 0 and "commit_id" not in note):
            return None
        return LogEntry(version, actual, [_table_file(value) for value in added], remove, note)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _table_file(add: dict[str, Any]) -> TableFile:
    """The file that an ``add`` action of the log describes."""
    stats = json.loads(add["stats"])
    ids = (stats["minValues"]["image_id"], stats["maxValues"]["image_id"])
    return TableFile(add["path"], add["size"], stats["numRecords"], *ids)


def _read_listed(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise OSError(f"{uri}: is listed, but cannot be read") from error


def read_columns(folder: str, name: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a committed file of the table in ``folder``, with page checksums verified.

    Raises :class:`~segbatch.errors.Damaged`, or ``OSError`` if storage fails.
    """
    uri = storage.join(folder, name)
    filesystem, path = storage.arrow_filesystem(uri)
    try:
        return pq.read_table(
            path, columns=list(columns), filesystem=filesystem, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise read_failure(folder, name, error) from error


def read_failure(folder: str, name: str, error: Exception) -> Damaged | OSError:
    """What to raise when a committed file could not be read: damage, or a failure of storage."""
    uri = storage.join(folder, name)
    log = DeltaLog.read(folder, {})
    if log is not None and read_verified(uri, log.sha256.get(name, "")) is None:
        return Damaged(uri, "it is not what was committed")
    return OSError(f"{uri}: cannot be read: {storage.one_line(error)}")


def read_verified(uri: str, sha256: str) -> bytes | None:
    """The bytes of a file; ``None`` if it is gone or does not match ``sha256``.

    Raises ``OSError`` if storage fails.
    """
    for _ in range(2):  # read twice: a transfer error is not damage
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            listed = storage.list_files(uri.rpartition("/")[0])
            if storage.name_of(uri) in map(storage.name_of, (file.uri for file in listed)):
                raise OSError(f"{uri}: is listed, but cannot be read") from error
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None
