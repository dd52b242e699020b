"""Why storage failed: one classification for the errors of all clients, and their messages.

obstore, fsspec, botocore and the local disk each raise exceptions of their own. :func:`classify`
says what kind of failure one is, :func:`as_os_error` makes it an ``OSError``, and
:func:`translate_errors` makes that an error for users, with an exit code.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError

from segbatch.errors import Incomplete, InputError, SegbatchError
from segbatch.storage.uris import scheme_of

# S3 error codes about our credentials or clock, not about one object.
CREDENTIAL_CODES = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
     "SignatureDoesNotMatch", "TokenRefreshRequired"}
)  # fmt: skip

# HTTP statuses from 400 to 499 that a repeated request may not get again. 412 and 416: the rest of
# an object does not fit what was announced, so the download starts over.
TRANSIENT_STATUSES = ("408", "412", "416", "429")

# Something is missing, forbidden, or in the way of what the user asked for.
REFUSALS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)

FailureKind = Literal[
    "not_found", "forbidden", "timeout", "unavailable", "too_large", "credentials"
]

# The storage refuses us for every object. No image is to blame: the driver stops the run.
REFUSED_CREDENTIALS: Final = "credentials"


class NoCredentials(PermissionError):
    """This machine has no credentials for the storage, or ones that it refuses for every object."""


class TooLarge(Exception):
    """The object has more bytes than the limit."""


class Replaced(Exception):
    """The object is another one than was listed."""


@dataclass(frozen=True)
class Unreadable:
    """Why an object could not be read."""

    kind: FailureKind
    message: str
    transient: bool = False
    """Whether the same request may succeed when it is repeated."""

    def as_os_error(self, uri: str) -> OSError:
        """The ``OSError`` to raise for this failure."""
        if self.kind == "not_found":
            return FileNotFoundError(f"{uri}: {self.message}")
        if self.kind == REFUSED_CREDENTIALS:
            return NoCredentials(f"{uri}: {self.message}")
        if self.kind == "forbidden":
            return PermissionError(f"{uri}: {self.message}")
        return OSError(f"{uri}: {self.message}")


REPLACED = Unreadable(
    "not_found",
    "the file was replaced since the images were listed, and may hold others: choose a new output",
)


def classify(uri: str, error: Exception) -> Unreadable:
    """What kind of failure a storage client's exception is."""
    text, message = str(error), one_line(error)
    found = re.search(r"<Code>(\w+)</Code>|\((\w+)\) when calling", text)
    code = (found[1] or found[2]) if found else ""
    is_missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    names_nothing = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENAMETOOLONG)
    kind: FailureKind = "unavailable"
    if isinstance(error, TooLarge):
        kind = "too_large"
    elif isinstance(error, Replaced):
        return REPLACED
    elif (
        isinstance(error, UnauthenticatedError | NoCredentials)
        or code in CREDENTIAL_CODES
        or "status code: 401" in text
    ):
        kind = REFUSED_CREDENTIALS
    elif code == "NoSuchBucket":
        kind, message = "not_found", "no such bucket"
    elif is_missing or names_nothing:
        kind, message = "not_found", "no such object" if scheme_of(uri) else _no_such_file(uri)
    elif isinstance(error, PermissionDeniedError | PermissionError):
        kind = "forbidden"
        if code == "AccessDenied":
            message += " (S3 answers so for a missing key too, where listing is not allowed)"
    elif isinstance(error, TimeoutError) or re.search("kind: Timeout|timeout on endpoint", text):
        kind, message = "timeout", "no answer in time"
    elif isinstance(error, ValueError | ImportError | InvalidPathError):
        kind = "not_found"  # no valid URI, or an unknown protocol
    status = re.search(r"status code: (4\d\d)", text)
    is_transient = status is None or status[1] in TRANSIENT_STATUSES
    return Unreadable(kind, message, kind in ("timeout", "unavailable") and is_transient)


def has_no_length(error: Exception) -> bool:
    """Whether an answer does not say how long it is, which obstore needs to know."""
    return "Content-Length Header missing" in str(error)


def is_behind_the_end(error: Exception) -> bool:
    """Whether storage says that a range begins behind the end of its object."""
    return "status code: 416" in str(error)


def _no_such_file(path: str) -> str:
    """A relative path is looked for in the current folder, which may not be the user's."""
    return (
        "no such file" if path.startswith(("/", "~", "file:")) else f"no such file in {Path.cwd()}"
    )


def as_os_error(uri: str, error: Exception) -> OSError:
    """The ``OSError`` to raise in the place of a storage client's exception."""
    return classify(uri, error).as_os_error(uri)


@contextmanager
def translate_errors(action: str, refused: type[SegbatchError] = Incomplete) -> Iterator[None]:
    """Turn every ``OSError`` of storage in the block into an error for users.

    That is ``refused`` where something is missing, forbidden or in the way, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer. The message is ``action``
    (``cannot read run``), followed by the ``OSError``'s own.
    """
    try:
        yield
    except OSError as error:
        raised = refused if isinstance(error, REFUSALS) else Incomplete
        advice = "; run it again" if raised is Incomplete else ""
        raise raised(f"{action} {one_line(error)}{advice}") from error


@contextmanager
def reading_input(uri: str, wrong: type[InputError], missing: str) -> Iterator[None]:
    """:func:`translate_errors` for reading what a user named.

    Raises ``wrong`` where it is ``missing`` or forbidden.
    """
    with translate_errors("cannot read", wrong):
        try:
            yield
        except FileNotFoundError as error:
            raise wrong(f"{uri}: {missing}") from error


def one_line(error: BaseException) -> str:
    """An exception's message on one line, without a client's debug dump and signed queries."""
    text = str(error).split("\n\nDebug source")[0]
    text = re.sub(r"\s*\x1b\[\d*m(↳\x1b\[0m)?", ":", text)  # deltalake's messages are coloured
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    text = re.sub(r" in \S+(, after .*?)? - ", ": ", text)
    answer = re.search(r"status code: (.*?):? ?(?:<\?xml.*?)?<Code>(\w+)</Code>", text, re.DOTALL)
    if answer:
        text = f"{answer[1].split(':')[0]}: {answer[2]}"
    return " ".join(text.split())[:300] or type(error).__name__
