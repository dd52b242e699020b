"""Manifests in Parquet: one file, or many with Hive partitions, as record batches in their order.

Read file by file with pyarrow rather than as one dataset: a dataset takes its columns from the
first file alone and loses the others', and reads ahead without a bound on memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.images import columns
from segbatch.images.listing import reading

_FOOTERS_AT_ONCE = 16
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def parquet_table(
    files: Sequence[str], base: str, batch_rows: int
) -> tuple[list[pa.Field], Iterator[pa.RecordBatch]]:
    """The columns of all ``files`` together, as they travel, and their batches.

    Folders named ``key=value`` between ``base`` and a file become columns: integers if every
    value is one and none has a leading zero, else strings. Raises ``SourceError``.
    """
    partitions = [_partitions(file.removeprefix(base)) for file in files]
    keys = _partition_fields(partitions)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        fields = columns.union(zip(files, pool.map(_fields, files), strict=True))
    fields = columns.union([(base, fields), (f"{base} (folder names)", keys)])
    return fields, _batches(list(zip(files, partitions, strict=True)), keys, batch_rows)


def _batches(
    files: Sequence[tuple[str, Mapping[str, str | None]]], keys: list[pa.Field], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    for file, values in files:
        with reading(file), _opened(file) as table:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_rows, row_groups=[group]):
                    for key in keys:
                        value = pa.scalar(values.get(key.name)).cast(key.type)
                        batch = batch.append_column(key, pa.repeat(value, batch.num_rows))  # noqa: PLW2901
                    yield batch


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = storage.arrow_filesystem(file)
    with (
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream, pre_buffer=not storage.is_local(file)) as table,
    ):
        yield table


def _fields(file: str) -> list[pa.Field]:
    with reading(file), _opened(file) as table:
        schema: pa.Schema = table.schema_arrow
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SourceError(f"{file}: has two columns named exactly {', '.join(twice)}")
    return columns.travelling_fields(schema, file)


def _partitions(path: str) -> dict[str, str | None]:
    found = dict(re.findall(r"/([^/=]+)=([^/]*)(?=/)", path))
    return {k: None if v == _NULL_PARTITION else unquote(v) for k, v in found.items()}


def _partition_fields(partitions: Sequence[Mapping[str, str | None]]) -> list[pa.Field]:
    values: dict[str, set[str]] = {}
    for partition in partitions:
        for key, value in partition.items():
            values.setdefault(key, set()).update([] if value is None else [value])
    return [
        pa.field(
            key,
            pa.int64()
            if found and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value) for value in found)
            else pa.string(),
        )
        for key, found in values.items()
    ]
