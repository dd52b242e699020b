"""Proof: whether a stored file is what was written, by its SHA-256 and by nothing else.

That a reader stumbles over a file may be the storage's fault, or ours; only its bytes tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import Damaged
from segbatch.results.log import Log


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
