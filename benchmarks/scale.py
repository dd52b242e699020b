"""What the driver's own work costs as a run grows: scripts/bench scale.

    scripts/bench scale [--images 10000 100000 1000000] [--folder FOLDER] [-o RESULT.json]

The whole run but for the workers: a Parquet manifest is frozen, real files are written by an
instant executor (one label map of 192×256, 500 rows a file), entered and committed, the run is
resumed when half of it is done, audited, finished, resumed once more (by the driver's own code, and
by `segbatch run` as a user types it) and asked. Real Delta tables and Parquet on a local disk; what
workers do with images is measured elsewhere (`scripts/bench segment`), and so is their memory
(`scripts/bench memory`). Each size runs in a process of its own, whose memory is its own; of each
tenth of its images it notes what one took and what the process holds. GOALS apply to each size: how
much the last tenth may take more than the first, and how long a finished run may take again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.bench import small_model  # noqa: E402
from benchmarks.memory import private_mb  # noqa: E402
from segbatch.config.job import SegmentJob, load_kind  # noqa: E402
from segbatch.demo.facades.facades import render_facade  # noqa: E402
from segbatch.images import manifest  # noqa: E402
from segbatch.jobs.passes import Accounts, Passes  # noqa: E402
from segbatch.jobs.preflight import Sizes, prepare  # noqa: E402
from segbatch.jobs.progress import Progress  # noqa: E402
from segbatch.jobs.runstate import RunState, StartRecord  # noqa: E402
from segbatch.jobs.stages import accounts_of, write_stage  # noqa: E402
from segbatch.jobs.watch import Watch  # noqa: E402
from segbatch.model.engine import EngineChoice  # noqa: E402
from segbatch.results import ledger as ledgers  # noqa: E402
from segbatch.results.encode import Encoding, encode  # noqa: E402
from segbatch.results.lease import Lease  # noqa: E402
from segbatch.results.ledger import Ledger  # noqa: E402
from segbatch.results.schema import RESERVED_COLUMNS, rows_schema  # noqa: E402
from segbatch.results.write import Writing  # noqa: E402
from segbatch.run import open_run  # noqa: E402

FILE_ROWS = 500
COMMIT_EVERY_S = 1.0  # a run of millions commits some hundred times, and this one is short
TENTHS = 10
GOALS = {  # of each size; what is above them is marked with a !
    "ms an image, last tenth ÷ first": 1.1,
    "driver MB, last tenth ÷ first": 1.2,
    "command_again_s": 15.0,
}
QUERY = "SELECT uri FROM images WHERE coverage.{name} > 0.1 ORDER BY image_id LIMIT 100"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="of the runs; a temporary one by default")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.folder, arguments.one)))
        return
    facts = result.machine()
    results: list[dict[str, Any]] = []
    for num_images in arguments.images:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            command = [sys.executable, __file__, "--one", str(num_images), "--folder", folder]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(ended.stdout.splitlines()[-1]))
        result.save("scale", {**facts, "runs": results}, arguments.output)
    print("| | " + " | ".join(f"{row['images']:,}" for row in results) + " |")
    print("| --- " * (len(results) + 1) + "|")
    for name in results[0]:
        print(f"| {name} | " + " | ".join(shown(name, row[name]) for row in results) + " |")
    smallest, largest = results[0], results[-1]
    for name in ("ms an image", "driver MB, last tenth"):
        print(f"\n{name}, {largest['images']:,} images ÷ {smallest['images']:,}: "
              f"{largest[name] / smallest[name]:.2f}")  # fmt: skip


def shown(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" + (" !" if value > GOALS.get(name, value) else "")


def measure(folder: Path, num_images: int) -> dict[str, Any]:
    """One run of ``num_images``, from its manifest to a query; seconds, bytes, MB."""
    found: dict[str, Any] = {"images": num_images}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[f"{name}_s"] = round(time.perf_counter() - start, 3)
        print(f"{num_images:,} {name} {found[f'{name}_s']} s", file=sys.stderr)

    ledgers.COMMIT_EVERY_S = COMMIT_EVERY_S
    job_file = write_job(folder, num_images)
    job = load_kind(str(job_file), SegmentJob)
    run = job.output
    prepared = prepare(job)
    rows = template(prepared)
    tenths = Tenths(num_images)
    memory = [peak_mb()]
    with timed("freeze"):
        frozen = manifest.freeze(
            job.sources, f"{run}/manifest", reserved=RESERVED_COLUMNS, leave_out=run
        )
        state = RunState.new(run, job, prepared, frozen)
        state.write("running")
    memory.append(peak_mb())
    with timed("rows"):
        work(run, job, prepared, rows, tenths, until=num_images // 2)
    with timed("second_start"):  # what is committed is read, and nothing is left to do at first
        work(run, job, prepared, rows, tenths, until=0)
    with timed("other_rows"):
        work(run, job, prepared, rows, tenths, until=num_images)
    memory.append(peak_mb())
    with timed("finish"), Lease(run, print_to_stderr) as lease:
        state, ledger = opened(run, job, prepared, lease)
        state.finish(ledger, job)
    memory.append(peak_mb())
    with timed("audit"):
        assert open_run(run).audit().exit_code == 0
    with timed("run_again"):
        finished = RunState.read(run)
        assert finished is not None
        finished.close(job)
    with timed("command_again"):
        command = [Path(sys.executable).with_name("segbatch"), "run", job_file]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    with timed("query"):
        name = prepared.config.classes.names[1]
        assert len(open_run(run).sql(QUERY.format(name=name)).fetchall()) == 100
    with timed("one_mask"):
        open_run(run).mask(num_images - 1)
    memory.append(peak_mb())
    found["peak_mb_before_freeze_rows_finish_query"] = " / ".join(map(str, memory))
    return found | tenths.facts() | sizes(Path(run))


def write_job(folder: Path, num_images: int) -> Path:
    """A manifest of ``num_images``, a model, and the job file, which is returned."""
    ids = range(num_images)
    uris = [f"s3://bucket/facades/{number // 1000:06d}/{number:09d}.jpg" for number in ids]
    table = pa.table({"uri": uris, "building": [f"b{number // 3:08d}" for number in ids]})
    pq.write_table(table, folder / "images.parquet")
    job = {
        "kind": "segment",
        "images": str(folder / "images.parquet"),
        "model": small_model(str(folder)),
        "output": str(folder / "run"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def sizes(run: Path) -> dict[str, int]:
    return {
        "manifest_bytes": size_of(run / "manifest"),
        "rows_files": len(list((run / "rows").glob("*.parquet"))),
        "rows_bytes": size_of(run / "rows"),
        "rows_bytes_a_file": mean_size(run / "rows"),
        "stats_files": len(list((run / "stats").glob("*.parquet"))),
        "stats_bytes": size_of(run / "stats"),
        "stats_bytes_a_file": mean_size(run / "stats"),
        "log_entries": len(list((run / "rows" / "_delta_log").glob("*.json"))),
        "log_bytes": size_of(run / "rows" / "_delta_log"),
        "run_json_bytes": (run / "run.json").stat().st_size,
    }


def work(
    run: str, job: SegmentJob, prepared: Any, rows: pa.Table, tenths: Tenths, *, until: int
) -> None:
    """One start of a driver, whose executor is instant, up to ``until`` committed images."""
    with Lease(run, print_to_stderr) as lease:
        state, ledger = opened(run, job, prepared, lease)
        writing = Writing(lease.worker_lease, ledger.epoch, ledger.table.schema, last_pass=False)
        executor = Instant(rows, writing, tenths)
        with Progress(run, state.num_images, ledger.taken.count()) as progress:
            choice, sizes = EngineChoice("openvino", "fp32"), Sizes(FILE_ROWS, FILE_ROWS)
            state.begin_start(ledger, "cpu", choice, workers="none", sizes=sizes)
            record = StartRecord(state, progress, lambda: [])
            bounds = [(first, min(end, until)) for first, end in state.bounds if first < until]
            passes = Passes(
                job.limits, state.images_of, bounds, FILE_ROWS, ledger=ledger,
                watch=Watch(lease, 60), progress=progress, on_commit=record.write_now_and_then,
            )  # fmt: skip
            if until == state.num_images:
                passes.run(executor)
            else:  # as if the driver were killed there
                for first, end in bounds:
                    accounts = executor.blocks(
                        state.images_of(ledger.taken.missing(first, end)), FILE_ROWS,
                        last_pass=False,
                    )  # fmt: skip
                    for account in accounts:
                        ledger.enter(account)
                        if ledger.commit_is_due:
                            ledger.commit()
                ledger.commit()


def opened(run: str, job: SegmentJob, prepared: Any, lease: Lease) -> tuple[RunState, Ledger]:
    state = RunState.read(run)
    assert state is not None
    state.refuse_damaged_logs()
    return state, state.open_ledger(state.schema(job, prepared.config.classes), lease.driver)


class Tenths:
    """Seconds of each tenth of a run's images, and the memory that the driver then has to itself.

    In order, so that what grows with the run is seen within it; the driver's own start is not in
    it.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.images = [0] * TENTHS
        self.seconds = [0.0] * TENTHS
        self.memory = [0] * TENTHS

    def note(self, ids: pa.ChunkedArray, seconds: float) -> None:
        tenth = ids[0].as_py() * TENTHS // self.num_images
        if self.images[tenth] == 0:
            self.memory[tenth] = private_mb(os.getpid())
        self.images[tenth] += len(ids)
        self.seconds[tenth] += seconds

    def facts(self) -> dict[str, float]:
        each = [1000 * s / n for s, n in zip(self.seconds, self.images, strict=True)]
        facts = {
            "ms an image": 1000 * sum(self.seconds) / sum(self.images),
            "ms an image, first tenth": each[0],
            "ms an image, last tenth": each[-1],
            "ms an image, last tenth ÷ first": each[-1] / each[0],
            "driver MB, first tenth": self.memory[0],
            "driver MB, last tenth": self.memory[-1],
            "driver MB, last tenth ÷ first": self.memory[-1] / self.memory[0],
        }
        return {name: round(value, 5) for name, value in facts.items()}


