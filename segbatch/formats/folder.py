"""A folder of labels: its files, the splits that their paths name, and the images they belong to.

``segbatch labels suggest`` copies images of a run into a folder to be labelled. Corrected labels go
back under the URI of the original image, so that it keeps its split and nothing is labelled twice.
The labels of an image hold that URI under :data:`PROVENANCE_KEY`; for tools that drop keys of
others (CVAT), the folder has a list of its copies, :data:`COPIES_LIST`, too.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS
from segbatch.errors import Incomplete, SourceError
from segbatch.formats.format import Skipped
from segbatch.formats.photo import LIMITS, ONE_FILE_FAILURES
from segbatch.masks.classes import CONTROL

# labelme keeps unknown keys when it saves (`otherData`); a dictionary in `flags` would become a
# checkbox.
PROVENANCE_KEY = "segbatch"
COPIES_LIST = "suggested.csv"
MAX_URI = 4096
COPY_DIGEST = re.compile(r"-([0-9a-f]{8})(\.\w+)?$")
CHUNK = 32  # files read at once; with images in them, each has megabytes

# Label Studio's COCO puts the number of the project in the path of an image, not of its file.
LABEL_STUDIO = re.compile(r"^images/\d+/")

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


# -------------------------------------------------------------------------------------------- files


def list_uris(folder: str) -> list[str]:
    """The URIs of all files below ``folder``, by key, without system files.

    Raises :class:`~segbatch.errors.SourceError` for a missing bucket or one that may not be
    listed, and :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    with _reading(folder):
        uris = (file.uri for file in storage.list_files(folder))
        files = storage.SystemFiles().left_out(uris, partial(storage.path_below, folder=folder))
        return list(files)


def read_label_file(uri: str) -> bytes:
    """The bytes of a file that the import cannot do without. Raises as :func:`list_uris`."""
    with _reading(uri):
        return storage.read_bytes(uri)


def read_label_files(uris: Sequence[str]) -> Iterator[tuple[str, bytes | Skipped]]:
    """The URI and the bytes of each file, or why it is left out; holds 32 at a time.

    Raises :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    for start in range(0, len(uris), CHUNK):
        chunk = uris[start : start + CHUNK]
        for uri, data in zip(chunk, storage.read_many(chunk, LIMITS), strict=True):
            if isinstance(data, bytes):
                yield uri, data
            elif data.kind in ONE_FILE_FAILURES:
                yield uri, Skipped(uri, f"cannot be read: {data.message}")
            else:
                raise Incomplete(f"{uri}: cannot be read: {data.message}")


def read_lines(uri: str) -> list[str]:
    """The lines of a text file, each as :func:`~segbatch.storage.text.clean_name` gives it.

    Raises as :func:`list_uris`.
    """
    text = storage.decode_text(read_label_file(uri), uri, SourceError)
    return [storage.clean_name(line) for line in text.split("\n")]


def _reading(uri: str) -> AbstractContextManager[None]:
    return storage.reading_input(uri, SourceError, "no such file, folder or bucket")


def folder_of(uri: str) -> str:
    """The URI of the folder that holds ``uri``."""
    return uri.rpartition("/")[0]


def is_image(uri: str) -> bool:
    """Whether a file has the extension of an image."""
    return posixpath.splitext(uri)[1].lower().removeprefix(".") in IMAGE_EXTENSIONS


def without_extension(path: str) -> str:
    """``path`` without the last extension of its name."""
    return re.sub(r"\.[^./]*$", "", path)


# ------------------------------------------------------------------------------------------- splits


def split_of_word(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for a word like ``valid`` or ``Train2017``."""
    return SPLIT_WORDS.get(word.lower().rstrip("0123456789"))


def split_of_path(path: str) -> str | None:
    """The split that a file's path names: a word of the file's name, else the name of a folder,
    innermost first.
    """
    *folders, name = path.split("/")
    words = [*folders, *re.split(r"[\W_]+", name)]
    return next((split for word in reversed(words) if (split := split_of_word(word))), None)


# ------------------------------------------------------------------------------------------- images


def original_uri(content: Mapping[str, Any]) -> str | None:
    """The URI of the original image that an image's labels name; ``None`` if they name none."""
    provenance = content.get(PROVENANCE_KEY)
    uri = provenance.get("uri") if isinstance(provenance, dict) else None
    return uri if _is_uri(uri) else None


class Original(NamedTuple):
    """The image of which another one is a copy.

    ``shapes`` is the digest of the shapes that were suggested for the copy
    (:func:`~segbatch.formats.coco.shapes_digest`); empty in the lists of earlier versions.
    """

    uri: str
    shapes: str


def read_copies_list(content: bytes, where: str) -> list[dict[str, str]]:
    """The lines of a :data:`COPIES_LIST`, also as a spreadsheet saves it: with commas, semicolons
    or tabs.

    Raises :class:`~segbatch.errors.SourceError` for a file that is something else, or that lost
    letters: without the list, suggestions count as labels that somebody drew.
    """
    text = storage.decode_text(content, where, SourceError)
    table = storage.csv_reader(text, ["uri", "file"])
    if table is None:
        raise SourceError(
            f"{where}: is not a list of suggestions, a CSV with the columns uri and file: bring"
            " back the list that labels suggest wrote, or rename this file"
        )
    lines = list(table)
    for line in lines:
        if line["uri"] and line["file"] and _is_garbled(line["uri"], line["file"]):
            raise SourceError(
                f"{where}: letters were lost in {line['file']} or its uri when the list was saved:"
                " bring back the list that labels suggest wrote, and save it as UTF-8 only"
            )
    return lines


