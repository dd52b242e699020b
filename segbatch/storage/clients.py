"""The storage clients, configured by the standard environment variables alone.

obstore serves s3, gs, az and http: a request costs a tenth of the CPU time, and it lists millions
of keys. fsspec serves every other protocol, and the few keys that obstore does not accept
(``a//b``, ``..``, control characters). ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``
and the others have their usual meaning, so MinIO, Ceph and R2 need no code.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

import fsspec
from obstore.store import HTTPStore, ObjectStore, from_url

from segbatch.errors import InputError
from segbatch.storage import hub, labelstudio
from segbatch.storage.failures import NoCredentials
from segbatch.storage.uris import HTTP_SCHEMES, OBJECT_SCHEMES, is_local, scheme_of, split_bucket

# For single requests; reading many objects has limits of its own. Ten retries outlast an outage of
# one minute.
TIMEOUT_S = 60.0
RETRIES = 10
BACKOFF_S = 0.2
BACKOFF_FACTOR = 4
MAX_BACKOFF_S = 20.0
JITTER = 0.5  # share of a wait by which it varies

# Extras of pyproject.toml with the fsspec filesystem of a scheme; that of s3 is always there.
EXTRAS = {"gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

MAX_SITES = 256  # web servers whose connections are kept: a list of images may name any number

Headers = tuple[tuple[str, str], ...]
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class MissingExtra(InputError, ImportError):
    """A location needs an extra of segbatch that is not installed."""


def require_extra(uri: str) -> None:
    """Check that the extra is installed which queries and statistics of ``uri`` need.

    obstore alone reads images and writes results. Raises :class:`MissingExtra`.
    """
    scheme = scheme_of(uri)
    if scheme not in EXTRAS:
        return
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:  # fsspec knows abfss from adlfs alone
        extra = EXTRAS[scheme]
        raise MissingExtra(
            f"{scheme}:// needs the extra {extra}: pip install 'segbatch[{extra}]'"
        ) from error


def retry_waits(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry: exponential backoff with jitter."""
    for number in range(retries):
        yield _backoff_s(number) * random.uniform(1 - JITTER, 1 + JITTER)


def longest_waits_s(retries: int) -> float:
    """The most that the waits of :func:`retry_waits` take together, in seconds."""
    return (1 + JITTER) * sum(map(_backoff_s, range(retries)))


def _backoff_s(number: int) -> float:
    return float(min(MAX_BACKOFF_S, BACKOFF_S * BACKOFF_FACTOR**number))


def obstore_client(
    uri: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
) -> tuple[ObjectStore, str] | None:
    """The obstore client of ``uri`` and the key in it; ``None`` where fsspec has to serve it."""
    scheme = scheme_of(uri)
    if scheme in HTTP_SCHEMES:
        return _web_client(uri, timeout_s, retries)
    root, key = split_bucket(uri)
    odd_key = not {"", ".", ".."}.isdisjoint(key.split("/")) or CONTROL.search(key)
    if scheme not in OBJECT_SCHEMES or odd_key:
        return None
    return bucket_client(root, timeout_s, retries), key


def reading_client(uri: str, timeout_s: float, retries: int) -> tuple[ObjectStore, str] | None:
    """A client that only reads, as :func:`obstore_client` gives one for reading and writing.

    It also reads files on the Hugging Face Hub and on the user's own Label Studio.
    """
    if hub.is_on_hub(uri):
        headers = tuple(sorted(hub.headers().items()))
        return _web_client(hub.file_url(uri), timeout_s, retries, headers)
    if found := labelstudio.headers(uri):
        return _web_client(uri, timeout_s, retries, tuple(found.items()))
    return obstore_client(uri, timeout_s, retries)


def _web_client(
    url: str, timeout_s: float, retries: int, headers: Headers = ()
) -> tuple[ObjectStore, str]:
    # obstore percent-encodes the path again. Only a path without special characters survives; any
    # other URL gets a client of its own, whose root keeps query and escapes as they are. fsspec is
    # no way out: it asks twice and reports a busy server's 503 as "not found".
    root, key = split_bucket(url)
    if re.fullmatch(r"[\w.~/-]+", key, re.ASCII) and "//" not in key:
        return _cached_site(root, timeout_s, retries, headers), key
    return _open_store(url, timeout_s, retries, headers), ""


