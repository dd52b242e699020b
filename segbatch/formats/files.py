"""Image files: where the image is that labels call by a relative path, or by a path of another
machine.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.masks.classes import CONTROL


class ImageFiles:
    """The files ``uris`` below ``folder``, or those below ``root`` where the user names one."""

    def __init__(self, folder: str, uris: Iterable[str], root: str | None) -> None:
        self._folder = folder
        self._root = storage.normalize(root) if root is not None else None
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for uri in uris if self._root is None else list_uris(self._root):
            self._by_name[storage.name_of(uri)].append(uri)

    def locate(self, path: str, labels_uri: str) -> str:
        """The URI of the image that the file ``labels_uri`` calls ``path``.

        It is where the path leads from the root, or else from the folder of ``labels_uri``. Where
        there is nothing, it is the one file below the root, below that folder, or else below the
        folder above it, whose own path ends so and which is in no folder of another split. Of a
        path that leads out of its folder, only the name has to be the same. What is found nowhere
        is where the path leads. Raises ``ValueError`` where there are several such files.
        """
        if storage.scheme_of(path):
            return path
        path = posixpath.normpath(path.replace("\\", "/"))
        goal = self._follow(path, labels_uri)
        same_name = self._by_name.get(storage.name_of(path), [])
        if goal in same_name:
            return goal
        leads_out = path.startswith(("../", "/")) or path[1:3] == ":/"
        end = f"/{storage.name_of(path) if leads_out else path}"
        own = folder_of(labels_uri)
        for place in [own, folder_of(own)] if self._root is None else [self._root]:
            same = [uri for uri in same_name if uri.startswith(f"{place}/") and uri.endswith(end)]
            same = self._of_split(self.split_of(labels_uri), same)
            if len(same) > 1:
                raise ValueError(
                    f"{path} may be {same[0]} or {same[1]}: name the folder that it starts from"
                    " with --images"
                )
            if same:
                return same[0]
        return goal

    @cached_property
    def own_uris(self) -> dict[str, str]:
        """The URIs of the images that ``labels suggest`` copied here, by those of the copies."""
        return {
            storage.join(folder_of(listed), name): uri
            for listed in self._by_name.get(LIST, [])
            for name, uri in listed_uris(read_bytes(listed)).items()
        }

    def split_of(self, uri: str) -> str | None:
        """The split that a path below the folder, or the folder's own name, speaks of."""
        root = self._root if self._root and uri.startswith(f"{self._root}/") else self._folder
        return split_in(f"{storage.name_of(root)}{uri.removeprefix(root)}")

    def _of_split(self, split: str | None, uris: list[str]) -> list[str]:
        """Those in a folder of the split, else those that are in none; all, where it is unknown."""
        if split is None:
            return uris
        splits = {uri: self.split_of(f"{folder_of(uri)}/") for uri in uris}
        of_split = [uri for uri in uris if splits[uri] == split]
        return of_split or [uri for uri in uris if splits[uri] is None]

    def _follow(self, path: str, labels_uri: str) -> str:
        if self._root is None and path.startswith("/"):
            return path
        folder = self._root or folder_of(labels_uri)
        while path.startswith("../"):
            folder, path = folder_of(folder), path.removeprefix("../")
        return storage.join(folder, path)


# Layout: the files below a folder of labels, and the splits that their names speak of.


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


# Provenance: which image a copy that was made for labelling is one of.
#
# ``segbatch labels suggest`` copies images into a folder. Corrected labels go back under the
# image's own URI, so that its split is the one that the image always has, and nothing is labelled
# twice: each labelme file carries it in :data:`KEY`, and the folder's list has it for tools that
# keep no key of ours (CVAT).


# A key beside those of labelme, which keeps such as they are when it saves (`otherData`); it would
# take a dictionary in `flags` for a box that is ticked.
KEY = "segbatch"


LIST = "suggested.csv"


MAX_URI = 4096


def own_uri(content: Mapping[str, Any]) -> str | None:
    """The URI of the image that the labels in a labelme file are for; ``None`` if it says none."""
    provenance = content.get(KEY)
    uri = provenance.get("uri") if isinstance(provenance, dict) else None
    return uri if _is_uri(uri) else None


def listed_uris(data: bytes) -> dict[str, str]:
    """The images' own URIs by the names of their copies, of a folder's list.

    What is no such list, or no line of one, has none.
    """
    rows = csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline=""))
    return {row["file"]: row["uri"] for row in rows if row.get("file") and _is_uri(row.get("uri"))}


def _is_uri(uri: Any) -> bool:
    return isinstance(uri, str) and 0 < len(uri) <= MAX_URI and not CONTROL.search(uri)
