"""Drivers: segbatch in processes of their own, as users start it.

They are forked from one process that has imported torch and Ray already, which takes 8 seconds.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["segbatch.jobs.segment", "segbatch.cli.main"])


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


def _command(arguments: list[str], environment: dict[str, str], folder: str, eager: bool) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        opened = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
    if eager:  # what was written is committed at once: a small run has several commits
        from segbatch.results import ledger

        ledger.COMMIT_EVERY_S = 0.0
    from segbatch.cli.main import main

    sys.argv = ["segbatch", *arguments]
    main()


def _start(
    arguments: list[str], environment: dict[str, str], folder: str, eager: bool
) -> BaseProcess:
    process = FORKS.Process(
        target=_command, args=(arguments, {**os.environ, **environment}, folder, eager)
    )
    process.start()
    return process


def cli(*arguments: str, timeout: float = 60, **environment: str) -> Ended:
    """``segbatch …`` to its end."""
    with TemporaryDirectory() as folder:
        process = _start(list(arguments), environment, folder, False)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
        process.join()
        texts = [(Path(folder) / f"{name}.txt").read_text() for name in ("stdout", "stderr")]
        assert process.exitcode is not None
        return Ended(process.exitcode, *texts)


@contextmanager
def driver(
    work: dict[str, Any], folder: Path, address: str, *options: str
) -> Iterator[BaseProcess]:
    """A driver that works on a job; killed at the end, if it is still there."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(work))
    (folder / "stderr.txt").write_text("")  # of the driver before
    process = _start(["run", str(file), *options], {"RAY_ADDRESS": address}, str(folder), True)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def exit_code(process: BaseProcess, seconds: float = 60) -> int | None:
    """What a driver ends with; ``None`` if it does not in time, negative for a signal."""
    process.join(seconds)
    return process.exitcode


def workers_named(name: str, server: str) -> list[int]:
    """Process ids of Ray's workers that are called so; of the tests' own Ray, which alone has the
    address of our S3 server in its environment.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = name.encode() in (folder / "cmdline").read_bytes()
            if named and server.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until(
    condition: Callable[[], Any], process: BaseProcess | None = None, seconds: float = 120
) -> None:
    """Poll until ``condition`` holds, while ``process`` lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        assert process is None or process.is_alive(), "it ended before"
        time.sleep(0.005)
