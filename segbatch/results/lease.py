"""The lease of a run: an advisory lock that tells a second driver early that the run is in use.

The lease is a courtesy: what keeps two drivers apart is the Delta log
(:mod:`segbatch.results.table`). ``lease.json`` names its holder and counts heartbeats. Nothing here
relies on synchronised clocks or on conditional writes. A holder is alive if its heartbeat advances
while we watch. It is dead if its heartbeat stood still for ``DEAD_AFTER_S``, or at once if it was a
process of this host that no longer runs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbatch import signals, storage
from segbatch.errors import Fenced, LeaseHeld

HEARTBEAT_S = 10.0
DEAD_AFTER_S = 90.0
LARGEST = 1 << 40  # of times and process ids; a lease with a larger number is damaged
SETTLE_S = 0.5  # of two drivers that take a free lease at once, the one that wrote last has it then


class Lease:
    """This driver's lease on a run, renewed by a thread until it is released."""

    def __init__(self, run_uri: str, say: Callable[[str], None]) -> None:
        self.run_uri = run_uri
        self.worker_lease = WorkerLease(run_uri, uuid.uuid4().hex)
        self.lost: Fenced | None = None
        self._say = say
        self._beat = 0
        self._since = time.time()
        self._stopping = self._over = False
        self._beat_now = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="lease")

    @property
    def driver(self) -> str:
        return self.worker_lease.driver

    def __enter__(self) -> Lease:
        self._wait_for_holder()
        self._write()
        time.sleep(SETTLE_S)
        try:
            self.confirm()
        except Fenced as error:
            raise LeaseHeld(str(error)) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._beat_now.set()
        self._thread.join(timeout=30)
        if self.lost is None:
            with suppress(OSError, Fenced):
                self.confirm()
                storage.delete([lease_uri(self.run_uri)])

    def check(self) -> None:
        """Raise ``Fenced`` if the last heartbeat found another driver's lease; reads nothing."""
        if self.lost is not None:
            raise self.lost

    def confirm(self) -> None:
        """Read the lease, and raise ``Fenced`` unless it is ours."""
        self.worker_lease.check()

    def announce_stop(self) -> None:
        """Tell workers at once to finish their current work and to begin nothing new."""
        self._stopping = True
        self._beat_now.set()

    def _wait_for_holder(self) -> None:
        """Return once nobody holds the run. Raises ``LeaseHeld`` if its holder is alive."""
        seen = read_lease(self.run_uri)
        if seen is None:
            return
        if _on_this_host(seen):
            if not _process_runs(seen):
                return
            age_s = heartbeat_age_s(seen)
            if age_s is not None and age_s < DEAD_AFTER_S:
                raise LeaseHeld(f"{self.run_uri}: {_holder(seen)} is working on it")
        self._say(f"waiting for the heartbeat of {_holder(seen)}, at most {DEAD_AFTER_S:.0f} s")
        deadline = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            signals.check()
            lease = read_lease(self.run_uri)
            if lease is None:
                return
            if (lease.get("driver"), lease.get("beat")) != (seen.get("driver"), seen.get("beat")):
                raise LeaseHeld(f"{self.run_uri}: {_holder(lease)} is working on it")

    def _keep_alive(self) -> None:
        while True:
            self._beat_now.wait(HEARTBEAT_S)
            self._beat_now.clear()
            if self._over:
                return
            try:
                self.confirm()
                self._write()
            except Fenced as error:
                self.lost = error
                return
            except OSError:
                continue  # an outage of the storage: the next heartbeat may succeed

    def _write(self) -> None:
        self._beat += 1
        lease = {
            "driver": self.driver,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "since": self._since,
            "beat": self._beat,
            "heartbeat": time.time(),
            "command": Path(sys.argv[0]).name,
            **({"stopping": True} if self._stopping else {}),
        }
        storage.write_bytes(lease_uri(self.run_uri), json.dumps(lease).encode())


@dataclass(frozen=True)
class WorkerLease:
    """The lease as workers check it: the run, and the driver that they work for. Picklable."""

    run_uri: str
    driver: str

    def check(self) -> None:
        """Raise ``Fenced`` unless the lease names the driver; each write task asks."""
        lease = read_lease(self.run_uri)
        if lease is None:
            raise Fenced(f"{self.run_uri}: its lease was given up")
        if lease.get("driver") != self.driver:
            raise Fenced(f"{self.run_uri}: taken over by {_holder(lease)}")

    def should_stop(self) -> bool:
        """Whether to begin nothing new: the driver is stopping, or no longer holds the lease."""
        try:
            lease = read_lease(self.run_uri)
        except OSError:
            return False  # an outage of the storage does not answer the question
        return lease is None or lease.get("driver") != self.driver or "stopping" in lease


def lease_uri(run_uri: str) -> str:
    return storage.join(run_uri, "lease.json")


def read_lease(run_uri: str) -> dict[str, Any] | None:
    """The content of the lease; ``None`` if there is no lease. Raises ``OSError``.

    A damaged lease reads as one of an unknown holder without heartbeats, so it expires.
    """
    try:
        lease = json.loads(storage.read_bytes(lease_uri(run_uri)))
        numbers = [lease.get(key, 0) for key in ("pid", "since", "heartbeat")]
        if all(0 <= number < LARGEST for number in numbers):
            return dict(lease)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        pass
    return {"driver": "unknown", "beat": -1}


def heartbeat_age_s(lease: dict[str, Any]) -> float | None:
    """Seconds since the last heartbeat, by our clock and the holder's; ``None`` if unknown."""
    heartbeat = lease.get("heartbeat")
    return time.time() - heartbeat if isinstance(heartbeat, int | float) else None


def holder_is_alive(lease: dict[str, Any]) -> bool | None:
    """Whether the holder is at work, as far as one reading shows; ``None`` if it does not.

    On this host, its process runs or not. Elsewhere its heartbeat is recent, if the two clocks
    agree; a heartbeat far in the future shows that they do not.
    """
    age_s = heartbeat_age_s(lease)
    if age_s is None:
        return None
    if _on_this_host(lease):
        return _process_runs(lease)
    return None if age_s < -DEAD_AFTER_S else age_s < DEAD_AFTER_S


def _holder(lease: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(lease.get("since", 0)))
    return f"process {lease.get('pid')} on {lease.get('host')}, since {since} UTC"


def _on_this_host(lease: dict[str, Any]) -> bool:
    return lease.get("host") == socket.gethostname() and lease.get("boot") == _boot_id()


def _process_runs(lease: dict[str, Any]) -> bool:
    start = _process_start(int(lease.get("pid", -1)))
    return start is not None and start == lease.get("process_start")


def _boot_id() -> str:
    """Identifies this boot and container of the host; ``""`` on systems other than Linux."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return ""


def _process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; ``None`` if it is not running.

    It tells a process from a later one with the same pid. psutil offers the time of day instead,
    which moves when the clock is set: a living holder would then look dead.
    """
    try:
        # The second field, the command's name in brackets, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc").is_dir() else _process_start_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _process_start_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
