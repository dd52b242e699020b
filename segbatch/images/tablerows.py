"""Tables that hold their images: a row of a Parquet file is an image of a run.

A row's URI is that of its file followed by ``#row=17``, its number in the file from 0, and by
``&column=photo`` where the file has several columns of images. An image is the value of a binary
column, or of a ``struct<bytes, path>`` as Hugging Face writes it; one that has only a ``path`` is
read from there, relative to the file's folder.

Rows are read by row group and column, in pieces, so a large file costs no memory.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.console import say_once
from segbatch.errors import Incomplete, SourceError
from segbatch.images.faults import Content, Undecodable, why_unreadable
from segbatch.images.listing import reading_source
from segbatch.images.place import PART_URI, PLACE, Part, Place, places
from segbatch.images.tables import (
    IMAGE_BUFFER_BYTES,
    TableStream,
    find_files,
    image_columns,
    open_parquet,
    parquet_table,
)
from segbatch.storage.uris import without_query

FRAGMENT = r"#row=\d+(&column=[^#&]+)?"  # at the end of a row's URI
_ROW_URI = re.compile(r"(.+\.parquet)#row=(\d+)(?:&column=([^#&]+))?", re.S | re.I)
MANY_ROWS = 1000  # of a row group: its images are read slowly
_BATCH_ROWS = 16  # that are in memory at once

# A table from elsewhere must not make us read files of this machine, by no protocol of fsspec.
_REMOTE_SCHEMES = storage.OBJECT_SCHEMES | storage.HTTP_SCHEMES | {"hf"}
_ELSEWHERE = storage.Unreadable("not_found", "its path is on the machine that wrote the table")
_NO_IMAGE = storage.Unreadable("not_found", "the row has no image")


def is_row(uri: str) -> bool:
    """Whether ``uri`` is that of a row of a Parquet file."""
    return _ROW_URI.fullmatch(uri) is not None


# ------------------------------------------------------------------------------------ listing rows


def open_image_table(name: str, column: str | None) -> TableStream:
    """The rows of the Parquet files that ``name`` names: a file, a glob or a folder.

    The batches have the URI of each row as their first column and its place as their second, then
    ``fields``, the columns that hold no images. ``column`` holds the images; ``None``: the only one
    that does. Raises ``SourceError``, and ``Incomplete`` if storage does not answer, also while
    they are read.
    """
    if storage.scheme_of(name) in storage.HTTP_SCHEMES:
        raise SourceError(
            f"{without_query(name)}: tables of images are not read over http, row by row: download"
            " it, or copy it to object storage"
        )
    with reading_source(name):
        files, base = find_files(name)
        others = [file for file in files if not file.lower().endswith(".parquet")]
    if not files or others:
        raise SourceError(f"{name}: no Parquet file, no folder with any, and no glob that matches")
    table = parquet_table(files, base)
    _say_large_groups(files, table.group_rows)
    images = table.images
    if column in images.nested or (column is None and images.nested and not images.single):
        raise SourceError(
            f"{name}: column {column or images.nested[0]} holds images in lists or structs: write"
            " each image to a row of its own"
        )
    chosen = _chosen_column(name, images.single, [field.name for field in table.fields], column)
    suffix = "" if images.unnamed == [chosen] else f"&column={quote(chosen, safe='')}"
    if chosen not in images.single:  # its first values are null
        images.single.append(chosen)

    def batches() -> Iterator[pa.RecordBatch]:
        for file, rows in groupby(table.batches(), key=itemgetter(0)):
            with reading_source(file):
                place = Place(None, None, storage.version_of(file))
            for _, first, batch in rows:
                uris = [f"{file}#row={first + row}{suffix}" for row in range(batch.num_rows)]
                names = [PART_URI, PLACE.name, *batch.schema.names]
                own = [pa.array(uris, pa.string()), places([place] * batch.num_rows)]
                yield pa.RecordBatch.from_arrays([*own, *batch.columns], names)

    fields = [field for field in table.fields if field.name != chosen]
    left_out = [name for name in images.all if name != chosen]
    return TableStream(fields, batches(), left_out)


def _say_large_groups(files: Sequence[str], group_rows: Sequence[int]) -> None:
    large = [(file, rows) for file, rows in zip(files, group_rows, strict=True) if rows > MANY_ROWS]
    if not large:
        return
    file, rows = large[0]
    others = f" ({len(large) - 1:,} more files have such)" * (len(large) > 1)
    program = (
        "import pyarrow.parquet as pq;"
        f" pq.write_table(pq.read_table({file!r}), {f'small-{storage.name_of(file)}'!r},"
        " row_group_size=100)"
    )
    say_once(
        f"{file}: a row group has {rows:,} images{others}, and every block of images reads its"
        " row group from the first row: reading is much faster from a file that is written with"
        f" small ones: python -c {shlex.quote(program)}"
    )


def _chosen_column(name: str, images: list[str], others: list[str], column: str | None) -> str:
    if column is not None and column not in [*images, *others]:
        there = ", ".join([*images, *others])
        raise SourceError(f"{name}: image_column: no column {column}; there are {there}")
    if column is not None:
        return column
    if not images:
        raise SourceError(
            f"{name}: no column holds images: write images: {{manifest: …}} if a column has their"
            " URIs, or name the column with image_column"
        )
    if len(images) > 1:
        raise SourceError(
            f"{name}: several columns hold images ({', '.join(images)}): name one with image_column"
        )
    return images[0]


# ------------------------------------------------------------------------------------ reading rows


def read_rows(
    parts: Sequence[Part], limits: storage.ReadLimits, raw_bytes: int = 0
) -> list[Content]:
    """The image files in rows, or why there are none, in the order of ``parts``.

    A file is opened once for all its rows that follow each other in ``parts``. ``raw_bytes`` has no
    effect, because these are files already. Raises nothing for what storage answers.
    """
    wanted = [(*_split(part.uri), part.place and part.place.version) for part in parts]
    contents: list[Any] = []
    for (file, column, version), group in groupby(wanted, key=itemgetter(0, 2, 3)):
        rows = [row for _, row, *_ in group]
        try:
            with reading_source(file):
                is_replaced = version not in (None, storage.version_of(file))
            found = {} if is_replaced else _read_values(file, column, rows)
        except (SourceError, Incomplete) as error:
            contents += [why_unreadable(error)] * len(rows)
            continue
        if is_replaced:
            contents += [storage.REPLACED] * len(rows)
            continue
        contents += [_content(found[row], file, limits) for row in rows]
    elsewhere = [index for index, content in enumerate(contents) if isinstance(content, str)]
    read = storage.read_many([contents[index] for index in elsewhere], limits)
    for index, content in zip(elsewhere, read, strict=True):
        contents[index] = content
    return contents


def _split(uri: str) -> tuple[str, int, str | None]:
    match = _ROW_URI.fullmatch(uri)
    assert match is not None
    return match[1], int(match[2]), unquote(match[3]) if match[3] else None


def _read_values(file: str, column: str | None, rows: Sequence[int]) -> dict[int, Any]:
    """The values of an image column by row. Raises ``SourceError``, ``Incomplete``."""
    found: dict[int, Any] = {}
    first = 0
    with reading_source(file), open_parquet(file, IMAGE_BUFFER_BYTES) as table:
        names: list[str] = table.schema_arrow.names
        if column is None:
            column = _chosen_column(file, image_columns(table).unnamed, names, None)
        elif column not in names:
            raise SourceError(f"{file}: no column {column}; there are {', '.join(names)}")
        for group in range(table.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            wanted = {row for row in rows if first <= row < end}
            if wanted:
                found |= dict(_values_of_group(table, group, column, first, wanted))
            first = end
    missing = f"the table has only {first:,} rows now"
    return {row: found.get(row, Undecodable("truncated", missing)) for row in rows}


def _values_of_group(
    table: pq.ParquetFile, group: int, column: str, first: int, wanted: set[int]
) -> Iterator[tuple[int, Any]]:
    """The row numbers and values of ``wanted`` rows of a row group that begins at row ``first``."""
    last = max(wanted)
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
        for row in sorted(wanted & set(range(first, first + batch.num_rows))):
            yield row, batch.column(0)[row - first].as_py()
        first += batch.num_rows
        if first > last:
            return


def _content(value: Any, file: str, limits: storage.ReadLimits) -> Any:
    """The bytes of an image, why there are none, or the URI where they are.

    A path is relative to the folder of ``file``.
    """
    if isinstance(value, Undecodable):
        return value
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if data is None and path:
        is_absolute = storage.scheme_of(path) or path.startswith("/")
        scheme = path.partition("://")[0].lower()  # of a chain (`zip::file`) no known one
        if is_absolute and not storage.is_local(file) and scheme not in _REMOTE_SCHEMES:
            return _ELSEWHERE
        return path if is_absolute else storage.join(file.rpartition("/")[0], path)
    if not isinstance(data, bytes):
        return _NO_IMAGE
    return limits.why_too_large(len(data)) or data
