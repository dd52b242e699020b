"""Table: a Delta table of a run, and the only file that knows the deltalake package.

Workers write complete Parquet files into the table's folder, where nobody sees them; one driver
commits them. A commit creates the log's next entry only if it is absent, so of two drivers that
hold the same version one fails: that is the fence. A handle never reloads by itself: it moves on
by exactly one version, its own.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, PostCommitHookProperties, RemoveAction

from segbatch import storage
from segbatch.errors import Damaged, Fenced
from segbatch.results.log import NOTED, Entry, Log, digest, read_entry
from segbatch.storage.clients import waits

# The log is the proof of what was committed when, with the files' checksums: it is never cut, and
# there are no checkpoints of it, which nothing would prove. Reading 1,500 entries takes 0.5 s.
TABLE_PROPERTIES = {"delta.logRetentionDuration": "interval 36500 days"}
_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
COMMIT_TRIES = 6  # of a commit that was not made: for about a minute
STATISTICS = "stats"


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table.

    ``kind`` is ``ok`` or the error that all of its rows have; in ``stats/``, where rows of every
    kind stand together, ``stats``.
    """

    name: str
    size: int
    rows: int
    first_id: int
    last_id: int
    kind: str
    sha256: str

    def add_action(self) -> AddAction:
        low: dict[str, Any] = {"image_id": self.first_id}
        high: dict[str, Any] = {"image_id": self.last_id}
        if self.kind != STATISTICS:
            low["status"] = high["status"] = "ok" if self.kind == "ok" else "failed"
        stats = {
            "numRecords": self.rows,
            "minValues": low,
            "maxValues": high,
            "nullCount": dict.fromkeys(low, 0),
        }
        now = int(time.time() * 1000)
        return AddAction(self.name, self.size, {}, now, True, json.dumps(stats))


def kind_of(name: str) -> str:
    """``ok`` or the error of all rows of a results file, from its name."""
    return name.split("-")[1]


def epoch_of(name: str) -> int | None:
    """The epoch of the driver whose workers wrote a file; ``None`` if the file is not ours."""
    first = name.split("-", maxsplit=1)[0]
    return int(first) if first.isdigit() else None


def file_name(epoch: int, kind: str) -> str:
    """A fresh name: ``00000007-ok-<32 hex digits>.parquet``."""
    return f"{epoch:08d}-{kind}-{uuid.uuid4().hex}.parquet"


