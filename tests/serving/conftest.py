"""A server on the session's Ray, and how it is asked over HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

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


@dataclass(frozen=True)
class Served:
    """The small model at ``url``, by a server that notes its batches (:mod:`.noting`)."""

    url: str
    hold: Path
    batches: Path

    @property
    def port(self) -> str:
        return str(urlsplit(self.url).port)


@pytest.fixture(scope="package")
def served(
    ray_context: Any, model_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server; Ray Serve ends with the tests of this folder, and gives its CPUs back."""
    from ray import serve

    from tests.serving.noting import deployment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    folder = tmp_path_factory.mktemp("served")
    server = Served(f"http://127.0.0.1:{port}/", folder / "hold", folder / "batches.txt")
    service = service_of(
        {
            "model": model_uri,
            "device": "cpu",
            "predict": {"batch_size": 4},
            "label_studio": True,
            **LIMITS,
        }
    )
    serve.run(deployment.bind(service, server.hold, server.batches), name="segbatch")
    yield server
    serve.shutdown()


@pytest.fixture(scope="package")
def url(served: Served) -> str:
    return served.url
