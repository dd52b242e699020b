"""Clients: what stands behind storage, set up by the standard variables alone.

obstore for s3, gs, az and http, because it costs a tenth of the CPU a request and lists millions of
keys; fsspec for every other protocol, and for the few keys that obstore does not take (``a//b``,
``..``, control characters). ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` and their
like mean what they mean everywhere, so MinIO, Ceph and R2 need no code.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import fsspec
from obstore.store import HTTPStore, ObjectStore, from_url

from segbatch.storage.uris import HTTP_SCHEMES, OBJECT_SCHEMES, is_local, scheme_of, split_bucket

# Of small things; bulk reads have limits of their own. Ten tries outlast a minute without answers.
TIMEOUT_S = 60.0
RETRIES = 10
BACKOFF_S = 0.2
BACKOFF_FACTOR = 4
MAX_BACKOFF_S = 20.0


class NoCredentials(PermissionError):
    """There are none to be found on this machine, for whatever object."""


def filesystem(uri: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> tuple[Any, str]:
    """The fsspec filesystem of ``uri`` and the path in it."""
    if scheme_of(uri) not in ("s3", "s3a"):
        return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]
    config = {
        "connect_timeout": timeout_s,
        "read_timeout": timeout_s,
        "retries": {"mode": "standard", "total_max_attempts": retries + 1},
    }
    fs, path = fsspec.core.url_to_fs(
        uri,
        endpoint_url=_endpoint()
        or None,  # said, since fsspec keeps a filesystem by what it is told
        use_listings_cache=False,
        anon=_unsigned(),
        config_kwargs=config,
    )
    fs.retries = 1  # s3fs tries again what botocore tried again: 25 requests where 5 were meant
    return fs, path


def delta_options(uri: str) -> dict[str, str]:
    """``storage_options`` for the deltalake package; the rest it takes from the environment."""
    if is_local(uri):
        return {}
    options = {
        "timeout": f"{TIMEOUT_S:.0f}s",
        "max_retries": str(RETRIES),
        "retry_timeout": f"{_seconds_in_all(TIMEOUT_S, RETRIES):.0f}s",
        "backoff_config.init_backoff": f"{1000 * BACKOFF_S:.0f}ms",
        "backoff_config.max_backoff": f"{MAX_BACKOFF_S:.0f}s",
        "backoff_config.base": str(BACKOFF_FACTOR),
    }
    if scheme_of(uri) in ("s3", "s3a") and _endpoint().startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    return options


def waits(retries: int) -> Iterator[float]:
    """Seconds to wait before each further try: longer and longer, and never all at once."""
    for number in range(retries):
        yield min(MAX_BACKOFF_S, BACKOFF_S * BACKOFF_FACTOR**number) * random.uniform(0.5, 1.5)


def _seconds_in_all(timeout_s: float, retries: int) -> float:
    return timeout_s * (retries + 1) + MAX_BACKOFF_S * retries


def bucket_client(root: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> ObjectStore:
    """The obstore client of one bucket, ``scheme://bucket``; kept, as it holds the connections."""
    return _kept(root, timeout_s, retries, _endpoint())


@cache
def _kept(root: str, timeout_s: float, retries: int, endpoint: str) -> ObjectStore:
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
            "retry_timeout": timedelta(seconds=_seconds_in_all(timeout_s, retries)),
            "backoff": {
                "init_backoff": timedelta(seconds=BACKOFF_S),
                "max_backoff": timedelta(seconds=MAX_BACKOFF_S),
                "base": BACKOFF_FACTOR,
            },
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
            raise NoCredentials(
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
    if scheme not in OBJECT_SCHEMES | HTTP_SCHEMES:
        return None
    key = split_bucket(uri)[1]
    if scheme in HTTP_SCHEMES:
        # obstore encodes the path anew: only one without anything to encode is the same after.
        return key if re.fullmatch(r"[\w.~/-]+", key, re.ASCII) and "//" not in key else None
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f]", key):
        return None
    return key


def bulk_client(
    uri: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
) -> tuple[ObjectStore, str] | None:
    """The obstore client of ``uri`` and the key to ask it for; ``None`` where fsspec has to."""
    key = _bulk_key(uri)
    if key is not None:
        return bucket_client(split_bucket(uri)[0], timeout_s, retries), key
    if scheme_of(uri) in HTTP_SCHEMES:
        # A client of this URL alone asks for it as it stands, query and escapes included. Not by
        # fsspec, which asks twice and takes a busy server's 503 for "not found".
        return _open_store(uri, timeout_s, retries), ""
    return None
