"""The machine that this process runs on: its usable CPU cores, its CPU model, and its ports."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

from segbatch.errors import InputError


def num_cores() -> int:
    """Number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """Model name of the CPU, or the architecture where the system does not name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host``, on ``port`` or for 0 on any free one.

    Raises :class:`~segbatch.errors.InputError` if that is impossible.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both_families = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both_families)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # Python repeats the address
        raise InputError(
            f"cannot listen at {host}, port {port}: {why}; choose another with --port or --host"
        ) from error
