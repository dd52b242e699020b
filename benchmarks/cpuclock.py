"""CPU seconds while something is measured: of the S3 server, and of the whole machine.

A server on the same cores takes time that an S3 of one's own would not; what it took within a
window is known here, and can be taken off.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

EVERY_S = 0.25
TICKS = os.sysconf("SC_CLK_TCK")


class CpuClock:
    """Looks at ``/proc`` all the time between ``with`` and its end."""

    def __init__(self, server: int | None) -> None:
        self.server = server  # a process, or none
        self.samples: list[tuple[float, float, float]] = []  # time, server's seconds, idle seconds
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join()

    def cores(self, begin: float, end: float) -> tuple[float, float]:
        """How many cores the server took in that window of ``time.time()``, and how many idled."""
        times, server, idle = np.array(self.samples).T
        window = [begin, end]
        taken = np.diff(np.interp(window, times, server)) / (end - begin)
        idled = np.diff(np.interp(window, times, idle)) / (end - begin)
        return float(taken[0]), float(idled[0])

    def _look(self) -> None:
        while True:
            taken = 0.0 if self.server is None else cpu_seconds(self.server)
            self.samples.append((time.time(), taken, idle_seconds()))
            if self.stop.wait(EVERY_S):
                return


def cpu_seconds(process: int) -> float:
    """Of a process with all its threads, and of its children."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime, 14th and 15th of all
    return own + sum(cpu_seconds(child) for child in children(process))


def idle_seconds() -> float:
    """Of all cores together, since the machine started."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / TICKS  # idle, and waiting for disks


def children(process: int) -> list[int]:
    """The processes that ``process`` started and that are still there."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in lists for child in file.read_text().split()]
