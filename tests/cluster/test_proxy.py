"""A proxy that the environment names stands between the command and the cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from segbatch.cluster.dashboard import connect
from segbatch.errors import InputError


class Refusing(BaseHTTPRequestHandler):
    """A proxy that cannot reach the host."""

    def do_GET(self) -> None:
        self.send_error(503, "no route")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def proxy() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_in_the_way_is_named_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with proxy() as port:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
        with pytest.raises(InputError) as refused:
            connect("http://head.example:8265")
        told = str(refused.value)
        assert f"it was asked through the proxy http://127.0.0.1:{port}" in told
        assert "secret" not in told
        assert told.endswith("set NO_PROXY=head.example to ask it directly")
        monkeypatch.setenv("NO_PROXY", "head.example")
        with pytest.raises(InputError) as direct:
            connect("http://head.example:8265")
        assert "proxy" not in str(direct.value)
