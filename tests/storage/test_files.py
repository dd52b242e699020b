"""Reading, writing, listing and deleting, against local files, S3 and a faulty HTTP server."""

import itertools
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from segbatch import storage
from segbatch.demo.s3server import s3_server
from segbatch.errors import Incomplete, InputError
from segbatch.results.database import remote_filesystem
from segbatch.storage import ReadLimits, StoredFile, Unreadable, clients
from tests.conftest import S3

ONCE = ReadLimits(retries=0)


def read(uri: str, limits: ReadLimits = ONCE) -> bytes | Unreadable:
    return storage.read_many([uri], limits)[0]


def kind(uri: str, limits: ReadLimits = ONCE) -> str:
    content = read(uri, limits)
    assert isinstance(content, Unreadable), content
    assert content.message.strip()
    assert "\n" not in content.message
    return content.kind


# -------------------------------------------------------------------------------- a faulty server


class FaultyServer(ThreadingHTTPServer):
    """Answers as the name of the object says, over HTTP and S3; signatures are not checked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.requests: Counter[tuple[str, str]] = Counter()
        self.body_bytes = 0
        self.leave = threading.Event()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class FaultyHandler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        self.server.requests[self.command, name] += 1
        ANSWERS[name](self)

    do_HEAD = do_GET  # noqa: N815 (the base class names it)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def s3_error(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>no</Message></Error>"
        self.answer(status, text.encode())

    def cut(self) -> None:
        self.answer(200, b"0123456789", length=1000)
        self.close_connection = True

    def stall(self) -> None:
        self.answer(200, b"0123456789", length=1000)
        self.server.leave.wait(20)

    def large(self) -> None:
        self.answer(200, length=1 << 30)
        for _ in range(1 << 14):
            self.wfile.write(bytes(1 << 16))
            self.server.body_bytes += 1 << 16

    def recovers(self) -> None:
        if self.server.requests["GET", "recovers"] < 3:
            self.s3_error(503, "SlowDown")
        else:
            self.answer(200, b"at last")


ANSWERS: dict[str, Callable[[FaultyHandler], None]] = {
    "good": lambda it: it.answer(200, b"content"),
    "empty": lambda it: it.answer(200),
    "missing": lambda it: it.s3_error(404, "NoSuchKey"),
    "0401-gone": lambda it: it.answer(404, b"gone"),
    "busy": lambda it: it.s3_error(503, "SlowDown"),
    "broken": lambda it: it.s3_error(500, "InternalError"),
    "denied": lambda it: it.s3_error(403, "AccessDenied"),
    "forbidden": lambda it: it.answer(403, b"no"),
    "unauthorized": lambda it: it.answer(401, b"who are you?"),
    "expired": lambda it: it.s3_error(400, "ExpiredToken"),
    "unknown-key": lambda it: it.s3_error(403, "InvalidAccessKeyId"),
    "bad-signature": lambda it: it.s3_error(403, "SignatureDoesNotMatch"),
    "skewed-clock": lambda it: it.s3_error(403, "RequestTimeTooSkewed"),
    "silent": lambda it: it.server.leave.wait(20) and None,
    "stall": FaultyHandler.stall,
    "cut": FaultyHandler.cut,
    "large": FaultyHandler.large,
    "recovers": FaultyHandler.recovers,
}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield server
        server.leave.set()
        server.shutdown()


buckets = (f"faulty-{number}" for number in itertools.count())


Objects = Callable[[str], str]  # name → URI


@pytest.fixture(params=["s3", "http", "signed"])
def faulty(
    request: pytest.FixtureRequest, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> Objects:
    """The faulty server's objects, in a bucket or on a web site, with plain or with signed URLs.

    Each test has a new bucket because clients are cached.
    """
    if request.param == "http":
        return lambda name: f"{server.root}/{name}"
    if request.param == "signed":
        return lambda name: f"{server.root}/%2F/{name}?X-Amz-Signature=SECRET%3D"
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.root)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = next(buckets)
    return lambda name: f"s3://{bucket}/{name}"


# ------------------------------------------------------------------------------------ reading many


def test_a_good_object_costs_one_get_and_no_head(faulty: Objects, server: FaultyServer) -> None:
    assert storage.read_many([faulty("good")] * 50, ReadLimits()) == [b"content"] * 50
    assert server.requests == {("GET", "good"): 50}


def test_an_empty_object_is_no_error(faulty: Objects) -> None:
    assert read(faulty("empty")) == b""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "not_found"),
        ("busy", "unavailable"),
        ("broken", "unavailable"),
        ("denied", "forbidden"),
        ("forbidden", "forbidden"),
        ("unauthorized", "credentials"),
        ("expired", "credentials"),
        ("unknown-key", "credentials"),
        ("bad-signature", "credentials"),
        ("skewed-clock", "credentials"),
        ("cut", "unavailable"),
    ],
)
def test_each_failure_has_its_kind(faulty: Objects, name: str, expected: str) -> None:
    assert kind(faulty(name)) == expected


@pytest.mark.parametrize("name", ["silent", "stall"])
def test_no_answer_in_time_is_a_timeout(faulty: Objects, name: str) -> None:
    started = time.monotonic()
    assert kind(faulty(name), ReadLimits(timeout_s=0.5, retries=0)) == "timeout"
    assert time.monotonic() - started < 5


def test_no_server_is_unavailable() -> None:
    assert kind("http://127.0.0.1:9/x.jpg") == "unavailable"


def test_a_number_in_a_key_is_not_read_as_a_status(faulty: Objects) -> None:
    assert kind(faulty("0401-gone")) == "not_found"


def test_a_machine_without_credentials_is_a_credentials_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert kind(f"s3://{next(buckets)}/x.jpg") == "credentials"


def test_clients_follow_a_change_of_the_endpoint(
    s3: S3, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.client.create_bucket(Bucket="moved")
    s3.put("s3://moved/good", b"of the first")
    for root, content in ((None, b"of the first"), (server.root, b"content")):
        if root is not None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", root)
        fs, path = storage.filesystem("s3://moved/good")
        assert fs.cat_file(path) == content
        assert remote_filesystem("s3").cat_file(path) == content
        assert read("s3://moved/good") == content


def test_a_transient_failure_is_retried(faulty: Objects, server: FaultyServer) -> None:
    assert read(faulty("recovers"), ReadLimits(retries=5)) == b"at last"
    assert server.requests["GET", "recovers"] == 3


def test_retries_are_bounded(faulty: Objects, server: FaultyServer) -> None:
    assert kind(faulty("busy"), ReadLimits(retries=2)) == "unavailable"
    assert server.requests == {("GET", "busy"): 3}


@pytest.mark.parametrize("name", ["missing", "denied", "unauthorized", "expired", "unknown-key"])
def test_a_permanent_failure_is_not_retried(
    faulty: Objects, server: FaultyServer, name: str
) -> None:
    kind(faulty(name), ReadLimits(retries=5))
    assert server.requests == {("GET", name): 1}


def test_the_length_is_checked_before_the_body_is_read(
    faulty: Objects, server: FaultyServer
) -> None:
    assert kind(faulty("large"), ReadLimits(max_bytes=1000, retries=0)) == "too_large"
    # Socket buffers fill before the client can close the connection.
    assert server.body_bytes < 32 << 20


def test_access_denied_says_that_the_key_may_be_missing(faulty: Objects) -> None:
    content = read(faulty("denied"))
    assert isinstance(content, Unreadable)
    assert "missing key" in content.message


def test_bad_objects_do_not_disturb_good_ones(faulty: Objects) -> None:
    names = ["good", "missing", "good", "denied", "empty", "good"]
    contents = storage.read_many([faulty(name) for name in names], ONCE)
    assert [c.kind if isinstance(c, Unreadable) else c for c in contents] == [
        b"content", "not_found", b"content", "forbidden", b"", b"content",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["missing", "busy", "forbidden", "unauthorized", "cut"])
def test_a_signature_does_not_reach_the_message(server: FaultyServer, name: str) -> None:
    content = read(f"{server.root}/{name}?X-Amz-Signature=SECRET")
    assert isinstance(content, Unreadable)
    assert "SECRET" not in content.message


def test_a_list_of_many_web_servers_keeps_a_bounded_number_of_clients() -> None:
    buckets_kept = clients._cached_store.cache_info().currsize
    found = [clients.obstore_client(f"http://host-{number}.test/a.jpg") for number in range(5)]
    again = clients.obstore_client("http://host-4.test/b.jpg")
    assert again is not None
    assert found[-1] is not None
    assert again[0] is found[-1][0], "connections are used again"
    assert clients._cached_store.cache_info().currsize == buckets_kept
    assert clients._cached_site.cache_info().maxsize == clients.MAX_SITES


ODD_KEYS = [
    "a.jpg", "a//b.jpg", "p/../x.jpg", "./dot.jpg", "..", "p/%2F.jpg", "a%20b.jpg", "q?versionId=1",
    "x#y.jpg", "tab\tx.jpg", "ünï 🏠.jpg", "space and+plus.jpg", "[x]*?.jpg", "~t&=@:$,;.jpg",
    "back\\slash.jpg",
]  # fmt: skip


def test_keys_are_used_unchanged(s3: S3) -> None:
    root = s3.uri("odd")
    for key in ODD_KEYS:
        s3.put(f"{root}/{key}", key.encode())
    contents = storage.read_many([f"{root}/{key}" for key in ODD_KEYS], ONCE)
    assert contents == [key.encode() for key in ODD_KEYS]


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3://bucket", "nosuch://a/b", "http://[::1", "/no/such\0file", "/"]
)
def test_an_invalid_uri_is_not_found(s3: S3, uri: str) -> None:
    assert kind(uri) == "not_found"


def test_a_missing_key_and_a_missing_bucket_are_not_found(s3: S3) -> None:
    assert kind(s3.uri("x") + "/none.jpg") == "not_found"
    assert kind("s3://no-such-bucket/x.jpg") == "not_found"


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"content")
    assert read(str(tmp_path / "a b.jpg")) == b"content"
    assert read(f"file://{tmp_path}/a b.jpg") == b"content"
    assert kind(str(tmp_path / "none.jpg")) == "not_found"
    assert kind(str(tmp_path)) == "not_found"
    assert kind(str(tmp_path / "a b.jpg"), ReadLimits(max_bytes=6)) == "too_large"


def test_other_protocols_go_through_fsspec() -> None:
    storage.write_bytes("memory://folder/a.jpg", b"content")
    assert read("memory://folder/a.jpg") == b"content"
    assert kind("memory://folder/a.jpg", ReadLimits(max_bytes=6)) == "too_large"
    assert kind("memory://folder/none.jpg") == "not_found"


# ------------------------------------------------------------------ writing, listing, small objects


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on each kind of storage."""
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        return server.uri("folder")
    return str(tmp_path / "folder") if request.param == "local" else f"memory://{tmp_path}"


