"""Storage: every byte that is read or written goes through here.

A URI is a local path, ``file://…``, or ``scheme://…`` of anything that fsspec speaks. Two clients
stand behind it: obstore for s3, gs and az (and plain http urls), because it costs a tenth of the
CPU a request and lists millions of keys; fsspec for every other protocol, and for the few keys
that obstore does not take (``a//b``, ``..``, control characters).

S3 is set up by the standard variables alone (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
``AWS_PROFILE``, …), so MinIO, Ceph and R2 need no code.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fsspec
import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, ObjectStore, from_url

BULK_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https"})
HTTP_SCHEMES = frozenset({"http", "https"})
DELTA_SCHEMES = frozenset({"", "file", "s3", "s3a", "gs", "az", "abfs", "abfss"})

# One request of 8 MiB and more is sent in parts; below, one atomic PUT.
MULTIPART_BYTES = 64 << 20

# S3 error codes that speak of our credentials or clock, not of one object.
CREDENTIAL_CODES = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
     "SignatureDoesNotMatch", "TokenRefreshRequired"}
)  # fmt: skip

FailureKind = Literal[
    "not_found", "forbidden", "timeout", "unavailable", "too_large", "credentials"
]


@dataclass(frozen=True)
class ReadLimits:
    """Bounds of one bulk read: bytes an object, seconds a request, tries after the first."""

    max_bytes: int = 256_000_000
    timeout_s: float = 30.0
    retries: int = 5
    concurrency: int = 32


@dataclass(frozen=True)
class Unreadable:
    """Why an object could not be read. ``credentials``: refused for every object alike."""

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing: its URI and its size in bytes."""

    uri: str
    size: int


# ---------------------------------------------------------------------------------------- URIs


def scheme_of(uri: str) -> str:
    """Scheme in lower case, ``""`` for a local path; a Windows drive is not a scheme."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::[^/]*)?://", uri)
    return match[1].lower() if match else ""


def is_local(uri: str) -> bool:
    return scheme_of(uri) in ("", "file")


def local_path(uri: str) -> Path:
    """The path behind a local URI; ``~`` is the home folder."""
    return Path(uri.removeprefix("file://") if scheme_of(uri) == "file" else uri).expanduser()


def normalize(uri: str) -> str:
    """``uri`` without trailing slashes; a local one as an absolute path."""
    if is_local(uri):
        return str(local_path(uri).absolute())
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str) -> str:
    """Last part of the path."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def split_bucket(uri: str) -> tuple[str, str]:
    """``scheme://bucket`` and the key behind it, exactly as it stands there."""
    root, _, key = uri.partition("://")
    bucket, _, key = key.partition("/")
    return f"{root}://{bucket}", key


# ------------------------------------------------------------------------------------- clients


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of ``uri`` and the path in it."""
    options: dict[str, Any] = {}
    if scheme_of(uri) in ("s3", "s3a"):
        options = {"use_listings_cache": False, "anon": _unsigned()}
    return fsspec.core.url_to_fs(uri, **options)  # type: ignore[no-any-return]


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of ``uri`` and the path in it."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    if is_local(uri):
        return LocalFileSystem(), str(local_path(uri))
    fs, path = filesystem(uri)
    return PyFileSystem(FSSpecHandler(fs)), path


def delta_options(uri: str) -> dict[str, str]:
    """``storage_options`` for the deltalake package; the rest it takes from the environment."""
    plain_http = scheme_of(uri) in ("s3", "s3a") and _endpoint().startswith("http://")
    return {"AWS_ALLOW_HTTP": "true"} if plain_http else {}


@cache
def _store(root: str, timeout_s: float, retries: int) -> ObjectStore:
    """The obstore client of one bucket; kept, because it holds the connections."""
    return _open_store(root, timeout_s, retries)


def _open_store(root: str, timeout_s: float, retries: int) -> ObjectStore:
    kwargs: dict[str, Any] = {}
    allow_http = root.startswith("http://")
    if scheme_of(root) in ("s3", "s3a"):
        allow_http = _endpoint().startswith("http://")
        kwargs = _s3_options()
    # Not from_url for http: it takes apart the path, and https://….amazonaws.com for a bucket.
    return (HTTPStore if scheme_of(root) in HTTP_SCHEMES else from_url)(
        root,
        client_options={"allow_http": allow_http, "timeout": timedelta(seconds=timeout_s)},
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=timeout_s * (retries + 1)),
        },
        **kwargs,
    )


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _unsigned() -> bool:
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")


def _s3_options() -> dict[str, Any]:
    """What obstore does not find by itself: profiles, SSO and the region of the config file."""
    from botocore.session import Session

    session = Session()
    options: dict[str, Any] = {}
    region = session.get_config_variable("region")
    if region:
        options["region"] = region
    if _endpoint():
        options["endpoint"] = _endpoint()
    if _unsigned():
        options["skip_signature"] = True
    elif "AWS_ACCESS_KEY_ID" not in os.environ:
        credentials = session.get_credentials()
        if credentials is None:
            raise PermissionError(
                "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
                " AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        options["credential_provider"] = _CredentialsOf(credentials)
    return options


class _CredentialsOf:
    """botocore's credentials, which refresh themselves, in the form that obstore asks for."""

    def __init__(self, credentials: Any) -> None:
        self.credentials = credentials

    def __call__(self) -> dict[str, Any]:
        from datetime import UTC, datetime

        frozen = self.credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }


