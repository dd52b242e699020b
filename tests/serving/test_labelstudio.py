"""The server as an ML backend of Label Studio, as its client asks and its converter reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle

from segbatch import load_model
from segbatch.formats.references import to_address
from tests.collection import encoded, image
from tests.conftest import S3
from tests.serving.conftest import Answer, Served, ask

TOKEN = "0123456789abcdef"
CONFIG = """
<View>
  <Image name="photo" value="$picture"/>
  <BrushLabels name="paint" toName="photo"><Label value="wall" background="#ff0000"/></BrushLabels>
</View>
"""


@contextmanager
def label_studio(files: dict[str, bytes]) -> Iterator[str]:
    """A server that gives files to whoever has the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Token {TOKEN}" and self.path in files
            self.send_response(200 if known else 403)
            body = files[self.path] if known else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def post(url: str, content: Any) -> Answer:
    return ask(url, json.dumps(content).encode(), content_type="application/json")


def drawn(result: list[dict[str, Any]], names: list[str]) -> np.ndarray[Any, Any]:
    """The label map that Label Studio's own decoder makes of brushes."""
    height, width = result[0]["original_height"], result[0]["original_width"]
    label_map = np.full((height, width), 255, np.uint8)
    for region in result:
        rgba = np.reshape(decode_rle(region["value"]["rle"]), (height, width, 4))
        label_map[rgba[..., 3] > 0] = names.index(region["value"]["brushlabels"][0])
    return label_map


def test_tasks_get_the_mask_as_brushes(served: Served, s3: S3, model_uri: str) -> None:
    uri = s3.uri("front.png")
    s3.put(uri, encoded(image(4), "PNG"))
    tasks = [{"id": 1, "data": {"picture": uri}}, {"id": 2, "data": {"picture": "/etc/passwd"}}]
    asked = {"tasks": tasks, "project": "1.1", "label_config": CONFIG, "params": {"context": None}}
    answer = post(f"{served.url}predict", asked)
    assert answer.status == 200
    content = json.loads(answer.body)
    seen, refused = content["results"]
    expected = load_model(model_uri, device="cpu").predict(image(4))
    assert np.array_equal(drawn(seen["result"], list(expected.classes.names)), expected.mask)
    assert {(r["from_name"], r["to_name"]) for r in seen["result"]} == {("paint", "photo")}
    assert 0 < seen["score"] <= 1
    assert seen["model_version"] == content["model_version"]
    assert content["model_version"].startswith(f"{model_uri}@")
    assert refused["result"] == [], "a path on this machine"


def test_photographs_on_the_server_are_read_with_the_users_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segbatch import storage

    photo = encoded(image(1), "PNG")
    with label_studio({"/data/upload/1/ab-front.png": photo}) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", f"{url}/")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        limits = storage.ReadLimits(timeout_s=5, retries=0)
        address = to_address("/data/upload/1/ab-front.png")
        assert address == f"{url}/data/upload/1/ab-front.png"
        assert storage.read_many([address], limits) == [photo]
        monkeypatch.setenv("LABEL_STUDIO_URL", "http://elsewhere")
        [refused] = storage.read_many([f"{url}/data/upload/1/ab-front.png"], limits)
        assert not isinstance(refused, bytes), "the token goes to no other server"


def test_references_that_cannot_be_read_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    assert to_address("azure-blob://photos/1.jpg") == "az://photos/1.jpg"
    assert to_address("/tasks/1/resolve/?fileuri=czM6Ly9iLzEuanBn") == "s3://b/1.jpg"
    for reference, said in {
        "/data/upload/1/a.jpg": "set LABEL_STUDIO_URL",
        "/data/local-files/?d=/etc/passwd": "set LABEL_STUDIO_URL",
        "/etc/passwd": "no web address",
        "file:///etc/passwd": "no web address",
        "data:image/png;base64,AAAA": "data URI",
    }.items():
        with pytest.raises(ValueError, match=said):
            to_address(reference)


def test_a_project_is_connected(served: Served) -> None:
    assert json.loads(ask(f"{served.url}health").body) == {"status": "UP"}
    config = ask(f"{served.url}label_config.xml")
    setup = {"project": "1.1", "schema": config.body.decode(), "hostname": "http://x"}
    answer = post(f"{served.url}setup", setup)
    assert answer.status == 200
    assert "@" in json.loads(answer.body)["model_version"]
    boxes = '<View><Image name="i" value="$i"/><RectangleLabels name="l" toName="i"/></View>'
    refused = post(f"{served.url}setup", {**setup, "schema": boxes})
    assert refused.status == 422
    assert "BrushLabels" in refused.detail


@pytest.mark.parametrize("content", [{}, {"tasks": 1}, {"tasks": [{"id": 1}]}, [], "text"])
def test_what_is_no_list_of_tasks_is_refused(served: Served, content: Any) -> None:
    assert post(f"{served.url}predict", content).status == 422
    assert post(f"{served.url}predict", content).detail
