"""A server on the session's Ray, and how it is asked over HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ray import serve

from segbatch.serving.app import build
from segbatch.serving.service import service_of

LIMITS = {"max_bytes": 200_000, "max_pixels": 400_000}  # as those of tests.conftest.job


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    type: str
    body: bytes
    headers: Any

    @property
    def detail(self) -> str:
        """The one line of an error."""
        content = json.loads(self.body)
        assert set(content) == {"detail"}
        assert "\n" not in content["detail"]
        return str(content["detail"])


def ask(url: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> Answer:
    """POST ``body`` to ``url``, or GET it; ``_`` in the names of headers is ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, named, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(
                answer.status, answer.headers["Content-Type"], answer.read(), answer.headers
            )
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers["Content-Type"], error.read(), error.headers)


@pytest.fixture(scope="module")
def serve_url(ray_context: Any) -> Iterator[str]:
    """Where Ray Serve listens; it ends with the module, and gives its CPUs back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}/"
    serve.shutdown()


@pytest.fixture(scope="module")
def url(serve_url: str, model_uri: str) -> str:
    """The small model, served."""
    serve.run(build(service_of({"model": model_uri, **LIMITS})), name="segbatch")
    return serve_url
