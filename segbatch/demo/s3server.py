"""moto's S3 server in a process of its own, so that the demo and the tests use a real server.

A server in the same process could hang: a client that holds Python's lock while it waits for an
answer would keep the server from giving it (deltalake's ``history`` does).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from segbatch.errors import InputError

SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the parent process ends
server.stop()
"""


def require_server() -> None:
    """Raises :class:`~segbatch.errors.InputError` if what the server needs is not installed."""
    if not all(map(find_spec, ("moto", "flask", "flask_cors"))):
        raise InputError("the S3 server needs moto: pip install 'segbatch[demo]'")


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A fresh S3 server on this machine; yields the ``AWS_*`` variables for it.

    Its objects are in memory and disappear with it. Raises :class:`~segbatch.errors.InputError` if
    moto is not installed.
    """
    require_server()
    with served(sys.executable, "-c", SERVE) as port:
        yield s3_variables(f"http://127.0.0.1:{port}")


def s3_variables(endpoint: str) -> dict[str, str]:
    """The ``AWS_*`` variables with which S3 clients use a server at ``endpoint``."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def served(*command: str) -> Iterator[str]:
    """The port that a server prints when it is ready; the server ends when its stdin closes."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise InputError("the server did not start")
        yield port
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
