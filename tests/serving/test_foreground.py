"""``segbatch serve`` as a command: until a signal stops it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.errors import InputError
from segbatch.serving.foreground import free_port
from tests.collection import jpeg
from tests.drivers import cli
from tests.serving.conftest import Served, ask


def test_it_serves_until_sigterm(
    served: Served, ray_address: str, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    command = [sys.executable, "-m", "segbatch", "serve", model_uri, "--port", served.port]
    with subprocess.Popen(
        [*command, "--max-replicas", "4", "--name", "small", "--max-pixels", "5000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url == f"{served.url}small/"
            answer = ask(f"{url}predict", jpeg(1, 20, 20))
            assert answer.status == 200
            assert json.loads(answer.body)["model"]["uri"] == model_uri
            assert ask(f"{url}predict", jpeg(1, 80, 80)).status == 413
            tasks = ask(f"{url}predict", b'{"tasks": []}', content_type="application/json")
            assert tasks.status == 415
            assert "--label-studio" in tasks.detail
            page = ask(url)
            assert b'<base href="/small/">' in page.body
            taken = cli("serve", model_uri, "--name", "small", RAY_ADDRESS=ray_address)
            assert taken.returncode == 2
            assert "application small there already" in taken.stderr.splitlines()[-1]
            server.send_signal(signal.SIGTERM)
            out, said = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0, said
    assert out == ""
    assert f"curl --data-binary @photo.jpg {url}predict" in said
    assert ask(f"{url}healthz").status == 404
    assert ask(f"{served.url}healthz").status == 200, "what Serve ran before"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--long-side", "large"], "--long-side large: must be a number of pixels, auto or none"),
        (["--engine", "openvino", "--precision", "fp16"], "predict: engine openvino computes"),
        (["--env", "HF_TOKEN=x"], "--env needs --address"),
        (["--address", "http://127.0.0.1:9"], "is on this machine; a cluster reads"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    model_uri: str, options: list[str], said: str
) -> None:
    result = cli("serve", model_uri, *options)
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("segbatch: ")
    assert said in line


def test_a_model_that_is_none_is_refused_before_ray_starts(tmp_path: Path) -> None:
    result = cli("serve", str(tmp_path))
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert str(tmp_path) in line


def test_a_port_that_is_taken_is_refused() -> None:
    assert free_port("127.0.0.1", 0) > 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: Address already in use; choose"):
            free_port("127.0.0.1", port)
    with pytest.raises(InputError, match="cannot listen at no-such-host"):
        free_port("no-such-host", 0)


@pytest.mark.long
def test_an_error_of_a_replica_is_the_commands_own(
    served: Served, ray_address: str, model_uri: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "damaged"
    bundle.mkdir()
    config = (Path(model_uri) / "config.json").read_bytes()
    (bundle / "config.json").write_bytes(config)
    (bundle / "model.safetensors").write_bytes(b"no weights")
    result = cli(
        "serve", str(bundle), "--port", served.port, "--name", "damaged", "--max-replicas", "4",
        RAY_ADDRESS=ray_address,
    )  # fmt: skip
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("segbatch: ")
    assert "model.safetensors" in last
    assert "Traceback" not in result.stderr
