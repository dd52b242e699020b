"""The same faults for segbatch and for others: Ray Data, Daft, a plain script, each as it resumes.

Each is a program in benchmarks/peers, written by its own documentation, and is started again by the
same command until it ends well. What it wrote is then read back by its own reader.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.bench import Bench
from benchmarks.faults.nodes import Nodes, OneNode
from benchmarks.faults.storage import BURST_S, EVERYWHERE
from benchmarks.peers import daft_udf
from benchmarks.peers.task import Task
from benchmarks.programs import kill, program
from segbatch import storage
from tests import poison
from tests.collection import jpeg
from tests.proxy import REQUESTS

ROOT = Path(__file__).parents[2]
CONTENDERS = {
    "segbatch_again": "segbatch",
    "ray_checkpoint": "Ray Data, CheckpointConfig",
    "daft_checkpoint": "Daft, CheckpointStore",
    "pytorch_skip": "PyTorch, skip what exists",
}
ABOUT = (
    "Each program is in [peers/](peers), written by its own documentation, and is started again by"
    " the same command until it ends well, five times at most. `lost` images have no result,"
    " `twice` have several, `wrong` have a mask that is not the undisturbed run's, or none that can"
    " be read. `read again` counts reads of images beyond those of the undisturbed run. `extra s`"
    " is against the undisturbed run of the same program, whose row shows its seconds."
)
MIDDLE = 0.7  # of the time of an undisturbed run: programs start in the first half
LOOK_S = 0.2
LOST_NODE = "the node of its workers is lost, another joins"
POISON = "an image that kills its process"
MAX_STARTS = 5
ENDLESS = -1000  # instead of the exit code of a program that was stopped
KILLS = 3
LIMIT_S = 120.0  # of one start, several times what one takes; then it is taken for endless
SAME = 0.999  # share of a mask's pixels; convolutions round differently in other batches

Process = subprocess.Popen[bytes]
Damage = Callable[[Process], None]


@dataclass(frozen=True)
class PeerRow:
    """One line of the table. ``extra_s`` is against the undisturbed run of the same program."""

    peer: str
    fault: str
    images: int
    lost: int
    twice: int
    wrong: int
    read_again: int
    extra_s: float
    by_hand: str


class Contender:
    """One of the programs, which is broken over and over; ``started`` ends what still runs."""

    def __init__(self, bench: Bench, name: str, folder: Path, started: ExitStack) -> None:
        self.bench, self.name, self.folder, self.started = bench, name, folder, started
        self.count = 0
        self.address = "local"  # a Ray of its own, even if another one runs on this machine
        self.undisturbed_s = 0.0
        self.read = 0
        self.expected: dict[str, Any] = {}

    def rows(self, only: str | None = None) -> Iterator[PeerRow]:
        """A row a fault; with ``only``, that of one fault, for which an undisturbed run is made."""
        faults = self.faults()
        if only is not None and only not in faults:
            return
        undisturbed = self.undisturbed()
        if only is None:
            yield undisturbed
        for fault, broken in faults.items():
            if only in (None, fault):
                yield broken(fault)

    def faults(self) -> dict[str, Callable[[str], PeerRow]]:
        burst = EVERYWHERE["503 SlowDown"] | {"between": BURST_S}
        resets = EVERYWHERE["connection reset"] | {"rate": 0.2}
        found = {
            "driver killed -9, 3 times":
                lambda name: self.row(name, [], _Kill(self.undisturbed_s, KILLS)),
            "a worker killed -9":
                lambda name: self.row(name, [], _Once(self.is_in_the_middle(), _kill_worker)),
            LOST_NODE: self.lost_node,
            "S3 answers 503 for a minute": lambda name: self.row(name, [burst], _nothing),
            "20 % of requests are reset": lambda name: self.row(name, [resets], _nothing),
            POISON: lambda name: self.row(name, [], _nothing, prefix="poison"),
            "two drivers at once": self.two_at_once,
        }  # fmt: skip
        if not self.module.ON_RAY:
            del found[LOST_NODE]
        return found

    def undisturbed(self) -> PeerRow:
        self.row("none", [], _nothing)  # what is done once, such as installing, is not counted
        row = self.row("none", [], _nothing)
        self.undisturbed_s, self.read = row.extra_s, row.read_again + self.bench.num_images
        output = self.folder / f"{self.name}-{self.count}"
        self.expected = dict(self.module.masks(str(output)))
        return replace(row, read_again=0)

    @property
    def module(self) -> Any:
        return import_module(f"benchmarks.peers.{self.name}")

    def row(
        self, fault: str, faults: list[dict[str, Any]], damage: Damage, *, prefix: str = "images"
    ) -> PeerRow:
        """Start the program, damage it, and start it again until it ends well."""
        task = self.task(prefix)
        self.bench.set_faults(faults)
        began = time.perf_counter()
        starts, ended, said = 0, -1, ""
        while ended != 0 and starts < MAX_STARTS:
            starts += 1
            process = self.start(task)
            damage(process)
            ended = _wait(process)
            if ended == ENDLESS:
                by_hand = f"it does not end: stopped after {LIMIT_S:.0f} s"
                return self.judged(fault, task, time.perf_counter() - began, by_hand)
            if ended != 0:
                said = _last_line(Path(f"{task.output}.log"))
                print(f"{self.name}, {fault}: start {starts} ends with {ended}: {said}", flush=True)
        by_hand = "nothing" if starts == 1 else f"start it again, {_times(starts - 1)}"
        if ended != 0:
            by_hand = f"does not end well: {said[:120]}"
        return self.judged(fault, task, time.perf_counter() - began, by_hand)

    def lost_node(self, fault: str) -> PeerRow:
        """On a Ray whose head only has the driver, and whose other node is killed."""
        # Ray's workers run this process's Python, which has no Daft.
        where = "import os, sys; print(os.pathsep.join(path for path in sys.path if path))"
        paths = subprocess.check_output([*_python(self.name), "-c", where], text=True).strip()
        with Nodes(paths) as nodes:
            node = OneNode(nodes)
            self.address = node.address
            try:
                # Not after some time: the program that finds a Ray has started sooner than others.
                half = self.bench.num_images // 2
                losing = _Once(lambda: self.images_read() >= half, lambda _: node.lose())
                return self.row(fault, [], losing)
            finally:
                self.address = "local"

    def two_at_once(self, fault: str) -> PeerRow:
        task = self.task("images")
        self.bench.set_faults([])
        began = time.perf_counter()
        codes = [_wait(process) for process in [self.start(task), self.start(task)]]
        by_hand = "nothing" if codes == [0, 0] else f"one ends with {max(codes, key=abs)}"
        if 0 not in codes and _wait(self.start(task)) == 0:
            by_hand = "both fail: start it again"
        return self.judged(fault, task, time.perf_counter() - began, by_hand)

    def task(self, prefix: str) -> Task:
        self.count += 1
        output = self.folder / f"{self.name}-{self.count}"
        return Task(
            images=f"{self.bench.root}/{prefix}/",
            num_images=self.bench.num_images,
            output=str(output),
            progress=f"{output}.progress",
            model=self.bench.model,
            device="cpu",
            precision="fp32",
            workers=1,
            threads=2,
            batch_size=8,
            rows_per_file=32,
        )

    def start(self, task: Task) -> Process:
        file = Path(f"{task.output}.json")
        task.save(file)
        command = [*_python(self.name), "-m", f"benchmarks.peers.{self.name}", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": self.address}
        with Path(f"{task.output}.log").open("ab") as log:
            return self.started.enter_context(
                program(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
            )

    def is_in_the_middle(self) -> Callable[[], bool]:
        """Whether the time has come in which an undisturbed run is at work, from now on."""
        due = time.monotonic() + self.undisturbed_s * MIDDLE
        return lambda: time.monotonic() >= due

    def images_read(self) -> int:
        """Reads of images since the faults were set."""
        with urllib.request.urlopen(self.bench.proxy + REQUESTS) as answer:
            return sum(
                n
                for method, path, n in json.load(answer)
                if path.endswith(".jpg") and method == "GET"
            )

    def judged(self, fault: str, task: Task, seconds: float, by_hand: str) -> PeerRow:
        read = self.images_read()
        self.bench.set_faults([])
        seen: Counter[str] = Counter()
        wrong = 0
        try:
            for name, mask in self.module.masks(task.output):
                seen[name] += 1
                expected = self.expected.get(name)
                if expected is not None and (
                    expected.shape != mask.shape or (expected == mask).mean() < SAME
                ):
                    wrong += 1
        except (OSError, ValueError, SyntaxError) as error:  # half a file, which its reader refuses
            by_hand += f"; its output cannot be read: {type(error).__name__}"
            wrong += 1
        images = self.bench.num_images
        lost = images - len(seen)
        if fault == POISON and f"{self.bench.num_images // 2:04d}.jpg" not in seen:
            lost -= 1  # the image itself, of which nobody can have a mask
        again = read - (self.read or self.bench.num_images)
        return PeerRow(
            CONTENDERS[self.name], fault, images, lost, sum(seen.values()) - len(seen),
            wrong, max(0, again), round(seconds - self.undisturbed_s, 1), by_hand,
        )  # fmt: skip


def rows(bench: Bench, folder: Path, only: str | None = None) -> Iterator[PeerRow]:
    """All faults, or ``only`` one, for all programs; what they write goes into ``folder``."""
    for number in range(bench.num_images):
        harm = poison.KILL if number == bench.num_images // 2 else b""
        data = jpeg(number, 192, 256, harm)
        storage.write_bytes(f"{bench.root}/poison/{number:04d}.jpg", data)
    for name in CONTENDERS:
        with ExitStack() as started:
            yield from Contender(bench, name, folder, started).rows(only)


def _python(name: str) -> list[str]:
    if not name.startswith("daft"):
        return [sys.executable]
    uv = str(Path(sys.executable).with_name("uv"))
    return [uv, "run", "--quiet", "--no-project", "--python", sys.executable,
            "--with", f"daft=={daft_udf.VERSION}", "python"]  # fmt: skip


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _wait(process: Process) -> int:
    """The exit code of a process; ``ENDLESS`` if it was killed after ``LIMIT_S``."""
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        kill(process)
        return ENDLESS


def _nothing(process: Process) -> None:
    pass


class _Kill:
    """Kills the driver in the middle of its work, as often as it may."""

    def __init__(self, seconds: float, times: int) -> None:
        self.seconds, self.times = seconds * MIDDLE, times

    def __call__(self, process: Process) -> None:
        if self.times:
            self.times -= 1
            try:
                process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                if Path(process.args[0]).name == "uv":  # type: ignore[index,arg-type]
                    for child in psutil.Process(process.pid).children():  # the program itself
                        child.kill()
                process.kill()


class _Once:
    """Does harm once, as soon as ``is_due``."""

    def __init__(self, is_due: Callable[[], bool], harm: Damage) -> None:
        self.is_due, self.harm = is_due, harm
        self.done = False

    def __call__(self, process: Process) -> None:
        while not self.done and process.poll() is None:
            time.sleep(LOOK_S)
            if self.is_due():
                self.done = True
                self.harm(process)


def _kill_worker(process: Process) -> None:
    """Kill the process that computes most, other than the driver."""
    names: dict[psutil.Process, str] = {}
    for child in _descendants(process):
        with suppress(psutil.Error):
            names[child] = child.cmdline()[0] if child.cmdline() else child.name()
    # Not the agents of a node: it dies with them.
    workers = [
        child
        for child, name in names.items()
        if name.startswith("ray::") and "Agent" not in name and "IDLE" not in name
    ]
    workers = workers or [child for child, name in names.items() if "python" in name]
    with suppress(psutil.Error, ValueError):
        max(workers, key=lambda child: child.cpu_times().user).kill()


def _descendants(process: Process) -> list[psutil.Process]:
    try:
        return [c for c in psutil.Process(process.pid).children(recursive=True) if c.is_running()]
    except psutil.NoSuchProcess:
        return []


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def table(entries: list[PeerRow]) -> str:
    """The rows as Markdown."""
    names = [name.replace("_", " ") for name in asdict(entries[0])]
    lines = [" | ".join(str(value) for value in asdict(entry).values()) for entry in entries]
    return "\n".join(
        f"| {line} |" for line in [" | ".join(names), " | ".join("---" for _ in names), *lines]
    )
