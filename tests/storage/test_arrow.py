"""Binary columns are made from bytes, and viewed as bytes, without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from segbatch.storage.arrow import binary_column, binary_views

CONTENT = np.arange(10, dtype=np.uint8)


def test_views_are_the_bytes_of_each_row() -> None:
    column = binary_column(CONTENT, [0, 3, 3, 10])
    assert column.to_pylist() == [bytes([0, 1, 2]), None, bytes(range(3, 10))]
    first, none, last = binary_views(pa.chunked_array([column]))
    assert none is None
    assert first is not None
    assert last is not None
    assert (first.tolist(), last.tolist()) == ([0, 1, 2], list(range(3, 10)))
    assert np.shares_memory(first, CONTENT)
    assert np.shares_memory(last, CONTENT)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([], pa.large_binary()),
        pa.chunked_array([pa.nulls(2, pa.large_binary())]),
        pa.chunked_array([pa.array([b"ab", None, b"", b"c"], pa.large_binary())]).slice(1, 3),
        pa.chunked_array([[b"ab"], [b"c"]], pa.large_binary()),
        pa.chunked_array([[b"ab", None], [b"", b"c"]], pa.binary()),
        pa.chunked_array([binary_column(CONTENT, [0, 0, 0])]),
    ],
    ids=["no rows", "nulls", "a slice", "chunks", "small", "nothing in them"],
)  # fmt: skip
def test_any_column_reads_as_pyarrow_reads_it(column: pa.ChunkedArray) -> None:
    views = binary_views(column)
    assert [None if view is None else view.tobytes() for view in views] == column.to_pylist()


def test_a_column_from_an_ipc_stream_is_read() -> None:
    table = pa.table({"pixels": binary_column(CONTENT, [0, 4, 4, 10])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    travelled = pa.ipc.open_stream(sink.getvalue()).read_all()["pixels"]
    assert travelled.num_chunks == 2
    views = binary_views(travelled)
    assert [None if v is None else v.tobytes() for v in views] == table["pixels"].to_pylist()
