"""What a run holds, read back as any reader would."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from segbatch import storage
from segbatch.masks import decode_mask
from segbatch.run import Run

FEW = 1e-5  # share of pixels that rounding in convolutions may change


def rows_of(run: Run) -> pa.Table:
    """Every committed row, by its image."""
    return _read(run, "rows").sort_by("image_id")


def stats_of(run: Run) -> pa.Table:
    return _read(run, "stats")


def _read(run: Run, name: str) -> pa.Table:
    table = run.table(name)
    assert table is not None
    files = [storage.join(table.uri, file.name) for file in table.files()]
    read = [pa.parquet.read_table(path, filesystem=fs)
            for fs, path in map(storage.arrow_filesystem, files)]  # fmt: skip
    return pa.concat_tables(read)


def share_that_differs(one: pa.Table, other: pa.Table) -> float:
    """Of all pixels of the masks of two runs over the same images."""
    differing = total = 0
    for a, b in zip(one["mask"].to_pylist(), other["mask"].to_pylist(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            first, second = decode_mask(a), decode_mask(b)
            assert first.shape == second.shape
            differing += int((first != second).sum())
            total += first.size
    return differing / total


SAME = ["image_id", "uri", "status", "error", "message", "width", "height", "mask_width",
        "mask_height"]  # fmt: skip


def rows_commits(run: Path) -> int:
    """Commits of rows to a run's table so far."""
    log = run / "rows" / "_delta_log"
    return sum('"event":"rows"' in entry.read_text().replace(" ", "").replace("\\", "")
               for entry in log.glob("*.json"))  # fmt: skip
