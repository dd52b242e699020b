"""The servers of a Ray cluster on this machine: a head, nodes and an S3 server.

Each server is a process that outlives the command that started it. ``cluster/state.json`` lists
them, and later commands recognise each by its process id and start time.
"""

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

from segbatch.demo.s3server import s3_variables
from segbatch.errors import InputError
from segbatch.jobs.runtime.sharing import IDLE_WORKERS

FOLDER = Path("cluster")
HOST = "127.0.0.1"
NODE_CPUS = 4  # as on a small machine: a predict worker of three threads and its read stages
STORE_BYTES = 200_000_000
START_S = 90.0
END_S = 15.0

RAY_START = (
    "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-gpus=0",
    f"--object-store-memory={STORE_BYTES}", "--dashboard-agent-listen-port=0",
)  # fmt: skip


@dataclass
class LocalCluster:
    """The state of the cluster: ports, the folder of Ray's sockets, processes."""

    dashboard: int
    gcs: int
    s3: int
    temp: str
    token: bool
    processes: list[ServerProcess]

    @classmethod
    def read(cls) -> LocalCluster:
        """Raises :class:`~segbatch.errors.InputError` if no cluster is up."""
        try:
            facts = json.loads((FOLDER / "state.json").read_text())
        except FileNotFoundError:
            raise InputError("no cluster is up; start one with: scripts/cluster up") from None
        processes = [ServerProcess(**entry) for entry in facts["processes"]]
        return cls(**{**facts, "processes": processes})

    def write(self) -> None:
        (FOLDER / "state.json").write_text(json.dumps(asdict(self), indent=2))

    @property
    def url(self) -> str:
        """The address of the dashboard and the Jobs API."""
        return f"http://{HOST}:{self.dashboard}"

    @property
    def nodes(self) -> dict[int, ServerProcess]:
        """The processes of the nodes other than the head, by number."""
        return {
            int(process.name.removeprefix("node-")): process
            for process in self.processes
            if process.name.startswith("node-")
        }

    @property
    def all_alive(self) -> bool:
        return all(process.alive for process in self.processes)

    def exports(self) -> dict[str, str]:
        """The environment variables with which a shell uses this cluster."""
        auth = {"RAY_AUTH_MODE": "disabled"}
        if self.token:
            auth = {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str((FOLDER / "token").absolute()),
            }
        return {
            "RAY_API_SERVER_ADDRESS": self.url,
            **auth,
            **s3_variables(f"http://{HOST}:{self.s3}"),
        }

    def start_s3(self) -> None:
        self._start("s3", "moto.server", "-H", HOST, "-p", str(self.s3))

    def start_head(self) -> None:
        self._start(
            "head", *RAY_START, "--head", f"--node-ip-address={HOST}", f"--port={self.gcs}",
            f"--dashboard-host={HOST}", f"--dashboard-port={self.dashboard}",
            f"--temp-dir={self.temp}", "--num-cpus=0",
        )  # fmt: skip

    def start_node(self) -> int:
        """Start one more node; returns its number."""
        number = max(self.nodes, default=0) + 1
        # Linux answers on all of 127.0.0.0/8; elsewhere nodes share an address.
        address = f"127.0.0.{number + 1}" if sys.platform == "linux" else HOST
        self._start(
            f"node-{number}", *RAY_START, f"--address={HOST}:{self.gcs}",
            f"--node-ip-address={address}", f"--num-cpus={NODE_CPUS}",
        )  # fmt: skip
        return number

    def _start(self, name: str, *command: str) -> None:
        """Start a server and record it at once."""
        program = [sys.executable, "-m", *command]
        self.processes.append(ServerProcess.start(name, program, self._environment()))
        self.write()

    def _environment(self) -> dict[str, str]:
        """The environment of every server; Ray's workers, and so the jobs, inherit it."""
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

    def wait_until_ready(self) -> None:
        """Wait until the head and the S3 server answer and every node has joined.

        Call it before the next node starts: two nodes that start at once may pick the same ports.
        Raises :class:`~segbatch.errors.InputError` if a process ends instead.
        """
        ready = [
            partial(answers, self.url),
            partial(answers, f"http://{HOST}:{self.s3}"),
            *(partial(_has_joined, node) for node in self.nodes.values()),
        ]
        for check in ready:
            self.wait_for(check)
            if not check():
                ended = [process.name for process in self.processes if not process.alive]
                raise InputError(
                    f"{', '.join(ended) or 'the cluster'} did not start: see {FOLDER}/*.log"
                )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, until a process ends or ``START_S`` have passed."""
        _wait(lambda: condition() or not self.all_alive, START_S)

    def forget_lost(self) -> None:
        """Drop nodes that have ended on their own, such as one that could not start."""
        lost = [node for node in self.nodes.values() if not node.alive]
        self.processes = [process for process in self.processes if process not in lost]


@dataclass(frozen=True)
class ServerProcess:
    """A server that was started here; ``born`` tells it from a later process with the same id."""

    name: str
    pid: int
    born: str

    @classmethod
    def start(cls, name: str, command: list[str], environment: dict[str, str]) -> ServerProcess:
        """Start a server in a session of its own; its output goes to ``cluster/NAME.log``."""
        with (FOLDER / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return cls(name, process.pid, _start_time(process.pid))

    @property
    def alive(self) -> bool:
        return bool(self.born) and _start_time(self.pid) == self.born

    def end(self) -> None:
        """End it and its children: SIGTERM first, SIGKILL after ``END_S``."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            _wait(lambda: not self.alive, END_S)
        self.kill()

    def kill(self) -> None:
        """Kill it and its children at once, as if its machine were switched off."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _wait(lambda: not self.alive, END_S)


def answers(url: str) -> bool:
    """Whether a server answers at ``url``, if only with an HTTP error."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it requires a token
    except OSError:
        return False
    return True


def _has_joined(node: ServerProcess) -> bool:
    return "Ray runtime started" in (FOLDER / f"{node.name}.log").read_text()


def _start_time(pid: int) -> str:
    """When a process was started; empty if there is none, or only a zombie."""
    fields = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], check=False, capture_output=True, text=True
    ).stdout.split(maxsplit=1)
    return "" if not fields or fields[0].startswith("Z") else fields[1].strip()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    """Poll until ``condition`` holds, for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
