"""Database: a DuckDB that reads the tables of runs, wherever they are.

Remote files go through fsspec, since the DuckDB wheel speaks no S3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import duckdb
import pyarrow as pa

from segbatch import storage
from segbatch.results.log import TableFile

SETTINGS = {
    "autoinstall_known_extensions": "false",  # a query downloads no code
    "autoload_known_extensions": "false",
    "enable_progress_bar": "false",
    "validate_external_file_cache": "'NO_VALIDATION'",  # files of a table never change
    "python_enable_replacements": "false",  # FROM x is never a variable of this program
    "temp_directory": f"'{tempfile.gettempdir()}/segbatch-query'",  # not the user's folder
}


def open_database() -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory, whose schema ``segbatch`` takes what :func:`scan` makes."""
    con = duckdb.connect()
    for name, value in SETTINGS.items():
        con.execute(f"SET {name} = {value}")
    con.execute("CREATE SCHEMA segbatch")  # SHOW TABLES leaves it out
    return con


def register_filesystems(con: duckdb.DuckDBPyConnection, uris: Sequence[str]) -> None:
    """Let DuckDB read the remote files that ``uris`` name."""
    for scheme in {storage.scheme_of(uri) for uri in uris if not storage.is_local(uri)}:
        with suppress(ImportError, ValueError):  # may be no file, only a text to compare with
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
    """A view over the files of a table, or an empty table where there are none; its name.

    Its column ``file`` is the one of ``stats/``; of ``rows/`` it is the URI of a row's own file.
    """
    filename = "" if "file" in schema.names else ", filename = 'file'"
    if not files:
        schema = schema.append(pa.field("file", pa.string())) if filename else schema
        # Not schema.empty_table(): that imports pandas, which takes longer than most queries.
        con.from_arrow(pa.Table.from_batches([], schema)).create(f"segbatch.{name}")
        return f"segbatch.{name}"
    if not storage.is_local(folder):
        # Four HEADs a file otherwise: the listing answers them.
        remote_filesystem(storage.scheme_of(folder)).ls(folder, refresh=True)
    # A variable, because parsing thousands of names in SQL takes ten times as long.
    con.execute(f"SET VARIABLE {name} = ?", [[storage.join(folder, f.name) for f in files]])
    con.execute(
        f"CREATE VIEW segbatch.{name} AS"
        f" FROM read_parquet(getvariable('{name}'), hive_partitioning = false{filename})"
    )
    return f"segbatch.{name}"


def remote_filesystem(scheme: str) -> Any:
    """The fsspec filesystem for files of which only parts are wanted.

    fsspec reads ahead, s3fs 50 MB at a time, which turned 9 MB of columns into 450. DuckDB and
    Arrow ask for exactly what they need.
    """
    return _reading_exactly(storage.filesystem(f"{scheme}://")[0])


@cache
def _reading_exactly(fs: Any) -> Any:
    options = {**fs.storage_options, "use_listings_cache": True, "skip_instance_cache": True}
    exact = type(fs)(*fs.storage_args, **options)
    exact._open = partial(exact._open, cache_type="none")
    return exact


def quoted_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def quoted_name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
