"""Drivers: segbatch in processes of their own, as users start it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

# What was written is committed at once and not every minute: a small run has several commits.
EAGER = """
from segbatch.results import ledger
ledger.COMMIT_EVERY_S = 0.0
from segbatch.cli import main
main()
"""


def cli(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """``python -m segbatch …`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "segbatch", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


@contextmanager
def driver(
    job: dict[str, Any], folder: Path, address: str, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """A driver that works on ``job``; killed at the end, if it is still there."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, "run", str(file), *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "RAY_ADDRESS": address},
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


def wait_until(condition: Callable[[], Any], process: Any = None, seconds: float = 120) -> None:
    """Poll until ``condition`` holds, while ``process`` lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        assert process is None or process.poll() is None, "it ended before"
        time.sleep(0.005)
