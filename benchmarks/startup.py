"""Start-up times: scripts/bench startup.

    scripts/bench startup [--rounds 10] [--no-ray] [-o RESULT.json]

Seconds from the start of a process, the best of several, which take turns: `segbatch --help` and
`segbatch query` on a run of 14 images to their end, and `segbatch run` of four small images to the
first file of rows, less what a process takes to start Ray and nothing else. Of the first two also
what is imported, by package: `python -X importtime`, which itself takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.faults.bench import small_model  # noqa: E402
from segbatch.machine import cpu_model, num_cores  # noqa: E402
from tests.collection import jpeg  # noqa: E402
from tests.written_run import write_run  # noqa: E402

GOALS_S = {"segbatch --help": 0.3, "segbatch query": 1.0, "first image beyond Ray": 15.0}
QUERY = "SELECT uri, coverage.window AS glass FROM images ORDER BY glass DESC LIMIT 10"
PACKAGES = 12
RAY_ROUNDS = 3
FIRST_IMAGE_TIMEOUT_S = 300.0
START_RAY = (
    "import ray; ray.init(address='local', log_to_driver=False, include_dashboard=False);"
    "print('up', flush=True)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-ray", action="store_true", help="leave out what starts Ray")
    parser.add_argument(
        "-o", "--output", type=Path,
        default=ROOT / f"benchmarks/results/{date.today()}-startup.json",
    )  # fmt: skip
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{cpu_model()}, {num_cores()} cores",
        "python": sys.version.split()[0],
    }
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        run = write_run(f"{folder}/small")
        commands = {"segbatch --help": ["--help"], "segbatch query": ["query", run.uri, QUERY]}
        bare = {"python -c pass": [sys.executable, "-c", "pass"]}
        ours = {name: segbatch(*command) for name, command in commands.items()}
        result["seconds"] = best(
            {name: partial(to_the_end, command) for name, command in (bare | ours).items()},
            arguments.rounds,
        )
        result["imported_ms"] = {name: imported(command) for name, command in commands.items()}
        if not arguments.no_ray:
            result["seconds"] |= first_image(Path(folder))
    show(result)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def segbatch(*command: str) -> list[str]:
    """As a user types it."""
    return [str(Path(sys.executable).with_name("segbatch")), *command]


def best(tasks: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The fewest seconds of each, over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            seconds[name].append(task())
    return {name: round(min(values), 3) for name, values in seconds.items()}


def to_the_end(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=alone())
    return time.perf_counter() - start


def alone() -> dict[str, str]:
    """This environment without a cluster in it."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def imported(command: list[str]) -> dict[str, float]:
    """Milliseconds that a command imports of each package, the largest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "segbatch", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    packages: Counter[str] = Counter()
    for micros, module in re.findall(r"import time: +(\d+) \| +\d+ \| +(\S+)", done.stderr):
        package = module.partition(".")[0]
        packages["Python's own" if package in sys.stdlib_module_names else package] += int(micros)
    return {package: micros / 1000 for package, micros in packages.most_common()}


def first_image(folder: Path) -> dict[str, float]:
    """From nothing to the first row of a local run, and what of it Ray takes by itself."""
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, 48, 64))
    model = small_model(str(folder))
    runs = (folder / f"run-{number}" for number in range(RAY_ROUNDS))
    seconds = best(
        {
            "Ray alone": until_ray,
            "first image": lambda: until_rows(folder, model, next(runs)),
        },
        RAY_ROUNDS,
    )
    beyond = seconds["first image"] - seconds["Ray alone"]
    return seconds | {"first image beyond Ray": round(beyond, 3)}


def until_ray() -> float:
    """Seconds until Ray is up in a process that asks for nothing else."""
    start = time.perf_counter()
    command = [sys.executable, "-c", START_RAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone()) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "up\n":
            raise SystemExit("Ray did not start")
        return time.perf_counter() - start


def until_rows(folder: Path, model: str, run: Path) -> float:
    """Seconds until a run has written its first file of rows; the run is waited for."""
    job = folder / "job.yaml"
    keys = {"kind": "segment", "images": f"{folder}/*.jpg", "model": model, "output": str(run)}
    job.write_text(yaml.safe_dump(keys))
    start = time.perf_counter()
    with subprocess.Popen(
        segbatch("run", str(job)), stdout=subprocess.DEVNULL, env=alone()
    ) as driver:
        while not list((run / "rows").glob("*.parquet")):
            if driver.poll() is not None or time.perf_counter() - start > FIRST_IMAGE_TIMEOUT_S:
                driver.send_signal(signal.SIGTERM)
                raise SystemExit("the run wrote no rows")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
    if driver.returncode:
        raise SystemExit(f"the run ended with {driver.returncode}")
    return seconds


def show(result: dict[str, Any]) -> None:
    print("| | seconds, the best | goal |\n| --- | --- | --- |")
    for name, seconds in result["seconds"].items():
        goal = GOALS_S.get(name)
        missed = " !" if goal and seconds > goal else ""
        print(f"| {name} | {seconds:.2f}{missed} | {goal or ''} |")
    for name, packages in result["imported_ms"].items():
        largest = list(packages.items())[:PACKAGES]
        total = sum(packages.values())
        print(f"\n{name} imports for {total:.0f} ms, in ms: ", end="")
        print(", ".join(f"{package} {ms:.0f}" for package, ms in largest))


if __name__ == "__main__":
    main()