def _bulk_key(uri: str) -> str | None:
    """The key of ``uri`` if obstore takes it as it stands, else ``None``."""
    scheme = scheme_of(uri)
    if scheme not in BULK_SCHEMES:
        return None
    key = split_bucket(uri)[1]
    if scheme in HTTP_SCHEMES:
        # obstore encodes the path anew: only one without anything to encode is the same after.
        return key if re.fullmatch(r"[\w.~/-]+", key, re.ASCII) and "//" not in key else None
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f]", key):
        return None
    return key


def _bulk_client(uri: str, timeout_s: float, retries: int) -> tuple[ObjectStore, str] | None:
    """The obstore client for reading ``uri`` and the key to ask it for, or ``None``."""
    key = _bulk_key(uri)
    if key is not None:
        return _store(split_bucket(uri)[0], timeout_s, retries), key
    if scheme_of(uri) in HTTP_SCHEMES:
        # A client of this URL alone asks for it as it stands, query and escapes included. Not by
        # fsspec, which asks twice and takes a busy server's 503 for "not found".
        return _open_store(uri, timeout_s, retries), ""
    return None


# --------------------------------------------------------------------------------- bulk reading


def read_many(uris: Sequence[str], limits: ReadLimits) -> list[bytes | Unreadable]:
    """The bytes of each object, or why not, in the order of ``uris``.

    One GET an object and no HEAD, ``limits.concurrency`` at a time; what is transient is tried
    again with backoff and jitter. The length is looked at before the body is read. Raises nothing
    for what storage answers.
    """
    return asyncio.run(_read_many(uris, limits))


async def _read_many(uris: Sequence[str], limits: ReadLimits) -> list[bytes | Unreadable]:
    slots = asyncio.Semaphore(limits.concurrency)

    async def read(uri: str) -> bytes | Unreadable:
        async with slots:
            try:
                client = _bulk_client(uri, limits.timeout_s, limits.retries)
                if client is not None:
                    return await _read_bulk(*client, limits)
                return await asyncio.to_thread(_read_other, uri, limits)
            except Exception as error:
                return _why(uri, error)

    return list(await asyncio.gather(*(read(uri) for uri in uris)))


async def _read_bulk(store: ObjectStore, key: str, limits: ReadLimits) -> bytes | Unreadable:
    result = await obstore.get_async(store, key)
    size = result.meta["size"]
    if size > limits.max_bytes:
        return _too_large(size, limits)
    return bytes(await result.bytes_async())


def _read_other(uri: str, limits: ReadLimits) -> bytes | Unreadable:
    if is_local(uri):
        with local_path(uri).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _too_large(size, limits) if size > limits.max_bytes else file.read()
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as file:
        data: bytes = file.read(limits.max_bytes + 1)
    return _too_large(len(data), limits) if len(data) > limits.max_bytes else data


def _too_large(size: int, limits: ReadLimits) -> Unreadable:
    return Unreadable("too_large", f"{size:,} bytes; limits.max_bytes is {limits.max_bytes:,}")


def _why(uri: str, error: Exception) -> Unreadable:
    """The kind of a storage client's exception; all of them say it in words of their own."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>|\((\w+)\) when calling", text)
    name = (code[1] or code[2]) if code else ""
    message = one_line(error)
    if isinstance(error, UnauthenticatedError) or name in CREDENTIAL_CODES or "401" in message[:40]:
        return Unreadable("credentials", message)
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Unreadable("not_found", "no such object" if scheme_of(uri) else "no such file")
    if isinstance(error, PermissionDeniedError | PermissionError):
        hint = " (S3 says so for a missing key too, where listing is not allowed)"
        return Unreadable("forbidden", message + (hint if name == "AccessDenied" else ""))
    if isinstance(error, TimeoutError) or "kind: Timeout" in text:
        return Unreadable("timeout", "no answer in time")
    if isinstance(error, ValueError | ImportError | InvalidPathError):
        return Unreadable("not_found", message)  # a URI that names nothing
    return Unreadable("unavailable", message)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, without a client's debug dump or signed queries."""
    text = str(error).split("\n\nDebug source")[0]
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    answer = re.search(r"status code: (.*?):? ?(?:<\?xml.*?)?<Code>(\w+)</Code>", text, re.DOTALL)
    if answer:
        text = f"{answer[1].split(':')[0]}: {answer[2]}"
    return " ".join(text.split())[:300] or type(error).__name__


