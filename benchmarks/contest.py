"""A contest: one task for several programs, one after the other, on the same machine.

Each contender runs in processes of its own and is looked at from outside: when its images were
finished, what the S3 server took meanwhile, and what it wrote. The steady state is the rate between
the images that bring it to 10 % and to 90 %; what is left of the wall time is start and end. With
few images the steady rate of a contender that reads ahead is too high; compare wall times.
Threads wait as in a job of ours, asleep: those that spin take the cores from all else there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks import photographs
from benchmarks.cpuclock import CpuClock, children
from benchmarks.peers import daft_udf
from benchmarks.peers.task import Task
from benchmarks.programs import program
from segbatch import storage
from segbatch.demo.s3server import s3_server
from segbatch.jobs.runtime.sharing import PASSIVE_THREADS
from segbatch.machine import num_cores

ROOT = Path(__file__).parents[1]
SAMPLE = 16  # masks that are held against ours
TIES = 0.001  # share of pixels that may differ: ties, and decoders that round otherwise
TIMEOUT_S = 3600
# Below these, the window of the steady state shows what was read ahead, and not a rate.
MIN_MARKS = 8
MIN_WINDOW_S = 5.0

CONTENDERS = {  # the module of each, and its name in tables
    "in_memory": "the limit, in memory",
    "segbatch_job": "segbatch",
    "pytorch_script": "PyTorch script",
    "ray_docs": "Ray Data, as in its guide",
    "openvino_script": "OpenVINO script",
    "daft_udf": "Daft, class UDF",
}
OURS, LIMIT = "segbatch_job", "in_memory"


@dataclass(frozen=True)
class Outcome:
    """One run of one contender. Rates are images/s of all cores; cores are of the steady state."""

    contender: str
    wall_s: float
    steady: float | None = None
    start_and_end_s: float | None = None
    server_cores: float | None = None
    idle_cores: float | None = None
    masks: int | None = None  # None: it keeps none
    differing: float | None = None  # share of pixels of the worst mask of a sample, against ours
    error: str = ""

    @property
    def corrected(self) -> float | None:
        """The steady rate, had the server's time on these cores been the contender's."""
        if self.steady is None or self.server_cores is None:
            return None
        return self.steady * num_cores() / max(num_cores() - self.server_cores, 0.1)


@dataclass
class Contest:
    """``server`` is the process of an S3 server on these cores."""

    task: Task
    server: int | None
    outcomes: list[Outcome] = field(default_factory=list)

    def hold(self, names: Sequence[str], rounds: int) -> None:
        """Each contender once a round; ours goes first, so that the others are held against it."""
        ours: dict[str, Any] = {}
        for _ in range(rounds):
            for name in sorted(names, key=lambda name: name != OURS):
                with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                    outcome = self._run(name, Path(folder), ours)
                self.outcomes.append(outcome)
                print(f"{CONTENDERS[name]}: {_line(outcome)}", file=sys.stderr, flush=True)

    def table(self) -> list[dict[str, Any]]:
        """The rows of the table: of each contender, the medians over its rounds."""
        limit = self._median(LIMIT, "corrected")
        rows = []
        for name, title in CONTENDERS.items():
            if any(outcome.contender == name for outcome in self.outcomes):
                rate = self._median(name, "corrected")
                server = self._median(name, "server_cores")
                wall = self._median(name, "wall_s")
                row = {
                    "contender": title,
                    "wall, s": wall,
                    "of the wall, images/s": wall and self.task.num_images / wall,
                    "start and end, s": self._median(name, "start_and_end_s"),
                    "steady, images/s": self._median(name, "steady"),
                    "cores of the S3 server": server,
                    "idle cores": self._median(name, "idle_cores"),
                    "server taken off, images/s": rate,
                    "images/s and core": rate and rate / num_cores(),
                }
                if limit:
                    row["of the limit"] = rate and rate / limit
                rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        runs = [asdict(outcome) | {"corrected": outcome.corrected} for outcome in self.outcomes]
        return {"task": asdict(self.task), "runs": runs, "table": self.table()}

    def _median(self, name: str, figure: str) -> float | None:
        values = [getattr(o, figure) for o in self.outcomes if o.contender == name and not o.error]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def _run(self, name: str, folder: Path, ours: dict[str, Any]) -> Outcome:
        progress, given, log = folder / "progress.txt", folder / "task.json", folder / "log.txt"
        progress.touch()
        task = replace(self.task, output=f"{folder}/output", progress=str(progress))
        task.save(given)
        with CpuClock(self.server) as clock, log.open("w") as said:
            start = time.time()
            code = _exit_code(name, given, said)
            wall = time.time() - start
        if code != 0:
            print(log.read_text()[-4000:], file=sys.stderr)
            return Outcome(name, wall, error="too slow" if code is None else f"exit code {code}")
        outcome = Outcome(name, wall)
        if window := steady_window(progress):
            begin, end, images = window
            rate = images / (end - begin)
            server, idle = clock.cores(begin, end)
            outcome = replace(
                outcome,
                steady=rate,
                start_and_end_s=wall - task.num_images / rate,
                server_cores=server,
                idle_cores=idle,
            )
        if name == LIMIT:
            return outcome
        number, worst = held_against(ours, name, task)
        return replace(outcome, masks=number, differing=worst)


def _exit_code(name: str, task: Path, log: IO[str]) -> int | None:
    """Run a contender on a task; ``None`` if it took too long."""
    command = [*python_for(name), "-m", f"benchmarks.peers.{name}", str(task)]
    environment = PASSIVE_THREADS | os.environ | {"PYTHONPATH": str(ROOT)}
    with program(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    ) as process:
        try:
            return process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None


def steady_window(progress: Path) -> tuple[float, float, int] | None:
    """Begin, end, and images finished in between; ``None`` if that is too short to show a rate."""
    lines = progress.read_text().split()
    marks = sorted(zip(map(float, lines[::2]), map(int, lines[1::2]), strict=True))
    if len(marks) < MIN_MARKS:
        return None
    times = np.array([moment for moment, _ in marks])
    done = np.cumsum([images for _, images in marks])
    first = int(np.searchsorted(done, 0.1 * done[-1]))
    last = int(np.searchsorted(done, 0.9 * done[-1], side="right")) - 1
    if times[last] - times[first] < MIN_WINDOW_S:
        return None
    return times[first], times[last], int(done[last] - done[first])


def held_against(ours: dict[str, Any], name: str, task: Task) -> tuple[int, float | None]:
    """How many masks ``name`` left, and how much the worst of a sample differs from ours.

    Fills ``ours`` with the sample where they are ours.
    """
    number, shares = 0, []
    for image, mask in importlib.import_module(f"benchmarks.peers.{name}").masks(task.output):
        if name == OURS and number % max(1, task.num_images // SAMPLE) == 0:
            ours[image] = mask
        elif image in ours:
            same = mask.shape == ours[image].shape
            shares.append(float((mask != ours[image]).mean()) if same else 1.0)
        number += 1
    return number, max(shares, default=None)


def python_for(name: str) -> list[str]:
    """The Python that runs a contender; Daft's has Daft."""
    if name != "daft_udf":
        return [sys.executable]
    uv = Path(sys.executable).with_name("uv")
    overlay = ["--no-project", "--python", sys.executable, "--with", f"daft=={daft_udf.VERSION}"]
    return [str(uv), "run", "--quiet", *overlay, "python"]


