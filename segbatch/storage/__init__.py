"""Reads and writes all of segbatch's data: on local disk, in object storage and over HTTP."""

from segbatch.storage.clients import delta_options, filesystem
from segbatch.storage.failures import (
    REPLACED,
    Unreadable,
    one_line,
    reading_input,
    translate_errors,
)
from segbatch.storage.files import (
    StoredFile,
    arrow_filesystem,
    delete,
    exists,
    list_files,
    upload,
    write_bytes,
    writes_whole,
)
from segbatch.storage.reading import (
    Piece,
    ReadLimits,
    read_bytes,
    read_input,
    read_many,
    read_text,
    version_of,
)
from segbatch.storage.systemfiles import SystemFiles
from segbatch.storage.text import clean_name, composed, decode_text
from segbatch.storage.uris import (
    DELTA_SCHEMES,
    HTTP_SCHEMES,
    OBJECT_SCHEMES,
    is_local,
    join,
    local_path,
    name_of,
    normalize,
    path_below,
    scheme_of,
    split_bucket,
)

__all__ = [
    "DELTA_SCHEMES",
    "HTTP_SCHEMES",
    "OBJECT_SCHEMES",
    "REPLACED",
    "Piece",
    "ReadLimits",
    "StoredFile",
    "SystemFiles",
    "Unreadable",
    "arrow_filesystem",
    "clean_name",
    "composed",
    "decode_text",
    "delete",
    "delta_options",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "list_files",
    "local_path",
    "name_of",
    "normalize",
    "one_line",
    "path_below",
    "read_bytes",
    "read_input",
    "read_many",
    "read_text",
    "reading_input",
    "scheme_of",
    "split_bucket",
    "translate_errors",
    "upload",
    "version_of",
    "write_bytes",
    "writes_whole",
]