def test_a_written_object_exists_until_it_is_deleted(folder: str) -> None:
    uri = storage.join(folder, "deep", "a.bin")
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError, match=r"a\.bin"):
        storage.read_bytes(uri)
    for content in (b"first", b"second", b""):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    assert storage.exists(uri)
    storage.delete([uri, uri])
    assert not storage.exists(uri)


def test_a_listing_is_deep_and_sorted(folder: str) -> None:
    assert list(storage.list_files(folder)) == []
    names = ("a.jpg", "b-1.jpg", "b/c.jpg", "b/d/e.jpg", "b1.jpg", "z.jpg")
    uris = [storage.join(folder, name) for name in names]
    for uri in reversed(uris):
        storage.write_bytes(uri, uri.encode())
    assert list(storage.list_files(folder)) == [StoredFile(uri, len(uri)) for uri in uris]


def test_a_file_has_no_files_below_it(folder: str) -> None:
    uri = storage.join(folder, "a.jpg")
    storage.write_bytes(uri, b"content")
    assert list(storage.list_files(uri)) == []


def test_a_listing_without_sizes_is_a_listing(tmp_path: Path) -> None:
    """A web server's: that of a folder has names only, and that of a file is not even one."""
    (tmp_path / "a.jpg").write_bytes(b"content")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert list(storage.list_files(f"{root}/")) == [StoredFile(f"{root}/a.jpg", 0)]
        assert list(storage.list_files(f"{root}/a.jpg")) == []
        server.shutdown()


