"""Lease: who works on a run, said early and kindly. What keeps two drivers apart is the log.

``lease.json`` names its holder and counts heartbeats. Nothing here relies on clocks that agree or
on conditional writes: a holder is alive if its heartbeat moves while we watch, and dead if it has
not moved for ``DEAD_AFTER_S``, or at once if it ran on this very host and its process is gone.
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
LARGEST = 1 << 40  # of a lease's numbers: times and process ids; beyond, it is damaged
SETTLE_S = 0.5  # of two that take a free lease at once, the one that wrote last has it then


def lease_uri(run_uri: str) -> str:
    return storage.join(run_uri, "lease.json")


def read_lease(run_uri: str) -> dict[str, Any] | None:
    """The lease as it stands, or ``None``. Raises ``OSError`` if that cannot be told.

    A damaged one is a holder without a heartbeat: it blocks nobody for ever.
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


@dataclass(frozen=True)
class Tenure:
    """What workers know of the driver they work for; it travels to them."""

    run_uri: str
    driver: str

    def check(self) -> None:
        """Raises ``Fenced`` unless the lease names the driver; asked by each write task."""
        lease = read_lease(self.run_uri)
        if lease is None:
            raise Fenced(f"{self.run_uri}: its lease was given up")
        if lease.get("driver") != self.driver:
            raise Fenced(f"{self.run_uri}: taken over by {_holder(lease)}")

    def ends(self) -> bool:
        """Whether nothing new should be begun: the driver stops, is gone, or is another one."""
        try:
            lease = read_lease(self.run_uri)
        except OSError:
            return False  # an outage, which is no answer
        return lease is None or lease.get("driver") != self.driver or "stopping" in lease


class Lease:
    """This driver's hold on a run, kept alive by a thread until it is released."""

    def __init__(self, run_uri: str, say: Callable[[str], None]) -> None:
        self.run_uri = run_uri
        self.tenure = Tenure(run_uri, uuid.uuid4().hex)
        self.lost: Fenced | None = None
        self._say = say
        self._beat = 0
        self._since = time.time()
        self._stopping = self._over = False
        self._beat_now = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="lease")

    @property
    def driver(self) -> str:
        return self.tenure.driver

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
        """Raises ``Fenced`` once another driver was seen to hold the lease."""
        if self.lost is not None:
            raise self.lost

    def confirm(self) -> None:
        """Raises ``Fenced`` unless the lease on storage is ours: before what only one may do."""
        self.tenure.check()

    def announce_stop(self) -> None:
        """Have workers finish what they are at, and begin nothing new; with the next heartbeat,
        which is at once.
        """
        self._stopping = True
        self._beat_now.set()

    def _wait_for_holder(self) -> None:
        """Return when nobody holds the run. Raises ``LeaseHeld`` when the holder is alive."""
        seen = read_lease(self.run_uri)
        if seen is None or _gone(seen):
            return
        if _alive(seen):
            raise LeaseHeld(f"{self.run_uri}: {_holder(seen)} works on it")
        self._say(f"waiting for the heartbeat of {_holder(seen)}, {DEAD_AFTER_S:.0f} s at most")
        deadline = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            signals.check()
            lease = read_lease(self.run_uri)
            if lease is None:
                return
            if (lease.get("driver"), lease.get("beat")) != (seen.get("driver"), seen.get("beat")):
                raise LeaseHeld(f"{self.run_uri}: {_holder(lease)} works on it")

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
                continue  # an outage of the storage: the next beat may come through

    def _write(self) -> None:
        self._beat += 1
        content = json.dumps(self._content()).encode()
        storage.write_bytes(lease_uri(self.run_uri), content)

    def _content(self) -> dict[str, Any]:
        return {
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


def heartbeat_age_s(lease: dict[str, Any]) -> float | None:
    """Seconds since the last heartbeat, by our clock and the holder's; ``None`` if unreadable."""
    heartbeat = lease.get("heartbeat")
    return time.time() - heartbeat if isinstance(heartbeat, int | float) else None


def alive(lease: dict[str, Any]) -> bool | None:
    """Whether the holder is at work, as far as one look tells; ``None`` where it does not.

    On this host its process is there or not. Elsewhere its heartbeat is fresh, if the two clocks
    agree; one from the future says that they do not.
    """
    age_s = heartbeat_age_s(lease)
    if age_s is None:
        return None
    if _here(lease):
        return _running(lease)
    return None if age_s < -DEAD_AFTER_S else age_s < DEAD_AFTER_S


def _holder(lease: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(lease.get("since", 0)))
    return f"process {lease.get('pid')} on {lease.get('host')}, since {since} UTC"


def _here(lease: dict[str, Any]) -> bool:
    return lease.get("host") == socket.gethostname() and lease.get("boot") == _boot_id()


def _running(lease: dict[str, Any]) -> bool:
    start = _process_start(int(lease.get("pid", -1)))
    return start is not None and start == lease.get("process_start")


def _alive(lease: dict[str, Any]) -> bool:
    """Certainly alive: its process runs on this host, by whose clock its heartbeat is fresh."""
    age = time.time() - float(lease.get("heartbeat", 0))
    return _here(lease) and _running(lease) and age < DEAD_AFTER_S


def _gone(lease: dict[str, Any]) -> bool:
    """Certainly gone: it ran on this host, and its process is not there any more."""
    return _here(lease) and not _running(lease)


def _boot_id() -> str:
    """Tells containers and reboots of one host name apart; ``""`` where Linux does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return ""


def _process_start(pid: int) -> str | None:
    """When a process began, in ticks since boot, so that a pid used anew is another process."""
    try:
        # The command's name in brackets may hold anything: count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _process_start_elsewhere(pid)
    return None if fields[0] == "Z" else fields[19]


def _process_start_elsewhere(pid: int) -> str | None:
    if Path("/proc").is_dir():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
