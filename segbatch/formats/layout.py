"""Layout: the files below a folder of labels, and the splits that their names speak of."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

from segbatch import storage
from segbatch.errors import SourceError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_of(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for a word like ``valid`` or ``Train2017``."""
    return SPLIT_WORDS.get(word.lower().rstrip("0123456789"))


def split_in(path: str) -> str | None:
    """The split that a file's path speaks of: a word of its name, or else a whole folder's name,
    the innermost first.
    """
    *folders, name = path.split("/")
    words = [*folders, *re.split(r"[\W_]+", name)]
    return next((split for word in reversed(words) if (split := split_of(word))), None)


def folder_of(uri: str) -> str:
    return uri.rpartition("/")[0]


def without_extension(path: str) -> str:
    return re.sub(r"\.[^./]*$", "", path)


def list_uris(folder: str) -> list[str]:
    """The URIs of all files below ``folder``, by key, without hidden ones (``._a.json`` and the
    like, which archives made on a Mac are full of).

    Raises :class:`~segbatch.errors.SourceError` for a missing bucket or one that may not be
    listed, and :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    with _reading(folder):
        uris = (file.uri for file in storage.list_files(folder))
        return [uri for uri in uris if not storage.name_of(uri).startswith(".")]


def read_bytes(uri: str) -> bytes:
    """A file that the labels cannot do without. Raises as :func:`list_uris`."""
    with _reading(uri):
        return storage.read_bytes(uri)


def read_lines(uri: str) -> list[str]:
    """The lines of a text file in UTF-8, without the space around them. Raises as
    :func:`list_uris`.
    """
    try:
        text = read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri}: is no text in UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines()]


def _reading(uri: str) -> AbstractContextManager[None]:
    return storage.reading_input(uri, SourceError, "no such file, folder or bucket")
