"""Refusals: why storage did not do what it was asked for, whichever client says so."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Literal

from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError

from segbatch.storage.clients import NoCredentials
from segbatch.storage.uris import scheme_of

# S3 error codes that speak of our credentials or clock, not of one object.
CREDENTIAL_CODES = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
     "SignatureDoesNotMatch", "TokenRefreshRequired"}
)  # fmt: skip

FailureKind = Literal[
    "not_found", "forbidden", "timeout", "unavailable", "too_large", "credentials"
]


@dataclass(frozen=True)
class Unreadable:
    """Why an object could not be read. ``credentials``: refused for every object alike."""

    kind: FailureKind
    message: str


def why_not(uri: str, error: Exception) -> Unreadable:
    """The kind of a storage client's exception; all of them say it in words of their own."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>|\((\w+)\) when calling", text)
    name = (code[1] or code[2]) if code else ""
    message = one_line(error)
    if (
        isinstance(error, UnauthenticatedError | NoCredentials)
        or name in CREDENTIAL_CODES
        or "status code: 401" in text
    ):
        return Unreadable("credentials", message)
    names_nothing = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENAMETOOLONG)
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if missing or names_nothing:
        return Unreadable("not_found", "no such object" if scheme_of(uri) else "no such file")
    if isinstance(error, PermissionDeniedError | PermissionError):
        hint = " (S3 says so for a missing key too, where listing is not allowed)"
        return Unreadable("forbidden", message + (hint if name == "AccessDenied" else ""))
    if isinstance(error, TimeoutError) or re.search("kind: Timeout|timeout on endpoint", text):
        return Unreadable("timeout", "no answer in time")
    if isinstance(error, ValueError | ImportError | InvalidPathError):
        return Unreadable("not_found", message)  # a URI that names nothing
    return Unreadable("unavailable", message)


def may_pass(why: Unreadable, error: Exception) -> bool:
    """Whether the same request may be answered in another way when it is made again."""
    if why.kind not in ("timeout", "unavailable"):
        return False
    status = re.search(r"status code: (4\d\d)", str(error))
    # 412 and 416: the rest of an object that is not what was announced; it starts over.
    return status is None or status[1] in ("408", "412", "416", "429")


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, without a client's debug dump or signed queries."""
    text = str(error).split("\n\nDebug source")[0]
    text = re.sub(r"\s*\x1b\[\d*m(↳\x1b\[0m)?", ":", text)  # deltalake's, which is coloured
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    text = re.sub(r" in \S+(, after .*?)? - ", ": ", text)
    answer = re.search(r"status code: (.*?):? ?(?:<\?xml.*?)?<Code>(\w+)</Code>", text, re.DOTALL)
    if answer:
        text = f"{answer[1].split(':')[0]}: {answer[2]}"
    return " ".join(text.split())[:300] or type(error).__name__


def as_os_error(uri: str, error: Exception) -> OSError:
    """One family of errors for what callers catch, whichever client raised it."""
    why = why_not(uri, error)
    if why.kind == "not_found" or "NoSuchBucket" in str(error):
        return FileNotFoundError(f"{uri}: {one_line(error)}")
    if why.kind in ("forbidden", "credentials"):
        return PermissionError(f"{uri}: {why.message}")
    return OSError(f"{uri}: {why.message}")
