"""A job over a table that holds its images, and everything that opens them afterwards."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segbatch import storage
from segbatch.jobs.segment import segment
from segbatch.review.suggest.suggest import suggest
from segbatch.run import Run
from tests.conftest import EVERYTHING, S3, job
from tests.runs import rows_of


@pytest.fixture(scope="module")
def files(collection: Path) -> list[Path]:
    return sorted(path for path in collection.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def table_run(ray_address: str, s3: S3, model_uri: str, files: list[Path]) -> Run:
    """The collection as Hugging Face stores it, in two files with row groups of 4, and one null."""
    root = s3.uri("table")
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    columns = {
        "image": pa.array(
            [*images, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        ),
        "name": [*(path.name for path in files), "none"],
    }
    whole = pa.table(columns)
    for number, part in enumerate((whole[:10], whole[10:])):
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, row_group_size=4)
        s3.put(f"{root}/data/part-{number}.parquet", sink.getvalue().to_pybytes())
    work = job({"table": f"{root}/data/"}, model_uri, f"{root}/run", **EVERYTHING)
    return segment(work)


def test_images_in_a_table_give_the_rows_of_loose_ones(table_run: Run, whole_run: Run) -> None:
    loose = {storage.name_of(row["uri"]): row for row in rows_of(whole_run).to_pylist()}
    rows = rows_of(table_run).to_pylist()
    assert [row["image_id"] for row in rows] == list(range(len(rows)))
    same = ["status", "error", "width", "height", "mask", "pixels", "coverage", "boxes"]
    for row in rows[:-1]:
        expected = loose[row["name"]]
        assert [row[key] for key in same] == [expected[key] for key in same], row["name"]
    assert (rows[-1]["error"], rows[-1]["message"]) == ("not_found", "the row has no image")
    assert table_run.audit(deep=True).exit_code == 0


def test_everything_that_opens_an_image_opens_a_row(
    table_run: Run, files: list[Path], tmp_path: Path
) -> None:
    contents = {path.read_bytes() for path in files}
    suggested = suggest(table_run, str(tmp_path / "to-label"), count=3)
    for entry in suggested.images:
        copy = tmp_path / "to-label" / entry.file
        assert copy.read_bytes() in contents
        assert copy.suffix in (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm")
    table_run.report(str(tmp_path / "report.html"))
    assert "part-0.parquet#row=" in (tmp_path / "report.html").read_text()
    table_run.export(str(tmp_path / "overlays"), "overlay", limit=3)
    overlays = [
        path for path in (tmp_path / "overlays").rglob("*") if path.suffix in (".jpg", ".png")
    ]
    assert len(overlays) == 3
    for path in overlays:
        Image.open(path).load()
