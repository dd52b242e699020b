"""DuckDB over the tables of runs, on any storage.

Remote files are read through fsspec, since the DuckDB wheel has no S3 client.
"""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from threading import Thread
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakSet

import duckdb
import pyarrow as pa

from segbatch import storage
from segbatch.images.tables import count_times_in_utc
from segbatch.results.log import TableFile
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import rows_schema

SETTINGS = {
    "autoinstall_known_extensions": "false",  # a query downloads no code
    "autoload_known_extensions": "false",
    "validate_external_file_cache": "'NO_VALIDATION'",  # files of a table never change
    "python_enable_replacements": "false",  # FROM x never reads a Python variable
    "temp_directory": f"'{tempfile.gettempdir()}/segbatch-query'",  # not the current folder
}

ZONED_TIME = "timestamp with time zone"  # the id of DuckDB's type

# Connections that SIGINT interrupts.
_open: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()


def open_database() -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory with a schema ``segbatch``, in which :func:`scan` creates views."""
    con = duckdb.connect()
    for name, value in SETTINGS.items():
        con.execute(f"SET {name} = {value}")
    # Not always: in a notebook without ipywidgets there is no bar, and the setting is refused.
    if con.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (True,):
        con.execute("SET enable_progress_bar = false")
    count_times_in_utc(con)
    con.execute("CREATE SCHEMA segbatch")  # SHOW TABLES leaves it out
    _open.add(con)
    return con


@contextmanager
def sigint_stops_queries() -> Iterator[None]:
    """Let SIGINT end a running query in the block; the block must be in the main thread.

    Python calls its own handler only after DuckDB has returned, which may take hours. A thread
    receives the signal at once.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)  # set_wakeup_fd requires it
    received = b""

    def watch() -> None:
        nonlocal received
        while number := receiving.recv(1):
            received += number
            if number[0] == signal.SIGINT:
                for con in list(_open):
                    con.interrupt()

    watching = Thread(target=watch, daemon=True)
    watching.start()
    before = signal.set_wakeup_fd(sending.fileno())
    try:
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            sending.close()
            watching.join()
            receiving.close()
    except Exception as error:  # of one of several types, in place of KeyboardInterrupt
        if signal.SIGINT in received:
            raise KeyboardInterrupt from error
        raise


def register_filesystems(con: duckdb.DuckDBPyConnection, uris: Sequence[str]) -> None:
    """Let DuckDB read the remote files that ``uris`` name."""
    for scheme in {storage.scheme_of(uri) for uri in uris if not storage.is_local(uri)}:
        with suppress(ImportError, ValueError):  # may be a text in a condition, and no file
            fs = remote_filesystem(scheme)
            fs.invalidate_cache()
            con.register_filesystem(fs)


def scan(
    con: duckdb.DuckDBPyConnection,
    name: str,
    folder: str,
    files: Sequence[TableFile],
    schema: pa.Schema,
) -> str:
    """Create a view over the files of a table, or an empty table if it has none; returns its name.

    Over ``rows/``, a column ``file`` with the URI of each row's file is added; ``stats/`` has one.
    """
    filename = "" if "file" in schema.names else ", filename = 'file'"
    if not files:
        schema = schema.append(pa.field("file", pa.string())) if filename else schema
        # Not schema.empty_table(): that imports pandas, which takes longer than most queries.
        con.from_arrow(pa.Table.from_batches([], schema)).create(f"segbatch.{name}")
        return f"segbatch.{name}"
    if not storage.is_local(folder):
        # Fills fsspec's cache, which saves four HEAD requests for each file.
        remote_filesystem(storage.scheme_of(folder)).ls(folder, refresh=True)
    # A variable: as part of the SQL, thousands of names take ten times as long to parse.
    con.execute(f"SET VARIABLE {name} = ?", [[storage.join(folder, f.name) for f in files]])
    con.execute(
        f"CREATE VIEW segbatch.{name} AS"
        f" FROM read_parquet(getvariable('{name}'), hive_partitioning = false{filename})"
    )
    return f"segbatch.{name}"


class RunRows(NamedTuple):
    """The rows of a run in DuckDB: the name of a view over them, their schema and their folder."""

    view: str
    schema: pa.Schema
    folder: str


def scan_run(con: duckdb.DuckDBPyConnection, name: str, run: RunFolder) -> RunRows:
    """Create a view over the committed rows of a run: ``stats/`` if it is finished, or ``rows/``.

    Raises ``duckdb.Error``, :class:`~segbatch.errors.Damaged`, ``OSError`` if storage fails.
    """
    table = run.table("stats") if run.finished else None
    table = table or run.table("rows")
    folder = table.uri if table else storage.join(run.uri, "rows")
    schema = table.schema if table else rows_schema(run.classes)
    view = scan(con, name, folder, table.files() if table else [], schema)
    return RunRows(view, schema, folder)


def remote_filesystem(scheme: str) -> Any:
    """The fsspec filesystem for reading parts of files, without read-ahead.

    s3fs reads 50 MB ahead, so that reading 9 MB of columns took 450 MB. DuckDB and Arrow request
    exactly the ranges that they need.
    """
    return _reading_exactly(storage.filesystem(f"{scheme}://")[0])


@cache
def _reading_exactly(fs: Any) -> Any:
    options = {**fs.storage_options, "use_listings_cache": True, "skip_instance_cache": True}
    exact = type(fs)(*fs.storage_args, **options)
    exact._open = partial(exact._open, cache_type="none")
    return exact


def select_from(relation: duckdb.DuckDBPyRelation, query: str) -> duckdb.DuckDBPyRelation:
    """The result of a ``query`` over ``relation``, which the query calls ``answer``."""
    return cast(duckdb.DuckDBPyRelation, relation.query("answer", query))


def without_zones(
    relation: duckdb.DuckDBPyRelation, kind: Literal["VARCHAR", "TIMESTAMP"] = "VARCHAR"
) -> duckdb.DuckDBPyRelation:
    """``relation`` for fetching as Python objects: times with a zone become UTC of another type.

    DuckDB would need pytz to make Python objects of them.
    """
    columns = [
        f"#{number}{f'::{kind}' if column.id == ZONED_TIME else ''}"
        for number, column in enumerate(relation.types, 1)
    ]
    return select_from(relation, f"SELECT {', '.join(columns)} FROM answer")


def quoted_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def quoted_name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
