"""Programs that a benchmark starts, and ends with all their processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil


@contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in a process group of its own, which is killed if the block ends before it.

    ``options`` are those of ``subprocess.Popen``. Ctrl-C reaches the benchmark alone, whose blocks
    end with it.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a program with all that it started, unless it has ended."""
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in started:  # those of Ray have groups of their own
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
