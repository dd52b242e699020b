"""Ours, to be started again: the same command.

As :mod:`benchmarks.peers.segbatch_job`. A driver commits every five seconds instead of every
minute, so that a short run has several commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

import segbatch
from benchmarks.peers import segbatch_job
from benchmarks.peers.task import Pixels, Task, start_ray
from segbatch.errors import SegbatchError
from segbatch.results import ledger

ledger.COMMIT_EVERY_S = 5.0

ON_RAY = True


def main() -> None:
    task = Task.given()
    start_ray()
    job = {
        "kind": "segment",
        "images": task.images,
        "model": task.model,
        "output": task.output,
        "predict": {"long_side": None, "precision": task.precision, "batch_size": task.batch_size},
        "resources": {"device": task.device},
        "rows_per_file": task.rows_per_file,
        "limits": {"timeout_s": 5, "max_failed_fraction": 1.0},
    }
    try:
        segbatch.segment(job)
    except SegbatchError as error:
        print(f"segbatch: {error}")
        raise SystemExit(error.exit_code) from error
    finally:
        done = sum(
            pq.ParquetFile(file).metadata.num_rows
            for file in Path(task.output, "rows").glob("*.parquet")
        )
        Path(task.progress).write_text(f"0 {done}\n")


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    return segbatch_job.masks(output)


if __name__ == "__main__":
    main()