# ----------------------------------------------------------------------------------- small things


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises ``FileNotFoundError``, ``PermissionError`` or ``OSError``."""
    content = read_many([uri], ReadLimits(max_bytes=1 << 36, timeout_s=300))[0]
    if isinstance(content, bytes):
        return content
    raised: Mapping[str, type[OSError]] = {
        "not_found": FileNotFoundError,
        "forbidden": PermissionError,
        "credentials": PermissionError,
        "timeout": TimeoutError,
    }
    raise raised.get(content.kind, OSError)(f"{uri}: {content.message}")


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object: either all of it is seen under ``uri`` or what was there before.

    Raises ``PermissionError`` or ``OSError``.
    """
    if is_local(uri):
        _write_local(local_path(uri), data)
        return
    key = _bulk_key(uri)
    try:
        if key is None or scheme_of(uri) in HTTP_SCHEMES:
            fs, path = filesystem(uri)
            fs.pipe_file(path, data)
        else:
            store = _store(split_bucket(uri)[0], 300.0, 10)
            obstore.put(store, key, data, use_multipart=len(data) > MULTIPART_BYTES)
    except (ObstoreError, OSError, ValueError) as error:
        raise _as_os_error(uri, error) from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def exists(uri: str) -> bool:
    """Whether the object is there. Raises ``PermissionError`` or ``OSError``, never guesses."""
    if is_local(uri):
        return local_path(uri).exists()
    try:
        client = _bulk_client(uri, 60.0, 10)
        if client is None:
            fs, path = filesystem(uri)
            return bool(fs.exists(path))
        obstore.head(*client)
    except FileNotFoundError:
        return False
    except (ObstoreError, OSError, ValueError) as error:
        raise _as_os_error(uri, error) from error
    return True


def list_files(folder: str) -> Iterator[StoredFile]:
    """All files below ``folder``, at any depth, by key; nothing where there is no such folder.

    Raises ``FileNotFoundError`` for a missing bucket, ``PermissionError`` or ``OSError``.
    """
    if is_local(folder):
        yield from _list_local(local_path(folder))
        return
    root, prefix = split_bucket(folder)
    last = ""
    try:
        if scheme_of(folder) in BULK_SCHEMES - HTTP_SCHEMES:
            try:
                for chunk in obstore.list(_store(root, 60.0, 10), prefix.rstrip("/") or None):
                    for entry in chunk:
                        last = f"{root}/{entry['path']}"
                        yield StoredFile(last, entry["size"])
                return
            except InvalidPathError:
                pass  # one key that obstore does not take ends its listing: fsspec goes on
        yield from (file for file in _list_other(folder) if file.uri > last)
    except (ObstoreError, OSError, ValueError, NotImplementedError) as error:
        raise _as_os_error(folder, error) from error


def _list_local(folder: Path) -> Iterator[StoredFile]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    # By key, as object storage lists: a folder stands where its files' keys do.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir()):
        if entry.is_dir():
            yield from _list_local(Path(entry.path))
        elif entry.is_file():
            yield StoredFile(entry.path, entry.stat().st_size)


def _list_other(folder: str) -> Iterator[StoredFile]:
    fs, path = filesystem(folder)
    for name, info in fs.find(path, detail=True).items():
        yield StoredFile(fs.unstrip_protocol(name), info["size"])


def delete(uris: Iterable[str]) -> None:
    """Delete objects; one that is not there is no error. Raises ``OSError``."""
    for uri in uris:
        try:
            if is_local(uri):
                local_path(uri).unlink(missing_ok=True)
            elif (key := _bulk_key(uri)) is not None:
                obstore.delete(_store(split_bucket(uri)[0], 60.0, 10), key)
            else:
                fs, path = filesystem(uri)
                fs.rm_file(path)
        except FileNotFoundError:
            continue
        except (ObstoreError, ValueError) as error:
            raise _as_os_error(uri, error) from error


def _as_os_error(uri: str, error: Exception) -> OSError:
    """One family of errors for what callers catch, whichever client raised it."""
    why = _why(uri, error)
    if why.kind == "not_found" or "NoSuchBucket" in str(error):
        return FileNotFoundError(f"{uri}: {one_line(error)}")
    if why.kind in ("forbidden", "credentials"):
        return PermissionError(f"{uri}: {why.message}")
    return OSError(f"{uri}: {why.message}")