class Instant:
    """Rows at once, written for real."""

    def __init__(self, rows: pa.Table, writing: Writing, tenths: Tenths) -> None:
        self.rows = rows
        self.writing = writing
        self.tenths = tenths

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        for start in range(0, len(images), rows):
            began = time.perf_counter()
            block = images.slice(start, rows)
            table = self.rows.slice(0, len(block))
            for column in block.column_names:
                name = column.removeprefix("user:")
                table = table.set_column(table.column_names.index(name), name, block[column])
            yield from accounts_of(write_stage(table, self.writing))
            # Here the driver has entered it, and committed if that was due.
            self.tenths.note(block["image_id"], time.perf_counter() - began)

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        return self.blocks(images, 1, last_pass=last_pass)

    def why(self, image: pa.Table) -> str | None:
        return None


def template(prepared: Any) -> pa.Table:
    """Rows of a file, of label maps of rendered facades."""
    classes = prepared.config.classes
    schema = rows_schema(
        classes, stats=["confidence"], user_columns=[pa.field("building", pa.string())]
    )
    maps = [render_facade(seed, 256).label_map % len(classes) for seed in range(25)]
    maps = [maps[row % len(maps)].astype(np.uint8) for row in range(FILE_ROWS)]
    counts = [np.bincount(m.ravel(), minlength=len(classes)) for m in maps]
    heights, widths = [m.shape[0] for m in maps], [m.shape[1] for m in maps]
    nothing = pa.nulls(FILE_ROWS, pa.string())
    table = pa.table(
        {
            "image_id": pa.array(range(FILE_ROWS), pa.int64()), "uri": nothing,
            "user:building": nothing, "error": nothing, "message": nothing,
            "width": pa.array(widths, pa.int32()), "height": pa.array(heights, pa.int32()),
            "mask_width": pa.array(widths, pa.int32()),
            "mask_height": pa.array(heights, pa.int32()),
            "label_map": pa.array([m.tobytes() for m in maps], pa.large_binary()),
            "class_pixels": pa.array([c.tolist() for c in counts], pa.list_(pa.int64())),
            "class_confidence": pa.array(
                [(0.5 + c / c.sum() / 2).tolist() for c in counts], pa.list_(pa.float32())
            ),
            "uncertainty": pa.array(np.linspace(0, 1, FILE_ROWS), pa.float32()),
        }
    )  # fmt: skip
    return encode(table, Encoding(classes, schema))


def peak_mb() -> int:
    """Peak resident memory, shared pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mean_size(folder: Path) -> int:
    """Of the data files of a table."""
    files = list(folder.glob("*.parquet"))
    return sum(path.stat().st_size for path in files) // len(files)


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
