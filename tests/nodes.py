"""Nodes: more raylets for the tests' Ray, which can be lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import ROOT
from tests.drivers import wait_until


@contextmanager
def another_node(address: str, num_cpus: int) -> Iterator[int]:
    """One more node for the Ray at ``address``; gives its raylet's process id.

    This process has to be connected to it.
    """
    before, known = raylets(address), set(nodes())

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", f"--address={address}",
             f"--num-cpus={num_cpus}", "--object-store-memory=100000000", "--block"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    node = start()
    try:
        wait_until(lambda: nodes().keys() - known or node.poll() is not None)
        if node.poll() is not None:  # Ray gives a node 30 s, which a busy machine may not have
            node = start()
            wait_until(lambda: nodes().keys() - known)
        [pid] = raylets(address) - before
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        new = nodes().keys() - known
        wait_until(lambda: not any(nodes()[name] for name in new))


def nodes() -> dict[str, bool]:
    """Every node that the connected Ray has known, and whether it lives."""
    import ray

    return {node["NodeID"]: node["Alive"] for node in ray.nodes()}


def raylets(address: str) -> set[int]:
    """Process ids of the nodes of one Ray that are on this machine."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_bytes().split(b"\0")
            if command[0].endswith(b"/raylet") and any(address.encode() in c for c in command):
                found.add(int(file.parent.name))
    return found


def children(raylet: int) -> set[int]:
    """Process ids of a node's workers."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(file.read_text().rpartition(")")[2].split()[1]) == raylet:
                found.add(int(file.parent.name))
    return found
