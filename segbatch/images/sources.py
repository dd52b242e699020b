"""The sources of a job as one stream of rows: the URI of each image and the user's columns.

Prefixes, globs and inventories are listed (:mod:`~segbatch.images.listing`), manifests are read as
tables (:mod:`~segbatch.images.tables`); videos, shards and tables of images become a row for each
of their parts (:mod:`~segbatch.images.parts`). Nothing is held but a batch of each, so memory does
not grow with the number of rows.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.config.images import (
    Glob,
    Inventory,
    Manifest,
    Panorama,
    Prefix,
    Shards,
    Source,
    Table,
    Video,
    dotted,
    is_shard_name,
    location_of,
    moved,
)
from segbatch.console import say
from segbatch.errors import SourceError
from segbatch.images import columns, exif
from segbatch.images.listing import (
    Listing,
    file_if_single,
    list_glob,
    list_inventory,
    list_prefix,
    reading_source,
)
from segbatch.images.panorama import VIEW_COLUMNS, expand_panoramas
from segbatch.images.place import PART_URI, PLACE
from segbatch.images.shards import open_shards
from segbatch.images.tablerows import open_image_table
from segbatch.images.tables import (
    TableStream,
    first_lines,
    in_memory_duckdb,
    open_table,
    quoted_name,
)
from segbatch.images.video import FRAME_COLUMNS, expand_videos
from segbatch.storage import hub
from segbatch.storage.uris import without_query

URI = pa.field("uri", pa.string(), nullable=False)


@dataclass(frozen=True)
class ImageStream:
    """The rows of all sources in their order, to be read once: ``uri``, the user's columns, and the
    places of parts if a source has any.

    ``skipped`` counts the files below prefixes and in inventories that are no images, by extension
    (lower case, with its dot; ``""`` for none). A source adds to it when its last row was read.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    listing: Listing

    @property
    def skipped(self) -> Counter[str]:
        return self.listing.skipped

    @property
    def whole(self) -> bool:
        """Whether these are all rows; not if ``limit_s`` was over."""
        return self.listing.whole

    @property
    def place_fields(self) -> list[pa.Field]:
        """The column of places, if there is one."""
        return [field for field in self.schema if field.name == PLACE.name]


@dataclass(frozen=True)
class _SourceStream:
    """The rows of one source: ``uri``, ``user_columns`` and, with ``has_places``, their places.
    ``name`` is for messages.
    """

    name: str
    user_columns: list[pa.Field]
    batches: Iterator[pa.RecordBatch]
    has_places: bool = False


@contextmanager
def stream_images(
    sources: Sequence[Source],
    *,
    reserved: Collection[str],
    leave_out: str,
    limit_s: float = math.inf,
) -> Iterator[ImageStream]:
    """The images of ``sources``.

    ``reserved`` are names that no user's column may have, in upper or lower case; ``leave_out`` is
    the run's own folder, which may lie inside a prefix. Shards that are not listed after
    ``limit_s`` seconds are left out. Raises ``SourceError``, and ``Incomplete`` if a source does
    not answer, also while the stream is read.
    """
    with tempfile.TemporaryDirectory(prefix="segbatch-") as scratch:
        listing = Listing(leave_out, scratch, deadline=time.monotonic() + limit_s)
        streams = [open_source(source, reserved, listing) for source in sources]
        found = [(stream.name, stream.user_columns) for stream in streams]
        columns.check_spelling(found)
        place_fields = [PLACE] if any(stream.has_places for stream in streams) else []
        users = columns.without_null_type(columns.union(found))
        schema = pa.schema([URI, *users, *place_fields])
        batches = (
            _conform(batch, schema, stream.name) for stream in streams for batch in stream.batches
        )
        yield ImageStream(schema, batches, listing)


def open_source(source: Source, reserved: Collection[str], listing: Listing) -> _SourceStream:
    """The rows of one source. Raises as :func:`stream_images`."""
    if isinstance(source, Video):
        videos = open_source(file_if_single(source.videos), reserved, listing)
        frames = (part for batch in videos.batches for part in expand_videos(batch, source.every))
        return replace(videos, user_columns=[*videos.user_columns, *FRAME_COLUMNS], batches=frames)
    added = added_columns([source])
    stream = _open_images(source, {*reserved, *(field.name for field in added)}, listing)
    batches = (_with_nulls(batch, added) for batch in stream.batches)
    return replace(stream, user_columns=[*stream.user_columns, *added], batches=batches)


def added_columns(sources: Iterable[Source]) -> list[pa.Field]:
    """The columns that are filled once the images of ``sources`` are decoded."""
    if any(getattr(source, "exif", False) for source in sources):
        return exif.FIELDS
    return [exif.COMPASS] if any(isinstance(source, Panorama) for source in sources) else []


