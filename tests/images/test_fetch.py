from pathlib import Path

import pyarrow as pa

from segbatch.images.fetch import fetch
from segbatch.storage import ReadLimits
from tests.conftest import S3


def test_every_row_gets_its_bytes_or_the_reason_why_not(s3: S3, tmp_path: Path) -> None:
    root = s3.uri("images")
    s3.put(f"{root}/a.jpg", b"content")
    s3.put(f"{root}/large.jpg", bytes(1001))
    (tmp_path / "local.jpg").write_bytes(b"")
    uris = [f"{root}/a.jpg", f"{root}/none.jpg", f"{root}/large.jpg", f"{tmp_path}/local.jpg"]
    manifest = pa.table({"image_id": [7, 8, 9, 10], "uri": uris, "city": ["a", None, "b", "c"]})

    table = fetch(manifest, ReadLimits(max_bytes=1000))

    assert table.select(manifest.column_names) == manifest
    assert table.schema.field("data").type == pa.large_binary()
    assert table["data"].to_pylist() == [b"content", None, None, b""]
    assert table["error"].to_pylist() == [None, "not_found", "too_large", None]
    assert [message is None for message in table["message"].to_pylist()] == [
        True,
        False,
        False,
        True,
    ]


def test_a_table_without_rows_has_the_same_columns() -> None:
    manifest = pa.table({"image_id": [1], "uri": ["/none.jpg"]})
    assert fetch(manifest[:0], ReadLimits()).schema == fetch(manifest, ReadLimits()).schema
