"""Nodes: the servers of a cluster on this machine, known by process id and birth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segbatch.errors import InputError
from segbatch.jobs.runtime.sharing import IDLE_WORKERS

FOLDER = Path("cluster")
HOST = "127.0.0.1"
NODE_CPUS = 4  # as on a small machine: a predict worker of three threads, and what feeds it
STORE_BYTES = 200_000_000
START_S = 90.0
END_S = 15.0

RAY_START = (
    "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-gpus=0",
    f"--object-store-memory={STORE_BYTES}", "--dashboard-agent-listen-port=0",
)  # fmt: skip


@dataclass(frozen=True)
class Process:
    """A server that was started here. ``born`` tells it from a later one with its process id."""

    name: str
    pid: int
    born: str

    @classmethod
    def start(cls, name: str, command: list[str], environment: dict[str, str]) -> Process:
        """Start it in a session of its own; what it says goes to a file named after it."""
        with (FOLDER / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return cls(name, process.pid, _born(process.pid))

    @property
    def alive(self) -> bool:
        return bool(self.born) and _born(self.pid) == self.born

    def end(self) -> None:
        """Ask it to end, and what it started with it; insist after a while."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            wait(lambda: not self.alive, END_S)
        self.kill()

    def kill(self) -> None:
        """As when a machine is switched off."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            wait(lambda: not self.alive, END_S)


@dataclass
class State:
    """What is up: ports, the folder of Ray's sockets, processes."""

    dashboard: int
    gcs: int
    s3: int
    temp: str
    token: bool
    processes: list[Process]

    @classmethod
    def read(cls) -> State:
        """Raises :class:`~segbatch.errors.InputError` where nothing is up."""
        try:
            facts = json.loads((FOLDER / "state.json").read_text())
        except FileNotFoundError:
            raise InputError("no cluster is up; start one with: scripts/cluster up") from None
        return cls(**{**facts, "processes": [Process(**entry) for entry in facts["processes"]]})

    def write(self) -> None:
        (FOLDER / "state.json").write_text(json.dumps(asdict(self), indent=2))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.dashboard}"

    @property
    def nodes(self) -> dict[int, Process]:
        return {
            int(process.name.removeprefix("node-")): process
            for process in self.processes
            if process.name.startswith("node-")
        }

    def exports(self) -> dict[str, str]:
        """The variables that lead a shell here."""
        auth = {"RAY_AUTH_MODE": "disabled"}
        if self.token:
            auth = {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str((FOLDER / "token").absolute()),
            }
        return {
            "RAY_API_SERVER_ADDRESS": self.url,
            **auth,
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.s3}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def environment(self) -> dict[str, str]:
        """Of every server: Ray's workers, and so the jobs, have it from their node."""
        programs = str(Path(sys.executable).parent)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_"))
        }
        exports = self.exports()
        del exports["RAY_API_SERVER_ADDRESS"]  # a driver there finds its own cluster
        return {
            **kept,
            **exports,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            **IDLE_WORKERS,
        }

    def start(self, name: str, *command: str) -> None:
        """Start a server and note it at once."""
        program = [sys.executable, "-m", *command]
        self.processes.append(Process.start(name, program, self.environment()))
        self.write()

    def start_s3(self) -> None:
        self.start("s3", "moto.server", "-H", HOST, "-p", str(self.s3))

    def start_head(self) -> None:
        self.start(
            "head", *RAY_START, "--head", f"--node-ip-address={HOST}", f"--port={self.gcs}",
            f"--dashboard-host={HOST}", f"--dashboard-port={self.dashboard}",
            f"--temp-dir={self.temp}", "--num-cpus=0",
        )  # fmt: skip

    def start_node(self) -> int:
        """One more node; returns its number."""
        number = max(self.nodes, default=0) + 1
        # Linux answers on all of 127.0.0.0/8; elsewhere nodes share an address.
        address = f"127.0.0.{number + 1}" if sys.platform == "linux" else HOST
        self.start(
            f"node-{number}", *RAY_START, f"--address={HOST}:{self.gcs}",
            f"--node-ip-address={address}", f"--num-cpus={NODE_CPUS}",
        )  # fmt: skip
        return number

    def forget_lost(self) -> None:
        """Nodes that have ended by themselves, such as one that could not start."""
        lost = [node for node in self.nodes.values() if not node.alive]
        self.processes = [process for process in self.processes if process not in lost]

    def started(self) -> None:
        """Wait until head and S3 server answer and every node has joined: one that starts takes
        ports that another would have found free.

        Raises :class:`~segbatch.errors.InputError` where something has ended instead.
        """
        ready = [
            partial(answers, self.url),
            partial(answers, f"http://{HOST}:{self.s3}"),
            *(partial(joined, node) for node in self.nodes.values()),
        ]
        for check in ready:
            self.until(check)
            if not check():
                ended = [process.name for process in self.processes if not process.alive]
                raise InputError(
                    f"{', '.join(ended) or 'the cluster'} did not start: see {FOLDER}/*.log"
                )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition`` while everything lives, and not for ever."""
        wait(lambda: condition() or not self.whole, START_S)

    @property
    def whole(self) -> bool:
        return all(process.alive for process in self.processes)


def _born(pid: int) -> str:
    """When a process was started; empty where there is none, or only its corpse."""
    told = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], check=False, capture_output=True, text=True
    ).stdout.split(maxsplit=1)
    return "" if not told or told[0].startswith("Z") else told[1].strip()


def joined(node: Process) -> bool:
    return "Ray runtime started" in (FOLDER / f"{node.name}.log").read_text()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False
    return True


def wait(condition: Callable[[], Any], seconds: float) -> None:
    """Poll until ``condition`` holds, or for so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
