"""Whether memory grows with the number of images: scripts/bench memory.

    scripts/bench memory [--images 200000] [-o RESULT.json]

A real job, as a user starts it, over a manifest that names a few small images again and again. At
each tenth of them the memory that the driver and the largest of its workers have to themselves
(private pages: what they share through Ray's object store is not counted), in MB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.bench import small_model  # noqa: E402
from tests.collection import jpeg  # noqa: E402

DISTINCT = 64
WORKERS = ("fetch_stage", "PredictStage", "encode_stage", "write_stage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args()
    facts = result.machine()
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), arguments.images)
        tenths = watch(job, arguments.images)
    saved = result.save("memory", {**facts, "tenths": tenths}, arguments.output)
    print("| images | seconds | driver MB | largest worker MB | workers in all MB |")
    print("| --- | --- | --- | --- | --- |")
    for row in tenths:
        print("|", " | ".join(f"{value:,}" for value in row.values()), "|")
    print(f"\n{saved}")


def prepare(folder: Path, num_images: int) -> Path:
    """Images, a manifest of ``num_images``, a model, and the job file, which is returned."""
    for number in range(DISTINCT):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, 48, 64))
    uris = [f"{folder}/{number % DISTINCT:02d}.jpg" for number in range(num_images)]
    pq.write_table(pa.table({"uri": uris}), folder / "manifest.parquet")
    job = {
        "kind": "segment",
        "images": f"{folder}/manifest.parquet",
        "model": small_model(str(folder)),
        "output": f"{folder}/run",
        "predict": {"long_side": 64},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def watch(job: Path, num_images: int) -> list[dict[str, Any]]:
    """Run the job; one row a tenth of its images."""
    command = [Path(sys.executable).with_name("segbatch"), "run", job]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert driver.stderr is not None
    rows: list[dict[str, Any]] = []
    for line in driver.stderr:
        print(line, end="", file=sys.stderr)
        images = images_done(line)
        if images is not None and images >= len(rows) * num_images // 10:
            rows.append({"images": images} | seconds_and_memory(driver.pid))
    if driver.wait():
        sys.exit(f"the job ended with {driver.returncode}")
    return rows


def seconds_and_memory(driver: int) -> dict[str, int]:
    """Of the driver's process and its descendants."""
    workers = workers_mb(driver)
    age = float(Path("/proc/uptime").read_text().split()[0])
    age -= int(stat(driver)[19]) / os.sysconf("SC_CLK_TCK")
    return {
        "seconds": round(age),
        "driver": private_mb(driver),
        "largest_worker": max(workers, default=0),
        "workers": sum(workers),
    }


def images_done(line: str) -> int | None:
    """How many images had arrived, if a line of a driver's says it."""
    progress = re.search(r"time=\S+ .*images=(\d+)/\d+", line)
    return int(progress[1]) if progress else None


def workers_mb(parent: int) -> list[int]:
    """The private memory of each of Ray's workers below a process, a driver or a raylet."""
    return [
        private_mb(pid)
        for pid in descendants(parent)
        if any(name in command_line(pid) for name in (*WORKERS, "ray::IDLE"))
    ]


def private_mb(pid: int) -> int:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+) kB", text)) // 1000
    return 0


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int(stat(int(folder.name))[1])
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        children = [child for child, of in parents.items() if of == parent]
        found += children
        queue += children
    return found


def stat(pid: int) -> list[str]:
    """The fields of a process's ``stat`` behind its name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


if __name__ == "__main__":
    main()