def test_a_listing_with_odd_keys_is_complete(s3: S3) -> None:
    root = s3.uri("odd")
    uris = {f"{root}/{key}" for key in ODD_KEYS}
    for uri in uris:
        s3.put(uri, b"x")
    listed = [file.uri for file in storage.list_files(root)]
    assert len(listed) == len(uris)
    assert set(listed) == uris


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server that lists three keys a page."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield boto3.client("s3")


def test_a_listing_goes_on_behind_odd_keys_on_any_page(pages: Any) -> None:
    for odd in ("a//b.jpg", "p/3//b.jpg", "p/5/../b.jpg"):
        keys = sorted([*(f"p/{number}.jpg" for number in range(6)), "p0.jpg", odd])
        bucket = next(buckets)
        pages.create_bucket(Bucket=bucket)
        for key in keys:
            pages.put_object(Bucket=bucket, Key=key, Body=b"x")
        for root in (f"s3://{bucket}", f"s3a://{bucket}"):
            for folder in ("", "/p/"):
                below = [key for key in keys if f"/{key}".startswith(folder)]
                listed = list(storage.list_files(f"{root}{folder}"))
                assert listed == [StoredFile(f"{root}/{key}", 1) for key in below]


def test_listing_a_missing_bucket_is_an_error(s3: S3) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-bucket"):
        list(storage.list_files("s3://no-such-bucket/x"))


