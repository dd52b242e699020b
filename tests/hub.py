"""A Hugging Face Hub on this machine: its protocol over HTTP, as huggingface_hub speaks it.

Repositories are made by :meth:`Hub.commit`, or by pushing. Every commit has an id of its own, and
``main`` is the last one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by id, the last one last; ``token`` is what a private one asks for."""

    commits: dict[str, Files] = field(default_factory=dict)
    token: str | None = None

    def revision(self, name: str) -> str | None:
        return next(reversed(self.commits), None) if name == "main" else name


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)  # models/o/n, datasets/o/n
    uploads: Files = field(default_factory=dict)  # by SHA-256
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # method and path
    busy: int = 0  # so many requests are answered by 429

    def commit(self, name: str, files: Mapping[str, bytes], token: str | None = None) -> str:
        """Add ``files`` to a repository, ``datasets/owner/name``; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(token=token))
        before = repository.commits[repository.revision("main") or ""] if repository.commits else {}
        content = {**before, **files}
        oid = hashlib.sha1(repr((len(repository.commits), sorted(content))).encode()).hexdigest()
        repository.commits[oid] = content
        return oid


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def serve(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        data = self.body()
        hub.requests[self.command, path] += 1
        if hub.busy:
            hub.busy -= 1
            self.answer(429, b"slow down")
        elif path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked.get('type', 'model')}s/{asked.get('organization')}/{asked['name']}"
            hub.repositories.setdefault(name, Repository())
            self.json({"url": f"{hub.url}/{asked.get('organization')}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(data)["objects"]
            actions = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/upload/{o['oid']}"}}}
                for o in objects
            ]
            self.json({"transfer": "basic", "objects": actions})
        elif match := re.fullmatch(r"/upload/(\w+)", path):
            hub.uploads[match[1]] = data
            self.answer(200)
        else:
            self.serve_repository(path, data)

    def serve_repository(self, path: str, data: bytes) -> None:
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/([\w-]+)(?:/(.*))?)?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        kind, owner_name = (file[1] or "models/", file[2]) if file else ("", "")
        name = api[1] if api else f"{kind}{owner_name}"
        repository = self.hub.repositories.get(name)
        allowed = repository and repository.token in (
            None,
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
        )
        if repository is None or not allowed:
            self.answer(401, b"{}", X_Error_Code="RepoNotFound")
            return
        if file:
            self.serve_file(repository, file[3], file[4])
            return
        assert api is not None
        action, rest = api[2], api[3] or ""
        if action == "preupload":
            files = json.loads(data)["files"]
            modes = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in files
            ]  # fmt: skip
            self.json({"files": modes})
        elif action == "commit":
            oid = self.hub.commit(name, dict(self.committed(data)))
            self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/x/{oid}"})
        else:
            self.serve_facts(repository, name, action, rest, data)

    def committed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                yield value["path"], self.hub.uploads[value["oid"]]

    def serve_facts(
        self, repository: Repository, name: str, action: str | None, rest: str, data: bytes
    ) -> None:
        revision, _, below = (rest or "main").partition("/")
        commit = repository.revision(revision)
        if commit not in repository.commits:
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        files = repository.commits[commit]
        if action == "tree":
            inside = {k: v for k, v in files.items() if not below or k.startswith(f"{below}/")}
            if not inside and below:
                self.answer(404, b"{}", X_Error_Code="EntryNotFound")
                return
            self.json(entries(inside, below))
        elif action == "paths-info":
            fields = parse_qs(data.decode())
            asked = fields.get("paths") or json.loads(data)["paths"]
            known = {entry["path"]: entry for entry in entries(files, "")}
            self.json([known[path] for path in asked if path in known])
        else:
            siblings = [{"rfilename": path} for path in files]
            owner_name = name.partition("/")[2]
            self.json({"id": owner_name, "_id": "0", "sha": commit, "siblings": siblings,
                       "private": False, "downloads": 0, "likes": 0, "tags": []})  # fmt: skip

    def serve_file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.revision(revision)
        files = repository.commits.get(commit or "")
        if files is None or path not in files:
            code = "RevisionNotFound" if files is None else "EntryNotFound"
            self.answer(404, b"", X_Error_Code=code)
            return
        content = files[path]
        headers = {"X_Repo_Commit": str(commit), "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                   "Accept_Ranges": "bytes", "X_Linked_Size": str(len(content))}  # fmt: skip
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self.answer(200, content, **headers)
            return
        start = int(wanted[1])
        end = min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], **headers)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815


def entries(files: Files, below: str) -> list[dict[str, Any]]:
    """Files and folders of a tree as the Hub lists them, at any depth."""
    folders = {
        "/".join(path.split("/")[:depth])
        for path in files
        for depth in range(1, path.count("/") + 1)
    }
    found = [
        {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
        for folder in sorted(folders)
        if folder != below and (not below or folder.startswith(f"{below}/"))
    ]
    return found + [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in files.items()
    ]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