def bucket_client(root: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> ObjectStore:
    """The obstore client of one bucket, ``scheme://bucket``; cached, as it holds connections."""
    return _cached_store(root, timeout_s, retries, s3_endpoint())


def filesystem(uri: str, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> tuple[Any, str]:
    """The fsspec filesystem of ``uri`` and the path in it. Raises :class:`MissingExtra`."""
    require_extra(uri)
    if hub.is_on_hub(uri):
        return fsspec.core.url_to_fs(uri, endpoint=hub.endpoint())  # type: ignore[no-any-return]
    if scheme_of(uri) not in ("s3", "s3a"):
        return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]
    config = {
        "connect_timeout": timeout_s,
        "read_timeout": timeout_s,
        "retries": {"mode": "standard", "total_max_attempts": retries + 1},
    }
    fs, path = fsspec.core.url_to_fs(
        uri,
        endpoint_url=s3_endpoint() or None,  # explicit, as fsspec caches filesystems by arguments
        use_listings_cache=False,
        anon=is_unsigned(),
        config_kwargs=config,
    )
    fs.retries = 1  # otherwise s3fs retries what botocore has retried: 25 requests instead of 5
    return fs, path


def delta_options(uri: str) -> dict[str, str]:
    """``storage_options`` for the deltalake package, which reads the rest from the environment."""
    if is_local(uri):
        return {}
    options = {
        "timeout": f"{TIMEOUT_S:.0f}s",
        "max_retries": str(RETRIES),
        "retry_timeout": f"{_total_timeout_s(TIMEOUT_S, RETRIES):.0f}s",
        "backoff_config.init_backoff": f"{1000 * BACKOFF_S:.0f}ms",
        "backoff_config.max_backoff": f"{MAX_BACKOFF_S:.0f}s",
        "backoff_config.base": str(BACKOFF_FACTOR),
    }
    if scheme_of(uri) in ("s3", "s3a") and s3_endpoint().startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    return options


def _total_timeout_s(timeout_s: float, retries: int) -> float:
    """Upper bound of a request with all its retries, in seconds."""
    return timeout_s * (retries + 1) + MAX_BACKOFF_S * retries


@cache
def _cached_store(root: str, timeout_s: float, retries: int, endpoint: str) -> ObjectStore:
    return _open_store(root, timeout_s, retries)


@lru_cache(maxsize=MAX_SITES)
def _cached_site(root: str, timeout_s: float, retries: int, headers: Headers) -> ObjectStore:
    return _open_store(root, timeout_s, retries, headers)


def _open_store(root: str, timeout_s: float, retries: int, headers: Headers = ()) -> ObjectStore:
    kwargs: dict[str, Any] = {}
    allow_http = root.startswith("http://")
    if scheme_of(root) in ("s3", "s3a"):
        allow_http = s3_endpoint().startswith("http://")
        kwargs = _s3_options()
    client_options: Any = {"allow_http": allow_http, "timeout": timedelta(seconds=timeout_s)}
    if headers:
        client_options["default_headers"] = dict(headers)
    # Not from_url for http: it splits the path and takes https://….amazonaws.com for a bucket.
    return (HTTPStore if scheme_of(root) in HTTP_SCHEMES else from_url)(
        root,
        client_options=client_options,
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=_total_timeout_s(timeout_s, retries)),
            "backoff": {
                "init_backoff": timedelta(seconds=BACKOFF_S),
                "max_backoff": timedelta(seconds=MAX_BACKOFF_S),
                "base": BACKOFF_FACTOR,
            },
        },
        **kwargs,
    )


def s3_endpoint() -> str:
    """The URL that S3 is reached at; empty for AWS's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def is_unsigned() -> bool:
    """Whether requests to S3 are sent without credentials."""
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")


def _s3_options() -> dict[str, Any]:
    """Settings that obstore does not find itself: profiles, SSO, the config file's region."""
    from botocore.session import Session

    session = Session()
    options: dict[str, Any] = {}
    region = session.get_config_variable("region")
    if region:
        options["region"] = region
    if s3_endpoint():
        options["endpoint"] = s3_endpoint()
    if is_unsigned():
        options["skip_signature"] = True
    elif "AWS_ACCESS_KEY_ID" not in os.environ:
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentials(
                "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
                " AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        options["credential_provider"] = _provider_of(credentials)
    return options


def _provider_of(credentials: Any) -> Callable[[], dict[str, Any]]:
    """A credential provider for obstore over botocore's credentials, which refresh themselves."""

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    return provide
