"""Parses URIs: a local path, ``file://…``, or ``scheme://…`` of any protocol that fsspec knows."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote, unquote

HTTP_SCHEMES = frozenset({"http", "https"})
OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss"})
DELTA_SCHEMES = OBJECT_SCHEMES | {"", "file"}


def scheme_of(uri: str) -> str:
    """Scheme in lower case, ``""`` for a local path; a Windows drive is not a scheme."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::[^/]*)?://", uri)
    return match[1].lower() if match else ""


def corrected(uri: str) -> str | None:
    """A suggestion for a mistyped location; ``None`` where nothing is wrong.

    Finds ``s3:/bucket``, ``S3://bucket`` and ``file://bucket``.
    """
    match = re.match(r"(s3a?|gs|az|abfss?|https?|file)(:/*|//+)(.*)", uri, re.I | re.S)
    if match is None or uri.startswith(("file:///", "file://~")):
        return None
    scheme, separator, path = match[1].lower(), match[2], match[3]
    if scheme == "file" and separator == "://":
        return f"s3://{path} or file:///{path}"
    right = f"{scheme}://{'/' if scheme == 'file' else ''}{path}"
    return right if right != uri else None


def is_inside(uri: str, folder: str) -> bool:
    """Whether ``uri`` is ``folder`` or lies below it."""
    inner, outer = (
        posixpath.normpath(normalize(u)) if is_local(u) else normalize(u) for u in (uri, folder)
    )
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def is_local(uri: str) -> bool:
    return scheme_of(uri) in ("", "file")


def local_path(uri: str) -> Path:
    """The path behind a local URI; ``~`` is the home folder, and ``~name`` that of a user, if there
    is one.

    ``file:///a%20b.jpg`` is ``/a b.jpg``, unless there is a file of the name as it is written.
    Java and Spark write ``file:/a.jpg``.
    """
    plain = re.sub(r"^file:(//localhost(?=/)|//|(?=/))", "", uri)
    path = Path(os.path.expanduser(plain))
    if plain == uri:
        return path
    if "%" in uri and not os.path.lexists(path):
        return Path(unquote(str(path), errors="surrogateescape"))
    return path


def existing_path(uri: str) -> Path:
    """:func:`local_path`, to read what is there: each of its parts may have another Unicode form on
    disk (macOS decomposes names).
    """
    path = local_path(uri)
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path()
    for part in path.parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        there = next((found / form for form in forms if os.path.lexists(found / form)), None)
        if there is None:
            return path
        found = there
    return found


def local_uri(path: str) -> str:
    """The URI of a local path: itself, or ``file://`` with escapes if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"file://{quote(os.fsencode(path))}"
    return path


def path_below(uri: str, folder: str) -> str:
    """The path of ``uri`` relative to ``folder``, below which a listing found it; bytes of a name
    that are not UTF-8 are replaced.
    """
    if is_local(folder) and (scheme_of(uri) or not uri.startswith(f"{folder.rstrip('/')}/")):
        uri, folder = normalize(uri), normalize(folder)
    below = uri.removeprefix(folder).lstrip("/")
    return below.encode(errors="surrogateescape").decode(errors="replace")


def normalize(uri: str) -> str:
    """``uri`` without trailing slashes; a local one as an absolute path."""
    if is_local(uri):
        return str(local_path(uri).absolute())
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str) -> str:
    """The last part of the path."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def without_query(uri: str) -> str:
    """``uri`` for messages and file names: the query of a web address may be a signature."""
    return uri.partition("?")[0] if scheme_of(uri) in HTTP_SCHEMES else uri


def split_bucket(uri: str) -> tuple[str, str]:
    """``scheme://bucket`` and the key after it, unchanged."""
    root, _, key = uri.partition("://")
    bucket, _, key = key.partition("/")
    return f"{root}://{bucket}", key