class Table:
    """A handle on a Delta table at one version."""

    def __init__(self, delta: DeltaTable, uri: str) -> None:
        self._delta = delta
        self.uri = uri
        self._newest: Entry | None = None  # the log's entry of this version, once it was read
        self._unsettled: str | None = None  # a commit that was begun and whose end was not seen

    @classmethod
    def create(cls, uri: str, schema: pa.Schema, note: Mapping[str, Any] | None = None) -> Table:
        """A new, empty table. Raises ``Fenced`` if somebody made it at this moment."""
        try:
            delta = DeltaTable.create(
                uri,
                schema,
                mode="error",
                configuration=TABLE_PROPERTIES,
                storage_options=storage.delta_options(uri),
                commit_properties=CommitProperties(custom_metadata=_noted(note or {})),
                post_commithook_properties=_HOOKS,
            )
        except DeltaError as error:
            if "already exists" not in str(error):
                raise OSError(f"{uri}: cannot be created: {_line(error)}") from error
            raise Fenced(f"{uri}: another driver created the table at this moment") from error
        return cls(delta, uri)

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> Table | None:
        """The table at its newest version, or at ``version``; ``None`` if there is none.

        Raises :class:`~segbatch.errors.Damaged` for a log that is, ``OSError`` if storage fails.
        """
        try:
            delta = DeltaTable(uri, version=version, storage_options=storage.delta_options(uri))
        except (TableNotFoundError, FileNotFoundError, DeltaError) as error:
            log = Log.read(uri, {})  # raises if it was the storage's fault
            if log is None:
                return None
            log.refuse_damage()
            if log.checkpoints:
                raise Damaged(log.checkpoints[0], "it does not fit the log") from error
            raise OSError(f"{uri}: its Delta log cannot be read: {_line(error)}") from error
        except OSError as error:
            raise OSError(f"{uri}: its Delta log cannot be read: {_line(error)}") from error
        return cls(delta, uri)

    @property
    def version(self) -> int:
        return self._delta.version()

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self._delta.schema().to_arrow())

    def files(self) -> list[dict[str, Any]]:
        """The files of this version: ``path, rows, size, first_id, last_id``, by ``first_id``."""
        # Not pa.table(…), which imports pandas to see whether it was given a frame of its.
        actions = self._delta.get_add_actions(flatten=True)
        columns = pa.RecordBatchReader.from_stream(actions).read_all()
        if columns.num_rows == 0:
            return []
        names = {
            "path": "path",
            "size_bytes": "size",
            "num_records": "rows",
            "min.image_id": "first_id",
            "max.image_id": "last_id",
        }
        picked = columns.select(list(names)).rename_columns(list(names.values()))
        # Not sorted by pyarrow, whose functions take a tenth of a second to import.
        return sorted(picked.to_pylist(), key=itemgetter("first_id"))

    @property
    def newest(self) -> Entry:
        """The log's entry of this version. Raises ``Damaged``, ``OSError``."""
        if self._newest is None:
            self._newest = read_entry(self.uri, self.version)
        return self._newest

    @property
    def proof(self) -> dict[str, str]:
        """SHA-256 of the newest entry by its version: what proves all those before it."""
        return {str(self.version): self.newest.sha256}

    def commit(
        self,
        add: Sequence[DataFile] = (),
        remove: Iterable[dict[str, Any]] = (),
        *,
        note: Mapping[str, Any] | None = None,
    ) -> int:
        """Commit files, and take out those of :meth:`files` in ``remove``; returns the version.

        ``note`` holds some of :data:`~segbatch.results.log.NOTED`. Raises
        :class:`~segbatch.errors.Fenced` if the log has an entry that is not ours at the next
        version, ``OSError`` if the storage failed.
        """
        if self._unsettled is not None:
            self._settle(self._unsettled)
        now = int(time.time() * 1000)
        added = [file.add_action() for file in add]
        removed = [
            RemoveAction(
                path=file["path"], data_change=True, deletion_timestamp=now, size=file["size"]
            )
            for file in remove
        ]
        note = note or {}
        commit_id = uuid.uuid4().hex
        metadata = {
            **note,
            "commit_id": commit_id,
            "log": {**note.get("log", {}), **self.proof},
            "sha256": {file.name: file.sha256 for file in add},
        }
        noted = _noted(metadata, added, removed)
        self._unsettled = commit_id
        failure: Exception | None = None
        for wait in waits(COMMIT_TRIES):
            failure = self._try_to_commit([*added, *removed], noted)
            try:
                return self._move_on(commit_id)
            except FileNotFoundError:  # nobody committed anything: it may be tried again
                if storage.is_local(self.uri):
                    break  # a disk that is full stays so
                time.sleep(wait)
            except (DeltaError, OSError) as error:
                failure = failure or error
                break
        reason = "the log does not show it" if failure is None else _line(failure)
        raise OSError(f"{self.uri}: the commit failed: {reason}") from failure

    def _try_to_commit(
        self, actions: list[AddAction | RemoveAction], note: dict[str, Any]
    ) -> Exception | None:
        """Commit; what failed is no answer yet: the commit may have been made all the same."""
        try:
            self._delta.create_write_transaction(
                actions,
                "append",
                self._delta.schema(),
                commit_properties=CommitProperties(custom_metadata=note, max_commit_retries=0),
                post_commithook_properties=_HOOKS,
            )
        except (DeltaError, OSError) as error:
            return error
        return None

    def _move_on(self, commit_id: str) -> int:
        """Move on to the next version, if it is ours. Raises ``Fenced``, ``OSError``."""
        version = self.version + 1
        newest = read_entry(self.uri, version)
        if newest.note.get("commit_id") != commit_id:
            holder = newest.note.get("driver", "somebody else")
            raise Fenced(f"{self.uri}: taken over by {holder}; what this driver has not committed"
                         " is left to it")  # fmt: skip
        self._delta.load_as_version(version)
        self._newest, self._unsettled = newest, None
        return version

    def _settle(self, commit_id: str) -> None:
        """Move on if a commit took place after all that a signal or an outage cut short.

        What it held may be committed once more: a file that is added twice is there once.
        """
        self._unsettled = None
        with suppress(DeltaError, OSError):
            self._move_on(commit_id)


def _noted(
    note: Mapping[str, Any], add: Sequence[AddAction] = (), remove: Sequence[RemoveAction] = ()
) -> dict[str, Any]:
    """A commit's note, with the digest of what the commit says."""
    if unknown := note.keys() - NOTED:
        raise ValueError(f"a note without a place in log.NOTED: {sorted(unknown)}")
    added = [(action.path, action.size, action.stats or "") for action in add]
    return {**note, "digest": digest(note, added, [action.path for action in remove])}


def _line(error: BaseException) -> str:
    return storage.one_line(error)
