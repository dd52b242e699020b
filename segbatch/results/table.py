"""The Delta tables ``rows/`` and ``stats/``, and how a driver commits files to them.

This is the step *commit*, and the only module that uses deltalake. Workers have written complete
Parquet files into the table's folder (:mod:`segbatch.results.write`), which readers ignore until a
commit adds them. Only the driver commits. A commit creates the log's next entry only if that entry
does not exist yet, so of two drivers at the same version one fails: this fences off the older one.
A handle never reloads the table. After a commit it moves to the next version, and only after
checking that this version is its own commit.
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
from segbatch.results.log import NOTED, DeltaLog, LogEntry, TableFile, digest, read_entry
from segbatch.storage.clients import retry_waits

# The log proves what was committed when, with the checksums of the files. It is never shortened,
# and we write no checkpoints: nothing would prove those. Reading 1,500 entries takes 0.5 s.
TABLE_PROPERTIES = {"delta.logRetentionDuration": "interval 36500 days"}
_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
COMMIT_TRIES = 6  # for about a minute
STATISTICS = "stats"  # the kind of files in stats/, which hold rows of every kind

# Columns of deltalake's list of files, in the order of the fields of TableFile.
_FILE_COLUMNS = ["path", "size_bytes", "num_records", "min.image_id", "max.image_id"]


@dataclass(frozen=True)
class DataFile:
    """A Parquet file that was written for a table, with what its commit says about it.

    ``kind`` is ``ok`` or the error that all of its rows have; in ``stats/`` it is ``stats``.
    """

    name: str  # relative to the table's folder
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
        return AddAction(self.name, self.size, {}, _now_ms(), True, json.dumps(stats))


def file_name(epoch: int, kind: str) -> str:
    """A new, unique name: ``00000007-ok-<32 hex digits>.parquet``."""
    return f"{epoch:08d}-{kind}-{uuid.uuid4().hex}.parquet"


def kind_in_name(name: str) -> str:
    """``ok``, or the error of all rows of a file of ``rows/``, from its name."""
    return name.split("-")[1]


def epoch_of(name: str) -> int | None:
    """The epoch of the driver whose workers wrote a file; ``None`` if the file is not ours."""
    first = name.split("-", maxsplit=1)[0]
    return int(first) if first.isdigit() else None


class Table:
    """A handle on a Delta table at one version."""

    def __init__(self, delta: DeltaTable, uri: str) -> None:
        self._delta = delta
        self.uri = uri
        self._newest: LogEntry | None = None  # of this version, once it was read
        self._pending_commit: str | None = None  # id of a commit whose end was not seen

    @classmethod
    def create(cls, uri: str, schema: pa.Schema, note: Mapping[str, Any] | None = None) -> Table:
        """A new, empty table. Raises ``Fenced`` if another driver created it at this moment."""
        try:
            delta = DeltaTable.create(
                uri,
                schema,
                mode="error",
                configuration=TABLE_PROPERTIES,
                storage_options=storage.delta_options(uri),
                commit_properties=CommitProperties(custom_metadata=_with_digest(note or {})),
                post_commithook_properties=_HOOKS,
            )
        except DeltaError as error:
            if "already exists" in str(error):
                raise Fenced(f"{uri}: another driver created the table at this moment") from error
            raise OSError(f"{uri}: cannot be created: {storage.one_line(error)}") from error
        return cls(delta, uri)

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> Table | None:
        """The table at its newest version, or at ``version``; ``None`` if there is no table.

        Raises :class:`~segbatch.errors.Damaged` for a damaged log, ``OSError`` if storage fails.
        """
        try:
            delta = DeltaTable(uri, version=version, storage_options=storage.delta_options(uri))
        except (TableNotFoundError, FileNotFoundError, DeltaError) as error:
            log = DeltaLog.read(uri, {})  # raises OSError if storage fails
            if log is None:
                return None
            log.refuse_damage()
            if log.checkpoints:
                raise Damaged(log.checkpoints[0], "it does not fit the log") from error
            raise _unreadable_log(uri, error) from error
        except OSError as error:
            raise _unreadable_log(uri, error) from error
        return cls(delta, uri)

    @property
    def version(self) -> int:
        return self._delta.version()

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self._delta.schema().to_arrow())

    def files(self) -> list[TableFile]:
        """The files of this version, by ``first_id``."""
        # Not pa.table(…), which imports pandas to test whether the argument is a data frame.
        actions = self._delta.get_add_actions(flatten=True)
        columns = pa.RecordBatchReader.from_stream(actions).read_all()
        if columns.num_rows == 0:
            return []
        rows = columns.select(_FILE_COLUMNS).to_pylist()
        # Not sorted by pyarrow, whose compute functions take a tenth of a second to import.
        rows.sort(key=itemgetter("min.image_id"))
        return [TableFile(*row.values()) for row in rows]

    @property
    def newest(self) -> LogEntry:
        """The log's entry of this version. Raises ``Damaged``, ``OSError``."""
        if self._newest is None:
            self._newest = read_entry(self.uri, self.version)
        return self._newest

    @property
    def proof(self) -> dict[str, str]:
        """SHA-256 of the newest entry by its version, which proves all entries before it."""
        return {str(self.version): self.newest.sha256}

    def commit(
        self,
        add: Sequence[DataFile] = (),
        remove: Iterable[TableFile] = (),
        *,
        note: Mapping[str, Any] | None = None,
    ) -> int:
        """Commit added and removed files, and return the new version.

        ``note`` may hold keys of :data:`~segbatch.results.log.NOTED`. Raises
        :class:`~segbatch.errors.Fenced` if the next version of the log is another driver's,
        ``OSError`` if storage failed.
        """
        self._finish_pending_commit()
        now = _now_ms()
        added = [file.add_action() for file in add]
        removed = [
            RemoveAction(path=file.name, data_change=True, deletion_timestamp=now, size=file.size)
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
        noted = _with_digest(metadata, added, removed)
        self._pending_commit = commit_id
        failure: Exception | None = None
        for wait in retry_waits(COMMIT_TRIES):
            failure = self._try_to_commit([*added, *removed], noted)
            try:
                return self._move_on(commit_id)
            except FileNotFoundError:  # the log has no such version: try again
                if storage.is_local(self.uri):
                    break  # waiting does not empty a full disk
                time.sleep(wait)
            except (DeltaError, OSError) as error:
                failure = failure or error
                break
        reason = "the log does not show it" if failure is None else storage.one_line(failure)
        raise OSError(f"{self.uri}: the commit failed: {reason}") from failure

    def _try_to_commit(
        self, actions: list[AddAction | RemoveAction], note: dict[str, Any]
    ) -> Exception | None:
        """Commit, and return the error if there was one.

        After an error the entry may exist nevertheless: the caller has to read the log.
        """
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
        """Move to the next version if it is our commit. Raises ``Fenced``, ``OSError``."""
        version = self.version + 1
        newest = read_entry(self.uri, version)
        if newest.note.get("commit_id") != commit_id:
            holder = newest.note.get("driver", "somebody else")
            raise Fenced(
                f"{self.uri}: taken over by {holder}; what this driver has not committed is left"
                " to it"
            )
        self._delta.load_as_version(version)
        self._newest, self._pending_commit = newest, None
        return version

    def _finish_pending_commit(self) -> None:
        """Find out whether a commit of unknown outcome succeeded; if so, move to its version.

        If it did not, its files may be committed once more: adding a file twice adds it once.
        """
        if self._pending_commit is None:
            return
        commit_id, self._pending_commit = self._pending_commit, None
        with suppress(DeltaError, OSError):
            self._move_on(commit_id)


def _with_digest(
    note: Mapping[str, Any], add: Sequence[AddAction] = (), remove: Sequence[RemoveAction] = ()
) -> dict[str, Any]:
    """A commit's note, with the digest of the commit."""
    if unknown := note.keys() - NOTED:
        raise ValueError(f"keys of a note that are not in log.NOTED: {sorted(unknown)}")
    added = [(action.path, action.size, action.stats or "") for action in add]
    return {**note, "digest": digest(note, added, [action.path for action in remove])}


def _unreadable_log(uri: str, error: Exception) -> OSError:
    return OSError(f"{uri}: its Delta log cannot be read: {storage.one_line(error)}")


def _now_ms() -> int:
    return int(time.time() * 1000)
