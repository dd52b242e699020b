"""Names: what the files of exported images are called, by their URIs.

A name is the image's path below what all URIs begin with, without an extension, of letters, digits,
``_``, ``-`` and ``.`` only, so that every tool and storage takes it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import unquote

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS
from segbatch.errors import InputError
from segbatch.formats.writing import Part

MAX_PART = 180  # bytes of one part of a path; the limit of most storage is 255


UNSAFE = re.compile(r"[^\w.-]+")


def common_folder(first: str, last: str) -> str:
    """What all URIs begin with whose first and last, in their order, are these; up to a slash."""
    pairs = enumerate(zip(first, last, strict=False))
    end = next((index for index, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, end) + 1]


def safe_name(uri: str, folder: str) -> str:
    """The name of an image below ``folder``, with which ``uri`` begins. Never empty; two URIs may
    have one name.
    """
    path = uri.removeprefix(folder)
    if storage.scheme_of(uri) in storage.HTTP_SCHEMES:
        path = unquote(without_query(path))
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    if is_image_name(path):
        path = str(PurePosixPath(path).with_suffix(""))
    return "/".join(part for raw in path.split("/") if (part := _safe(raw))) or "image"


def without_query(address: str) -> str:
    """A web address without what follows its path, which may be a signature."""
    return re.split(r"[?#]", address, maxsplit=1)[0]


def is_image_name(path: str) -> bool:
    return PurePosixPath(path).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS


def _safe(part: str) -> str:
    """A part of a path that is no hidden file and leads nowhere else; empty if nothing is left."""
    safe = UNSAFE.sub("_", part).strip(".")  # Windows takes no point at the end
    return safe.encode()[:MAX_PART].decode(errors="ignore")


# Claim: a file in the folder of an export, which says whose it is until everything is in it.
#
# Without a claim a folder must be empty. With one, the same export goes on, and any other is
# refused.


NAME = "unfinished-export"  # no image is called so: each has an extension


@dataclass(frozen=True)
class Claim:
    """What is exported. ``version`` is that of the run's rows: it is another one after a repair, or
    in a run that goes on, and names of files may then be others.
    """

    run: str
    to: str
    where: str | None
    limit: int | None
    version: int | None

    def is_begun(self, folder: str) -> bool:
        """Whether this export has begun in ``folder``.

        Raises :class:`~segbatch.errors.InputError` for a folder with anything else in it; hidden
        files are none. Raises what :func:`~segbatch.storage.reading_input` does.
        """
        is_file = storage.is_local(folder) and storage.local_path(folder).is_file()
        with storage.reading_input(folder, InputError, "no such bucket"):
            try:
                found = storage.read_bytes(storage.join(folder, NAME))
            except (FileNotFoundError, NotADirectoryError):
                found = None
            files = (storage.name_of(file.uri) for file in storage.list_files(folder))
            is_full = found is None and any(not name.startswith(".") for name in files)
        if is_file or is_full:
            raise InputError(f"{folder}: there are files already: name a folder that is empty")
        if found is None:
            return False
        if found != self._as_json():
            raise InputError(
                f"{folder}: holds the beginning of another export, which {NAME} tells, or the run"
                " has changed since: name a folder that is empty"
            )
        return True

    def stake(self, folder: str) -> None:
        """Say that ``folder`` is this export's. Raises ``OSError``."""
        storage.write_bytes(storage.join(folder, NAME), self._as_json())

    def give_up(self, folder: str) -> None:
        """Everything is in ``folder``. Raises ``OSError``."""
        storage.delete([storage.join(folder, NAME)])

    def _as_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2).encode()


# Shared files: the lists and documents of an export in which every image has its entries.


class SharedFiles:
    """What all images of an export share; :meth:`store` writes it. Any number of them: they are
    collected by part, each in a file of its own.
    """

    def __init__(self, shared: Mapping[str, Sequence[str | Part]]) -> None:
        self._shared = shared
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> SharedFiles:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._between = {
            piece.name: piece.between
            for pieces in self._shared.values()
            for piece in pieces
            if isinstance(piece, Part)
        }
        for name in self._between:
            file = (self._folder / f"part-{name}").open("w+", encoding="utf-8", newline="")
            self._files[name] = self._stack.enter_context(file)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def add(self, entries: Mapping[str, Sequence[str]]) -> None:
        for name, texts in entries.items():
            file = self._files[name]
            for text in texts:
                file.write(f"{self._between[name]}{text}" if file.tell() else text)

    def store(self, folder: str) -> None:
        """Put the shared files together and write them."""
        for number, (path, pieces) in enumerate(self._shared.items()):
            whole = self._folder / f"whole-{number}"
            with whole.open("w", encoding="utf-8", newline="") as file:
                for piece in pieces:
                    if isinstance(piece, Part):
                        self._files[piece.name].seek(0)
                        shutil.copyfileobj(self._files[piece.name], file)
                    else:
                        file.write(piece)
            storage.upload(whole, storage.join(folder, path))
