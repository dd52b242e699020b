"""Log: the entries of a table's Delta log, and what proves each of them.

Three things do. An entry holds a digest of what its commit meant to say; each commit notes the
SHA-256 of the entry before it; and ``run.json`` notes that of the newest one. Whichever byte of an
entry was changed, one of them tells. Delta's own readers look at none of this: drivers, audit and
repair do, and read the entries here without deltalake.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged

# Proof: whether a stored file is what was written, by its SHA-256 and by nothing else.
#
# That a reader stumbles over a file may be the storage's fault, or ours; only its bytes tell.


def read_whole(uri: str, sha256: str) -> bytes | None:
    """The file's bytes; ``None`` if they are not those that were written, or gone.

    Raises ``OSError`` if storage fails.
    """
    for _ in range(2):  # what was garbled once on its way is not damage
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            listed = storage.list_files(uri.rpartition("/")[0])
            if storage.name_of(uri) in map(storage.name_of, (file.uri for file in listed)):
                raise OSError(f"{uri}: is listed, and cannot be read") from error
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


def read_columns(folder: str, name: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a committed file of the table in ``folder``.

    Each page is held against its checksum. Raises :class:`~segbatch.errors.Damaged`, or
    ``OSError`` if storage fails.
    """
    uri = storage.join(folder, name)
    filesystem, path = storage.arrow_filesystem(uri)
    try:
        return pq.read_table(
            path, columns=list(columns), filesystem=filesystem, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise blamed(folder, name, error) from error


def blamed(folder: str, name: str, error: Exception) -> Damaged | OSError:
    """What to raise for a committed file that could not be read: whether it is the file's fault."""
    uri = storage.join(folder, name)
    log = Log.read(folder, {})
    if log is not None and read_whole(uri, log.sha256.get(name, "")) is None:
        return Damaged(uri, "it is not what was committed")
    return OSError(f"{uri}: cannot be read: {storage.one_line(error)}")


_NAME = re.compile(r"(\d{20})\.json")


_CHECKPOINT = re.compile(r"_last_checkpoint|\d{20}\.checkpoint.*\.parquet")


_ACTIONS = frozenset({"commitInfo", "protocol", "metaData", "add", "remove"})


# What our commits note about themselves, beside what Delta does.
NOTED = frozenset(
    {
        "commit_id", "driver", "event",
        "sha256",  # of each file that the commit adds
        "log",  # version → SHA-256 of earlier entries: the one before, and those that were mended
        "run",  # in the first entry: what was frozen, as JSON
        "precision",  # of the predictions in the files
        "rows",  # of stats/: the version of rows/ that it was made from
    }
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One entry: the files that it adds (as :meth:`Log.files`) and removes, and its note."""

    version: int
    sha256: str
    add: list[dict[str, Any]]
    remove: list[str]
    note: dict[str, Any]


def digest(
    note: Mapping[str, Any], add: Iterable[tuple[str, int, str]], remove: Iterable[str]
) -> str:
    """SHA-256 of what a commit says: ``path, size, stats`` of files added, paths removed."""
    said = {key: value for key, value in note.items() if key in NOTED}
    text = json.dumps([said, sorted(add), sorted(remove)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def entry_uri(table_uri: str, version: int) -> str:
    return storage.join(table_uri, "_delta_log", f"{version:020d}.json")


def read_entry(table_uri: str, version: int) -> Entry:
    """Raises :class:`~segbatch.errors.Damaged`, ``FileNotFoundError`` or ``OSError``."""
    uri = entry_uri(table_uri, version)
    entry = _parsed(version, storage.read_bytes(uri))
    if entry is None:
        raise Damaged(uri, "it is no entry of a Delta log")
    return entry


def _parsed(version: int, data: bytes) -> Entry | None:
    """The entry in ``data``; ``None`` if that is not one, or does not fit its own digest."""
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
        pairs = [(key, value) for action in actions for key, value in action.items()]
        if not {key for key, _ in pairs} <= _ACTIONS:
            return None
        added = [value for key, value in pairs if key == "add"]
        remove = [value["path"] for key, value in pairs if key == "remove"]
        [note] = [value for key, value in pairs if key == "commitInfo"]
        said = digest(note, [(a["path"], a["size"], a["stats"]) for a in added], remove)
        if note.get("digest", said) != said or (version > 0 and "commit_id" not in note):
            return None
        add = [_file(value) for value in added]
        return Entry(version, hashlib.sha256(data).hexdigest(), add, remove, note)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_listed(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise OSError(f"{uri}: is listed, and cannot be read") from error


def _proved(version: int, data: bytes, sha256: str | None) -> Entry | None:
    entry = _parsed(version, data)
    return entry if entry is None or sha256 in (None, entry.sha256) else None


def _file(action: dict[str, Any]) -> dict[str, Any]:
    stats = json.loads(action["stats"])
    return {
        "path": action["path"],
        "size": action["size"],
        "rows": stats["numRecords"],
        "first_id": stats["minValues"]["image_id"],
        "last_id": stats["maxValues"]["image_id"],
    }


@dataclass
class Log:
    """A table's log: its whole entries by version, and which are damaged or gone."""

    uri: str  # of the table
    version: int
    entries: dict[int, Entry] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)  # none of ours

    @classmethod
    def read(cls, table_uri: str, noted: Mapping[str, str]) -> Log | None:
        """The log of a table; ``None`` if there is none.

        ``noted`` is what ``run.json`` says of it: version → SHA-256. Raises ``OSError`` if storage
        fails, which is no damage.
        """
        names = [
            storage.name_of(file.uri)
            for file in storage.list_files(storage.join(table_uri, "_delta_log"))
        ]
        versions = [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
        newest = max([*versions, *map(int, noted)], default=-1)
        if newest < 0:
            return None
        log = cls(table_uri, newest)
        log.checkpoints = [
            storage.join(table_uri, "_delta_log", name)
            for name in names
            if _CHECKPOINT.fullmatch(name)
        ]
        log._prove(noted, set(versions))
        return log

    def _prove(self, noted: Mapping[str, str], listed: set[int]) -> None:
        """Read the entries, and hold each against those after it, the newest first."""
        uris = [entry_uri(self.uri, version) for version in range(self.version + 1)]
        contents = storage.read_many(uris, storage.ReadLimits())
        proofs: dict[str, str] = {}
        for version in range(self.version, -1, -1):
            proof = proofs.get(str(version)) or noted.get(str(version))
            content = contents[version]
            entry = _proved(version, content, proof) if isinstance(content, bytes) else None
            if entry is None and version in listed:  # what was garbled on its way is not damage
                entry = _proved(version, _read_listed(uris[version]), proof)
            if entry is None:
                self.damaged.insert(0, version)
                continue
            self.entries[version] = entry
            for earlier, sha256 in entry.note.get("log", {}).items():
                proofs.setdefault(earlier, sha256)
        self.entries = dict(sorted(self.entries.items()))

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of each data file, what the commit noted that added it."""
        notes = [entry.note.get("sha256", {}) for entry in self.entries.values()]
        return {name: sha256 for note in notes for name, sha256 in note.items()}

    def files(self) -> list[dict[str, Any]]:
        """The files that are in the table: ``path, size, rows, first_id, last_id``, and the
        version at which each was ``added``; by ``first_id``.
        """
        files: dict[str, dict[str, Any]] = {}
        for version, entry in self.entries.items():
            files |= {file["path"]: {**file, "added": version} for file in entry.add}
            for path in entry.remove:
                files.pop(path, None)
        return sorted(files.values(), key=lambda file: file["first_id"])

    def refuse_damage(self) -> None:
        """Raises :class:`~segbatch.errors.Damaged`: nothing is committed over damage."""
        if self.damaged:
            raise Damaged(entry_uri(self.uri, self.damaged[0]), "it is not what was committed")
