"""A proxy in front of an S3 server, in a process of its own, which breaks what passes through it.

Faults are set by a ``PUT`` of JSON to ``/-/faults``: a list of objects, of which the first that
fits a request is done to it. ``GET /-/requests`` tells how many requests came since then, as
``[[method, path, number], …]``, and ``GET /-/broken`` how many of them were broken. A fault has:

- ``kind``: one of :data:`KINDS`; ``error`` by default
- ``method``, ``part``: of the requests that it fits, ``part`` of their path; any by default
- ``rate``: of these requests, the share that is broken; all by default. Which ones depends on the
  fault, the path and how often it was asked for, and not on the order in which requests come
- ``times``: of each path, how many requests at most are broken
- ``between``: ``[from, to]`` in seconds since the faults were set
- ``status``, ``code``: of the answer, where ``kind`` is ``error`` or ``lost_error``
- ``seconds``: how long a ``stall`` is

Signatures hold, because what a client signs, the name of the host included, is passed on as it is.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

KINDS = (
    "error",  # an S3 error instead of an answer: 503 SlowDown, 500 InternalError, …
    "reset",  # the connection is reset before the request gets through
    "stall",  # no answer
    "reset_body",  # the connection is reset in the middle of the body
    "stall_body",  # the second half of the body does not come
    "cut",  # the connection is closed in the middle of the body
    "long",  # the announced length is larger than the body, and the connection is closed after it
    "short",  # the announced length is half of the body's, and half of it is sent
    "etag",  # an ETag that looks like an MD5 and is none, as with SSE-KMS
    "lost",  # the request is carried out, and its answer is lost: the connection is reset
    "lost_error",  # the request is carried out, and answered by an S3 error
)
HALVES = ("short", "cut", "reset_body", "stall_body")  # of the body are sent
CONTROL = "/-/faults"
REQUESTS = "/-/requests"
BROKEN = "/-/broken"
ERROR = "<?xml version='1.0'?>\n<Error><Code>{}</Code><Message>injected</Message></Error>"


class Proxy:
    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.set_faults([])

    def set_faults(self, faults: list[dict[str, Any]]) -> None:
        self.faults = faults
        self.since = time.monotonic()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.fitting: Counter[tuple[int, str]] = Counter()
        self.broken: Counter[tuple[int, str]] = Counter()

    def told(self, path: str, body: bytes) -> bytes:
        if path == CONTROL:
            self.set_faults(json.loads(body))
            return b""
        if path == BROKEN:
            return json.dumps(self.broken.total()).encode()
        return json.dumps([[*key, number] for key, number in self.requests.items()]).encode()

    def fault(self, method: str, path: str) -> dict[str, Any] | None:
        for number, fault in enumerate(self.faults):
            if fault.get("method", method) != method or fault.get("part", "") not in path:
                continue
            start, end = fault.get("between", (0, sys.maxsize))
            if not start <= time.monotonic() - self.since < end:
                continue
            self.fitting[number, path] += 1
            # The kind is in it, so that faults of one rate do not all break the same requests.
            kind = fault.get("kind", "error"), fault.get("code")
            chance = random.Random(f"{number} {kind} {method} {path} {self.fitting[number, path]}")
            if chance.random() >= fault.get("rate", 1):
                continue
            if self.broken[number, path] < fault.get("times", sys.maxsize):
                self.broken[number, path] += 1
                return fault
        return None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The requests of one connection, one after the other."""
        gone = ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        with contextlib.suppress(*gone):
            while await self.answer(reader, writer):
                await writer.drain()
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; ``False`` if the connection is at its end."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.decode("latin-1").split(" ", 2)[:2]
        if re.search(rb"(?i)\r\nexpect: 100-continue", head):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(head, reader)
        path = unquote(urlsplit(target).path)
        if path in (CONTROL, REQUESTS, BROKEN):
            writer.write(response(200, "OK", self.told(path, body)))
            return True
        self.requests[method, path] += 1
        fault = self.fault(method, path) or {"kind": None}
        kind = fault.get("kind", "error")
        if kind == "error":
            writer.write(error(fault, method))
            return True
        if kind in ("reset", "stall"):
            await break_off(kind, fault, writer)
            return False
        answer_head, answer_body = await self.forward(head, body)
        if kind == "lost_error":
            writer.write(error(fault, method))
            return True
        if kind == "lost":
            await break_off(kind, fault, writer)
            return False
        half = len(answer_body) // 2
        if kind == "long":
            answer_head = with_length(answer_head, len(answer_body) + 10)
        if kind == "short":
            answer_head = with_length(answer_head, half)
        if kind == "etag":
            answer_head = re.sub(rb"(?i)(\r\netag: *)[^\r]*", rb'\g<1>"%032d"' % 0, answer_head)
        writer.write(answer_head + (answer_body[:half] if kind in HALVES else answer_body))
        await writer.drain()
        await break_off(kind, fault, writer)
        framed = re.search(rb"(?i)\r\n(content-length|transfer-encoding):", answer_head)
        return kind in (None, "short", "etag") and (framed is not None or method == "HEAD")

    async def forward(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Head and body of the server's answer, which ends with its connection."""
        head = re.sub(rb"(?i)\r\n(connection|expect):[^\r]*", b"", head)
        head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(head + body)
        answer = await reader.read(-1)
        writer.close()
        while answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2]
        head, _, body = answer.partition(b"\r\n\r\n")
        return re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head) + b"\r\n\r\n", body


async def read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The body of a request, as it came."""
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
        return await reader.readexactly(int(length[1]))
    if not re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        return b""
    body = b""
    while not body.endswith(b"\r\n0\r\n\r\n") and body != b"0\r\n\r\n":
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
    return body


def response(status: int, reason: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def error(fault: dict[str, Any], method: str) -> bytes:
    body = b"" if method == "HEAD" else ERROR.format(fault["code"]).encode()
    return response(fault["status"], fault["code"], body)


def with_length(head: bytes, length: int) -> bytes:
    return re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % length, head)


async def break_off(kind: str | None, fault: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Wait, where the fault is a stall; or close so that the client sees a reset connection."""
    if kind in ("stall", "stall_body"):
        await asyncio.sleep(fault.get("seconds", 60))
    if kind == "reset_body":
        await asyncio.sleep(0.01)  # what was sent shall arrive before the reset
    if kind in ("reset", "reset_body", "lost"):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def serve(upstream: str) -> None:
    """Serve on a port of the system's choice, print it, and end with standard input."""
    proxy = Proxy(upstream)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def proxy(upstream: str) -> Iterator[str]:
    """A proxy in front of the server at the URL ``upstream``, as a process; gives its URL."""
    from segbatch.demo.s3server import served

    with served(sys.executable, __file__, upstream) as port:
        yield f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("upstream")
    asyncio.run(serve(parser.parse_args().upstream))