def uri_digest(uri: str) -> str:
    """What the name of a copy ends with: it tells images of one name apart."""
    return hashlib.sha256(uri.encode()).hexdigest()[:8]


def _is_garbled(uri: str, file: str) -> bool:
    """Whether the line of a copy was saved in an encoding that lacks its letters, or that was taken
    for another one. Other changes of a URI are its users', who may have moved their images.
    """
    digest = COPY_DIGEST.search(file)
    is_plain = uri.isascii() and "?" not in uri
    return digest is not None and not is_plain and digest[1] != uri_digest(uri)


def _is_uri(uri: Any) -> bool:
    return isinstance(uri, str) and 0 < len(uri) <= MAX_URI and not CONTROL.search(uri)


def exactly(name: str) -> str:
    return name


def folded(name: str) -> str:
    """``name`` without its case and Unicode form."""
    return storage.composed(name.casefold())


# Labels may spell a file in another Unicode form (macOS decomposes names) or another case than the
# listing. The first of these by which a name is found decides.
SPELLINGS: Sequence[Callable[[str], str]] = (exactly, storage.composed, folded)


class Spellings:
    """The files ``uris``, found by URIs that may be spelled differently."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._by_fold: dict[str, list[str]] = defaultdict(list)
        for uri in uris:
            self._by_fold[folded(uri)].append(uri)

    def find(self, uri: str) -> str:
        """The one file that is spelled like ``uri``; ``uri`` itself if there is none."""
        alike = self._by_fold.get(folded(uri), [])
        for spelling in SPELLINGS:
            same = [known for known in alike if spelling(known) == spelling(uri)]
            if len(same) == 1:
                return same[0]
        return uri


class ImageFiles:
    """Finds the images that labels name by a relative path, or by a path on another machine.

    Searches the files ``uris`` below ``folder``, or those below ``root`` if the user gives one.
    """

    def __init__(self, folder: str, uris: Iterable[str], root: str | None) -> None:
        self._folder = folder
        self._root = storage.normalize(root) if root is not None else None
        self.uris = list(uris if self._root is None else list_uris(self._root))
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for uri in self.uris:
            self._by_name[folded(storage.name_of(uri))].append(uri)

    def locate(self, path: str, labels_uri: str) -> str:
        """The URI of the image that the file ``labels_uri`` calls ``path``: the one that
        :meth:`find` finds, or else where the path leads. Raises as :meth:`find`.
        """
        if storage.scheme_of(path):
            return path
        asked = posixpath.normpath(path.replace("\\", "/"))
        path = LABEL_STUDIO.sub("images/", asked)
        if (found := self.find(path, labels_uri)) is not None:
            return found
        if path != asked:  # the folder of Label Studio's export, without the images
            return self.locate(storage.name_of(path), labels_uri)
        return self._follow(path, labels_uri)

    def find(self, path: str, labels_uri: str) -> str | None:
        """The file that the file ``labels_uri`` calls ``path``; ``None`` if there is none.

        The path is followed from the root, or else from the folder of ``labels_uri``. If there is
        no such file, the image is the one file below the root, or below that folder, or else below
        its parent, whose own path ends with ``path`` and which is in no folder of another split.
        If ``path`` leads out of its folder, only the name must match. The spelling may differ as
        in :class:`Spellings`. Raises ``ValueError`` if several files match.
        """
        path = posixpath.normpath(path.replace("\\", "/"))
        goal = self._follow(path, labels_uri)
        same_name = self._by_name.get(folded(storage.name_of(path)), [])
        if (found := Spellings(same_name).find(goal)) in same_name:
            return found
        leads_out = path.startswith(("../", "/")) or path[1:3] == ":/"
        end = f"/{storage.name_of(path) if leads_out else path}"
        own = folder_of(labels_uri)
        places = [own, folder_of(own)] if self._root is None else [self._root]
        for place, spelling in product(places, SPELLINGS):
            matches = [
                uri
                for uri in same_name
                if uri.startswith(f"{place}/") and spelling(uri).endswith(spelling(end))
            ]
            matches = self._of_split(self.split_of(labels_uri), matches)
            if len(matches) > 1:
                raise ValueError(
                    f"{path} may be {matches[0]} or {matches[1]}: name the folder that it starts"
                    " from with --images"
                )
            if matches:
                return matches[0]
        return None

    @cached_property
    def originals(self) -> dict[str, Original]:
        """The original images of the copies made by ``labels suggest``, by the copies' URIs.

        Raises as :func:`read_copies_list`.
        """
        spellings = Spellings(self.uris)
        return {
            spellings.find(storage.join(folder_of(where), line["file"])): Original(
                line["uri"], line.get("shapes") or ""
            )
            for where in self._by_name.get(folded(COPIES_LIST), [])
            for line in read_copies_list(read_label_file(where), where)
            if line["file"] and _is_uri(line["uri"])
        }

    def split_of(self, uri: str) -> str | None:
        """The split that is named by the path below the folder, or by the folder itself."""
        root = self._root if self._root and uri.startswith(f"{self._root}/") else self._folder
        return split_of_path(f"{storage.name_of(root)}{uri.removeprefix(root)}")

    def _of_split(self, split: str | None, uris: list[str]) -> list[str]:
        """URIs in a folder of the split, else those in no split; all if ``split`` is ``None``."""
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
