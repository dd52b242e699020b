"""``segbatch serve --address``: deploys next to what Serve runs already."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from segbatch.cluster.dashboard import connect
from segbatch.errors import InputError
from segbatch.serving.remote import deploy
from segbatch.serving.service import service_of
from tests.collection import jpeg
from tests.serving.conftest import ask


@pytest.fixture
def serve_port(ray_context: Any) -> Any:
    """A port that Serve may take; it is shut down after the test."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield port
    serve.shutdown()


def test_a_model_is_deployed_next_to_other_applications(
    jobs_server: str, serve_port: int, model_uri: str
) -> None:
    theirs = {
        "name": "hello", "route_prefix": "/hello", "import_path": "tests.serving.hello:app"
    }  # fmt: skip
    http = {"host": "127.0.0.1", "port": serve_port}
    dashboard = connect(jobs_server)
    dashboard.deploy({"http_options": http, "applications": [theirs]})
    service = service_of({"model": f"file://{model_uri}", "predict": {"flip": True}})
    url = deploy(service, jobs_server, name="segbatch", **http)
    assert url.endswith(f":{serve_port}/")
    here = f"http://127.0.0.1:{serve_port}/"
    assert json.loads(ask(f"{here}predict", jpeg(1)).body)["width"] == 128
    assert ask(f"{here}hello").body == b"hello"
    args = dashboard.serve_details()["applications"]["segbatch"]["deployed_app_config"]["args"]
    assert args == {"model": f"file://{model_uri}", "predict": {"flip": True}}


def test_a_model_on_this_machine_alone_is_refused(jobs_server: str, model_uri: str) -> None:
    with pytest.raises(InputError, match=r"is on this machine; a cluster reads s3://…"):
        deploy(service_of({"model": model_uri}), jobs_server, name="x", host="0.0.0.0", port=8000)