def test_a_local_write_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    storage.write_bytes(str(path), b"before")

    def full(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        storage.write_bytes(str(path), b"after")
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_local_write_that_is_impossible_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        storage.write_bytes(str(tmp_path / "file" / "a.bin"), b"content")


@pytest.mark.parametrize("missing", ["a.bin/b.bin", "a.bin/deep/b.bin", "folder"])
def test_an_output_with_something_in_its_way_is_wrong_input_and_leaves_nothing(
    tmp_path: Path, missing: str
) -> None:
    out, file = tmp_path / "out", tmp_path / "file"
    (out / "folder").mkdir(parents=True)
    (out / "a.bin").write_bytes(b"mine")
    file.write_bytes(b"content")
    writes = (storage.write_bytes, b"content"), (lambda uri, path: storage.upload(path, uri), file)
    for write, content in writes:
        wrong = pytest.raises(InputError, match=r"^cannot write .*out")
        with wrong as caught, storage.translate_errors("cannot write", InputError):
            write(str(out / missing), content)
        assert "\n" not in str(caught.value)
    assert {path.name for path in out.rglob("*")} == {"folder", "a.bin"}
    assert (out / "a.bin").read_bytes() == b"mine"


def test_an_outage_while_writing_an_output_says_run_it_again() -> None:
    once_more = pytest.raises(Incomplete, match=r"^cannot write it: no space; run it again$")
    with once_more, storage.translate_errors("cannot write", InputError):
        raise OSError("it:\nno space")


def test_a_local_listing_follows_links_and_skips_other_than_files(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    os.mkfifo(folder / "pipe.jpg")
    assert list(storage.list_files(str(folder))) == [StoredFile(f"{folder}/linked/a.jpg", 1)]


def test_a_folder_that_two_links_lead_to_is_listed_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (elsewhere / "a.jpg", elsewhere / "deep/b.jpg", folder / ".data/v2/c.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name, target in {
        "1-deep": elsewhere / "deep",
        "2-all": elsewhere,
        "3-again": elsewhere,
        "current": Path(".data/v2"),  # as git-sync does; the hidden folder alone would be left out
        "up": tmp_path,
    }.items():
        (folder / name).symlink_to(target)
    names = [storage.path_below(file.uri, str(folder)) for file in storage.list_files(str(folder))]
    assert names == [".data/v2/c.jpg", "1-deep/b.jpg", "2-all/a.jpg", "current/c.jpg"]


def test_links_that_lead_to_no_file_are_said_and_the_first_few_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    for number in range(9):  # a git-annex whose files have not been fetched
        (tmp_path / f"{number}.jpg").symlink_to(".git/annex/objects/none")
    for _ in range(2):  # commands list a folder more than once
        assert list(storage.list_files(str(tmp_path))) == [StoredFile(f"{tmp_path}/a.jpg", 1)]
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{tmp_path}/{number}.jpg: a link to {tmp_path}/.git/annex/objects/none, which is no file;"
        " left out"
        for number in range(5)
    ]
    assert last == f"{tmp_path}: 5 more links and folders are left out"


@pytest.mark.parametrize(
    ("uri", "folder", "path"),
    [
        ("/p/x/a.jpg", "/p", "x/a.jpg"),
        ("/p/x/a.jpg", "file:///p/", "x/a.jpg"),
        ("file:///p/%40eaDir/T%FCr.jpg", "/p", "@eaDir/T\ufffdr.jpg"),
        (".cache/p/a.jpg", "./.cache/p/", "a.jpg"),
        (".cache/p/a.jpg", str(Path(".cache/p").absolute()), "a.jpg"),
        ("file:///H%E4user/a.jpg", "/H\udce4user", "a.jpg"),
        ("s3://b/p/x/a.jpg", "s3://b/p/", "x/a.jpg"),
        ("s3://b/100%25.jpg", "s3://b", "100%25.jpg"),
    ],
)
def test_paths_below_a_folder_do_not_depend_on_how_it_is_written(
    uri: str, folder: str, path: str
) -> None:
    assert storage.path_below(uri, folder) == path


@pytest.mark.parametrize("operation", [storage.read_bytes, storage.exists])
def test_refusals_are_permission_errors(
    faulty: Objects, operation: Callable[[str], object]
) -> None:
    for name in ("denied", "unknown-key"):
        with pytest.raises(PermissionError, match=name):
            operation(faulty(name))


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("s3://b/k", "s3"), ("S3://b/k", "s3"), ("https://h/k", "https"), ("a/b", ""), ("/a", ""),
        ("C:/x", ""), ("c://x", ""), ("file:///a", "file"), ("zip::s3://b/k", "zip"),
        ("a:b.jpg", ""), ("", ""),
    ],
)  # fmt: skip
def test_schemes(uri: str, scheme: str) -> None:
    assert storage.scheme_of(uri) == scheme