@contextlib.contextmanager
def collection(
    source: str | None, side: int, number: int, *, local: bool
) -> Iterator[tuple[str, int, int | None]]:
    """Where the images are, how many, and the S3 server that has them, if it is not this disk.

    ``source`` is a folder of photographs; without one, they are generated.
    """
    with contextlib.ExitStack() as stack:
        server = None
        if local:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-images-"))
            prefix = f"{folder}/images/"
        else:
            before = set(children(os.getpid()))
            os.environ.update(stack.enter_context(s3_server()))
            [server] = set(children(os.getpid())) - before
            storage.filesystem("s3://bench")[0].mkdir("bench")
            prefix = "s3://bench/images/"
        if source is None:
            uris = photographs.put(prefix, side, number)
        else:
            uris = photographs.copied(source, prefix, number)
        yield prefix, len(uris), server


def _line(outcome: Outcome) -> str:
    if outcome.error:
        return f"failed: {outcome.error}"
    line = f"{outcome.wall_s:.1f} s"
    if outcome.corrected is not None:
        line += f", {outcome.corrected:.2f} images/s"
    if outcome.masks is not None:
        line += f", {outcome.masks} masks"
    if outcome.differing is not None:
        line += f", at most {outcome.differing:.2%} of a mask's pixels differ from ours"
        line += " (MORE THAN TIES)" if outcome.differing > TIES else ""
    return line