def _conform(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    """``batch`` with the columns of ``schema``. Raises ``SourceError`` for a value that does not
    fit the type that its column has in all tables.
    """
    with reading_source(name):
        return columns.conform(batch, schema)


def _with_nulls(batch: pa.RecordBatch, fields: Sequence[pa.Field]) -> pa.RecordBatch:
    for field in fields:
        batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
    return batch


def _open_images(source: Source, reserved: Collection[str], listing: Listing) -> _SourceStream:
    if isinstance(source, Panorama):
        names = {*reserved, *(field.name for field in VIEW_COLUMNS)}
        stream = _open_images(source.panorama, names, listing)
        views = (part for batch in stream.batches for part in expand_panoramas(batch, source))
        return replace(stream, user_columns=[*stream.user_columns, *VIEW_COLUMNS], batches=views)
    if hub.is_on_hub(location_of(source)):
        source = _as_on_hub(source)
    if isinstance(source, Manifest):
        return _open_manifest(source, reserved, listing.scratch)
    if isinstance(source, Table):
        table = open_image_table(source.table, source.image_column)
        return _open_parts(source.table, source, table, reserved)
    if isinstance(source, Shards):
        return _open_parts(source.shards, source, open_shards(source, listing), reserved)
    assert not isinstance(source, Video | Panorama)
    return _open_listing(source, listing)


def _as_on_hub(source: Source) -> Source:
    """A source on the Hugging Face Hub at the commit that it has now; a repository or a folder of
    it as what its files are: images, shards, else tables of images.

    Raises ``SourceError`` where images stand next to shards or tables: a dataset's description has
    pictures, too.
    """
    named = location_of(source)
    with storage.translate_errors("cannot read", SourceError):
        location = hub.pinned(named)
    source = moved(source, location)
    if not isinstance(source, Prefix):
        return source
    with reading_source(location):
        names = [file.uri for file in storage.list_files(location)]
    extensions = Counter(PurePosixPath(name).suffix for name in names)
    wanted = dotted(source.extensions)
    images = [end for end, _ in extensions.most_common() if end.lower() in wanted]
    has_shards = any(map(is_shard_name, names))
    if not has_shards and not any(end.lower() == ".parquet" for end in extensions):
        return source
    if images:
        whole = columns.as_yaml({"shards" if has_shards else "table": named})
        loose = columns.as_yaml({"glob": storage.join(named, f"**/*{images[0]}")})
        number = sum(extensions[end] for end in images)
        raise SourceError(
            f"{named}: holds {'shards' if has_shards else 'Parquet files'} and, as files,"
            f" {number:,} image{'s' * (number > 1)}: write images: {whole} or images: {loose}"
        )
    return Shards(shards=location) if has_shards else Table(table=location)


def _open_listing(source: Prefix | Glob | Inventory, listing: Listing) -> _SourceStream:
    leave_out, skipped = listing.leave_out, listing.skipped
    if isinstance(source, Prefix):
        return _stream_uris(source.prefix, list_prefix(source, leave_out, skipped))
    if isinstance(source, Inventory):
        return _stream_uris(source.inventory, list_inventory(source, leave_out, skipped))
    return _stream_uris(source.glob, list_glob(source, leave_out, skipped))


def _stream_uris(name: str, uris: Iterator[str]) -> _SourceStream:
    pages = iter(lambda: list(islice(uris, columns.BATCH_ROWS)), [])
    batches = (pa.record_batch([pa.array(page)], [URI.name]) for page in pages)
    return _SourceStream(name, [], batches)


# ------------------------------------------------------------------------------------- manifests


def _open_manifest(source: Manifest, reserved: Collection[str], scratch: str) -> _SourceStream:
    """A table with a column of URIs. Raises ``SourceError`` for whatever its columns reveal before
    any row is read.
    """
    name = without_query(source.manifest)
    table = open_table(source.manifest, scratch)
    known = {*(field.name for field in table.fields), *source.rename.values()}
    if table.images and source.uri_column not in known:
        is_web = storage.scheme_of(name) in storage.HTTP_SCHEMES
        where = columns.as_yaml({"table": storage.name_of(name) if is_web else name})
        raise SourceError(
            f"{name}: has no column {source.uri_column}, and holds images itself (column"
            f" {', '.join(table.images)}): {'download it, and ' * is_web}write images: {where}"
        )
    _say_left_out(name, table)
    old = [field.name for field in table.fields]
    new = columns.renamed(old, source.rename, name)
    uri = columns.uri_index(table.fields, new, source.uri_column, name)
    users = [index for index in range(len(old)) if index != uri]
    columns.check_names([(old[i], new[i]) for i in users], reserved, source.rename, name)

    schema = pa.schema(columns.without_null_type(table.fields))
    if pa.types.is_binary(schema.field(uri).type):  # as Spark writes texts
        schema = schema.set(uri, schema.field(uri).with_type(pa.string()))
    names = [URI.name, *(new[index] for index in users)]
    selected = _select_rows(table.batches, schema, uri, source, name)
    batches = (
        pa.record_batch([batch.column(index) for index in (uri, *users)], names)
        for batch in selected
    )
    fields = [table.fields[index].with_name(new[index]) for index in users]
    return _SourceStream(name, fields, batches)


def _open_parts(
    name: str, source: Table | Shards, table: TableStream, reserved: Collection[str]
) -> _SourceStream:
    """Parts of objects, with their URIs, places and columns. Raises ``SourceError`` as
    :func:`_open_manifest`.
    """
    _say_left_out(name, table)
    fields = [field for field in table.fields if field.name not in (PART_URI, PLACE.name)]
    old = [field.name for field in fields]
    new = columns.renamed(old, source.rename, name)
    columns.check_names(list(zip(old, new, strict=True)), reserved, source.rename, name)
    uri = pa.field(PART_URI, pa.string())
    schema = pa.schema([uri, PLACE, *columns.without_null_type(fields)])
    selected = _select_rows(table.batches, schema, 0, source, name)
    batches = (batch.rename_columns([URI.name, PLACE.name, *new]) for batch in selected)
    renamed = [field.with_name(name) for field, name in zip(fields, new, strict=True)]
    return _SourceStream(name, renamed, batches, has_places=True)


def _say_left_out(name: str, table: TableStream) -> None:
    if table.images:
        say(f"{name}: left out, because it holds images: column {', '.join(table.images)}")


RowFinder = Callable[[pa.RecordBatch], npt.NDArray[np.int64]]  # numbers of rows of a batch, sorted


def _select_rows(
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    uri: int,
    source: Manifest | Table | Shards,
    name: str,
) -> Iterator[pa.RecordBatch]:
    """The rows of ``batches`` that ``source`` wants, with the columns of ``schema``.

    ``uri`` is the index of the column of URIs. Raises ``SourceError`` for a row without a URI, and
    at the end if there was no row.
    """
    find_rows = _every_row if source.where is None else _where_filter(name, source.where, schema)
    is_csv = name.lower().endswith((".csv", ".csv.gz"))
    num_read = num_selected = 0
    for given in batches:
        batch = _conform(given, schema, name)
        if is_csv:  # blanks around a delimiter are layout
            trimmed = pc.utf8_trim_whitespace(batch.column(uri))
            batch = batch.set_column(uri, schema.field(uri), trimmed)
        found = find_rows(batch)
        selected = batch if len(found) == batch.num_rows else batch.take(pa.array(found))
        empty = np.flatnonzero(pc.equal(pc.fill_null(selected.column(uri), ""), ""))
        if empty.size:
            value = selected.column(uri)[int(empty[0])].as_py()
            row = num_read + int(found[empty[0]])
            raise SourceError(_no_uri(source, name, schema.names[uri], row, value))
        num_read += batch.num_rows
        num_selected += selected.num_rows
        yield selected
    if not num_selected:
        raise SourceError(
            f"{name}: no row matches where: {source.where}" if num_read else f"{name}: has no rows"
        )


def _no_uri(
    source: Manifest | Table | Shards, name: str, column: str, row: int, value: str | None
) -> str:
    quoted = column if re.fullmatch(r"[A-Za-z_]\w*", column) else quoted_name(column)
    condition = f"{quoted} IS NOT NULL" if value is None else f"{quoted} <> ''"
    if source.where is not None:
        condition = f"({source.where}) AND {condition}"
    return (
        f"{name}: row {row} (the first is 0) has no URI in column {column}: leave such rows out"
        f" with {columns.as_yaml({'where': condition})[1:-1]}"
    )


def _every_row(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    return np.arange(batch.num_rows)


def _where_filter(name: str, where: str, schema: pa.Schema) -> RowFinder:
    """A function that finds the rows of a batch which match the SQL condition ``where``.

    The condition sees one batch and nothing else: no file, no setting, no Python variable.
    Raises ``SourceError``, also from the function, if it is no condition on these columns.
    """
    database = in_memory_duckdb("1GB")
    for setting in ("enable_external_access", "python_enable_replacements"):
        database.execute(f"SET {setting} = false")
    database.execute("SET lock_configuration = true")
    # DuckDB returns row numbers only, so that the values keep their Arrow types.
    row = "__segbatch_row"

    def matching_rows(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        numbered = batch.append_column(row, pa.array(_every_row(batch)))
        try:
            expression = duckdb.SQLExpression(where)
            rows = database.from_arrow(numbered).filter(expression).project(row).to_arrow_table()
        except duckdb.Error as error:
            why = first_lines(error)
            if "VARCHAR" in why and "explicit" in why:
                why += ": a column of text is compared as CAST(column AS DOUBLE)"
            raise SourceError(f"{name}: where: {where}: {why}") from error
        return np.sort(rows.column(row).to_numpy())

    matching_rows(pa.RecordBatch.from_pylist([], schema))
    return matching_rows