def test_joining_and_names() -> None:
    assert storage.join("s3://b/a/", "/c/", "d.txt") == "s3://b/a/c/d.txt"
    assert storage.name_of("s3://b/a/c/") == "c"
    assert storage.split_bucket("s3://b/a//c") == ("s3://b", "a//c")
    assert storage.normalize("s3://b/a/") == "s3://b/a"
    assert storage.normalize("~") == str(Path.home())
    assert storage.normalize("~root/a") == str(Path("~root/a").expanduser())


@pytest.mark.parametrize("uri", ["~nobody-here/a.jpg", "file://~nobody-here/a.jpg"])
def test_a_tilde_that_names_no_user_is_part_of_a_name(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert kind(uri) == "not_found"
    assert list(storage.list_files(storage.join(uri, ".."))) == []
    (tmp_path / "~nobody-here").mkdir()
    (tmp_path / "~nobody-here" / "a.jpg").write_bytes(b"content")
    assert read(uri) == b"content"


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Give up the rights of root in the block."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_system_folders_that_may_not_be_read_are_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = ["lost+found", "x/System Volume Information", ".Trashes/501"]
    with tempfile.TemporaryDirectory() as disk:
        Path(disk).chmod(0o755)
        for name in closed:
            Path(disk, name).mkdir(parents=True)
            Path(disk, name).chmod(0)
        Path(disk, "x/a.jpg").write_bytes(b"a")
        with an_ordinary_user():
            assert list(storage.list_files(disk)) == [StoredFile(f"{disk}/x/a.jpg", 1)]
            said = capsys.readouterr().err
            assert all(f"{disk}/{name}: may not be read; left out" in said for name in closed)
            with pytest.raises(PermissionError):
                list(storage.list_files(f"{disk}/lost+found"))
        Path(disk, "private").mkdir(mode=0)
        with an_ordinary_user(), pytest.raises(PermissionError):
            list(storage.list_files(disk))
