"""Moto's S3 with faults: over HTTP, in a process of its own, wrong where a test wants it to be.

In a process of its own because a client that holds Python's lock while it waits would wait for
ever on a server in the same process (deltalake's ``history`` does). Faults are set by a ``PUT`` of
JSON to ``/-/faults``: a list of ``{"method", "part", "status", "code", "times"}``. A request whose
path holds ``part`` is answered with that S3 error; ``times`` bounds how often each path is.
"""

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

CONTROL = "/-/faults"
ERROR = "<?xml version='1.0'?>\n<Error><Code>{}</Code><Message>injected</Message></Error>"


class Faulty:
    """A WSGI application in front of moto's."""

    def __init__(self, moto: Callable[..., Iterable[bytes]]) -> None:
        self.moto = moto
        self.faults: list[dict[str, Any]] = []
        self.answered: Counter[tuple[int, str]] = Counter()
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == CONTROL:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            with self.lock:
                self.faults = json.loads(body)
                self.answered.clear()
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
        with self.lock:
            fault = self._fault(method, path)
        if fault is None:
            return self.moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = ERROR.format(fault["code"]).encode()
        start_response(
            f"{fault['status']} {fault['code']}",
            [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))],
        )
        return [b"" if method == "HEAD" else answer]

    def _fault(self, method: str, path: str) -> dict[str, Any] | None:
        for number, fault in enumerate(self.faults):
            if fault["part"] in path and fault.get("method", method) == method:
                self.answered[number, path] += 1
                if self.answered[number, path] <= fault.get("times", sys.maxsize):
                    return fault
        return None


def serve() -> None:
    """Serve on a port of the system's choice, print it, and end with standard input."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


@contextmanager
def faulty_s3() -> Iterator[str]:
    """A fresh server, as a process; gives its URL."""
    from segbatch.demo.s3server import served

    with served(sys.executable, __file__) as port:
        yield f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    serve()
