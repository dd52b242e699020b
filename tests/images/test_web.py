"""Manifests and videos on web servers, which are busy, silent, or break off."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segbatch import storage
from segbatch.config.images import Manifest, Video
from segbatch.errors import Incomplete, SourceError
from segbatch.images.fetch import fetch
from segbatch.images.parts import read_images
from segbatch.storage import ReadLimits, clients, reading
from tests.collection import jpeg
from tests.films import STEADY, film
from tests.images.frozen import frozen

FAULTS = ["busy", "gone", "cut", "silent", "stalled"]
LIMITS = ReadLimits(timeout_s=1, retries=0)


class Web(ThreadingHTTPServer):
    """Serves ``files``; the first ``times`` answers for each are as ``fault`` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.fault, self.times = "", 0
        self.asked: Counter[str] = Counter()
        self.leave = threading.Event()

    def put(self, name: str, data: bytes) -> str:
        self.files[name] = data
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def breaks(self, fault: str, times: int) -> None:
        self.fault, self.times = fault, times
        self.asked.clear()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked[name] += 1
        fault = self.server.fault if self.server.asked[name] <= self.server.times else ""
        data = self.server.files.get(name)
        if fault == "silent":
            self.server.leave.wait(20)
        elif fault == "busy" or data is None or fault == "refused":
            self.send_error(503 if fault == "busy" else 401 if fault == "refused" else 404)
        elif fault == "gone":
            self.close_connection = True
        elif fault.startswith("chunked"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (data[:7], data[7:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            is_cut = fault == "chunked-cut" or self.server.asked[name] == 2
            self.close_connection = is_cut
            if not is_cut:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            if fault == "stalled":
                self.server.leave.wait(20)
            if fault in ("cut", "stalled"):
                self.close_connection = True
            else:
                self.wfile.write(data[len(data) // 2 :])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(clients, "MAX_BACKOFF_S", 0.1)
    monkeypatch.setattr(reading, "SINGLE", ReadLimits(1 << 36, timeout_s=0.3, retries=2))
    monkeypatch.setattr(reading, "SERVERS_WITHOUT_LENGTH", set())
    with Web() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield server
        server.leave.set()
        server.shutdown()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("films") / "clip.mp4"
    film(path, STEADY[:3], sound=None)
    return path.read_bytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_once_costs_a_request_and_no_row(
    tmp_path: Path, web: Web, clip: bytes, fault: str
) -> None:
    listed, video = web.put("list.csv", b"uri\na\nb\n"), web.put("clip.mp4", clip)
    web.breaks(fault, times=1)
    assert frozen(tmp_path, Manifest(manifest=listed))["uri"].to_pylist() == ["a", "b"]
    assert web.asked["list.csv"] == 2
    rows = frozen(tmp_path, Video(video=video), "films")
    assert rows["frame"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_for_long_is_no_missing_file_and_loses_no_frame(
    tmp_path: Path, web: Web, clip: bytes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, video = web.put("list.csv", b"uri\na\nb\n"), web.put("clip.mp4", clip)
    rows = frozen(tmp_path, Video(video=video))
    monkeypatch.setattr(reading, "SINGLE", ReadLimits(1 << 36, timeout_s=0.1, retries=1))
    web.breaks(fault, times=100)
    for number, source in enumerate((Manifest(manifest=listed), Video(video=video))):
        with pytest.raises(Incomplete, match=r"cannot read http://\S+: .*; run it again") as caught:
            frozen(tmp_path, source, f"run-{number}")
        assert "\n" not in str(caught.value)
    assert web.asked["list.csv"] == 2
    assert set(fetch(rows, LIMITS)["error"].to_pylist()) == {"unavailable"}


def test_a_missing_video_of_a_list_is_one_row_that_says_so(
    tmp_path: Path, web: Web, clip: bytes
) -> None:
    there, missing = web.put("clip.mp4", clip), web.put("clip.mp4", clip).replace("clip", "none")
    listed = web.put("list.csv", f"uri\n{missing}\n{there}\n".encode())
    rows = frozen(tmp_path, Video(video=listed))
    assert rows["frame"].to_pylist() == [None, 0, 1, 2]
    assert fetch(rows, LIMITS)["error"].to_pylist() == ["not_found", None, None, None]


def test_refused_credentials_end_the_listing_and_lose_no_frame(
    tmp_path: Path, web: Web, clip: bytes
) -> None:
    video = web.put("clip.mp4", clip)
    rows = frozen(tmp_path, Video(video=video))
    web.breaks("refused", times=100)
    with pytest.raises(SourceError, match="401"):
        frozen(tmp_path, Video(video=video), "refused")
    assert set(fetch(rows, LIMITS)["error"].to_pylist()) == {"credentials"}


def test_a_server_that_announces_no_length_is_read_too(tmp_path: Path, web: Web) -> None:
    listed = web.put("list.csv", b"uri\na\nb\n")
    web.breaks("chunked", times=100)  # and breaks off once
    assert frozen(tmp_path, Manifest(manifest=listed))["uri"].to_pylist() == ["a", "b"]
    web.breaks("chunked-cut", times=100)
    with pytest.raises(Incomplete, match="run it again"):
        frozen(tmp_path, Manifest(manifest=listed), "cut")


def test_a_photograph_of_unknown_length_is_read_up_to_the_limit(web: Web) -> None:
    photograph = jpeg(1)
    addresses = [web.put(name, photograph) for name in ("a.jpg", "b.jpg", "c.jpg?size=[1]")]
    web.breaks("chunked", times=100)
    enough = ReadLimits(max_bytes=len(photograph), timeout_s=5, retries=1)
    assert read_images(addresses, enough) == [photograph] * 3
    asked = web.asked["a.jpg"]
    assert read_images(addresses[:1], enough) == [photograph]
    assert web.asked["a.jpg"] == asked + 1  # the server is known
    [why] = read_images(addresses[:1], replace(enough, max_bytes=len(photograph) - 1))
    assert isinstance(why, storage.Unreadable)
    assert why.kind == "too_large"
    assert web.asked["a.jpg"] == asked + 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_without_lengths_may_fail_as_any_other(web: Web, fault: str) -> None:
    address = web.put("a.jpg", jpeg(1))
    web.breaks("chunked", times=100)
    limits = ReadLimits(timeout_s=0.3, retries=1)
    assert read_images([address], limits) == [jpeg(1)]
    web.breaks(fault, times=1)
    assert read_images([address], limits) == [jpeg(1)]
    web.breaks("chunked-cut", times=100)
    [why] = read_images([address], limits)
    assert isinstance(why, storage.Unreadable)
    assert (why.kind, why.transient) == ("unavailable", True)
    [missing] = read_images([address.replace("a.jpg", "none.jpg")], LIMITS)
    assert isinstance(missing, storage.Unreadable)
    assert missing.kind == "not_found"


def test_a_long_download_has_a_limit_for_each_part_and_not_for_all_of_it(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (4 << 12)  # four megabytes, slower than the limit together
    address = web.put("long.mp4", data)

    def slowly(self: Handler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), 1 << 20):
            self.wfile.write(data[start : start + (1 << 20)])
            self.wfile.flush()
            self.server.leave.wait(0.15)

    monkeypatch.setattr(Handler, "do_GET", slowly)
    storage.download(address, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
