"""S3 server: moto's, in a process of its own, so that the demo and the tests speak to a real one.

In a process of its own because a client that holds Python's lock while it waits would wait for
ever on a server in the same process (deltalake's ``history`` does).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from segbatch.errors import InputError

SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started us is gone
server.stop()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A fresh S3 server on this machine; gives the ``AWS_*`` variables that lead to it.

    Its objects are in memory and gone with it. Raises :class:`~segbatch.errors.InputError` where
    moto is not installed.
    """
    with served(sys.executable, "-c", SERVE) as port:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def served(*command: str) -> Iterator[str]:
    """The port that a server prints when it is up; it ends when its standard input does."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise InputError("the S3 server did not start; pip install 'segbatch[demo]'")
        yield port
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
