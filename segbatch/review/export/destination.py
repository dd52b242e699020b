"""The folder that an export writes to: the claim on it, and the files that all images share."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from segbatch import storage
from segbatch.errors import InputError
from segbatch.formats.format import Slot

Names = Literal["run", "export"]
CLAIM_FILE = "unfinished-export"  # no image has this name: their files have extensions


@dataclass(frozen=True)
class Claim:
    """Marks a folder as belonging to one unfinished export.

    A folder without a claim must be empty. In a folder with one, the same export resumes and any
    other is refused. ``version`` is that of the run's rows: a repair or a resumed run changes it,
    and may change the names of files. ``names`` says where these are unique: in the run or, as in
    claims of earlier versions, in this export.
    """

    run: str
    to: str
    where: str | None
    limit: int | None
    version: int | None
    names: Names

    def find(self, folder: str) -> Claim | None:
        """The claim in ``folder``, if this export has begun there.

        Raises :class:`~segbatch.errors.InputError` if ``folder`` holds anything else; system files
        do not count. Raises what :func:`~segbatch.storage.reading_input` raises.
        """
        if storage.is_local(folder):
            path = storage.local_path(folder).absolute()
            in_way = next((p for p in (path, *path.parents) if p.is_file()), None)
            if in_way is not None:
                raise InputError(f"{folder}: {in_way} is a file; name an empty or a new folder")
        with storage.reading_input(folder, InputError, "no such bucket"):
            try:
                found = storage.read_bytes(storage.join(folder, CLAIM_FILE))
            except (FileNotFoundError, NotADirectoryError):
                found = None
            paths = (storage.path_below(f.uri, folder) for f in storage.list_files(folder))
            files = storage.SystemFiles().left_out(paths, str)
            is_full = found is None and next(files, None) is not None
        if is_full:
            raise InputError(f"{folder}: is not empty; name an empty or a new folder")
        if found is None:
            return None
        claims = {claim._as_json(): claim for claim in (self, replace(self, names="export"))}
        if found not in claims:
            raise InputError(
                f"{folder}: holds another unfinished export (see {CLAIM_FILE} there), or the run"
                " has changed since; name an empty folder"
            )
        return claims[found]

    def stake(self, folder: str) -> None:
        """Write the claim into ``folder``. Raises ``OSError``."""
        storage.write_bytes(storage.join(folder, CLAIM_FILE), self._as_json())

    def give_up(self, folder: str) -> None:
        """Delete the claim from ``folder``, once the export is complete. Raises ``OSError``."""
        storage.delete([storage.join(folder, CLAIM_FILE)])

    def _as_json(self) -> bytes:
        content = asdict(self)
        if self.names == "export":
            del content["names"]
        return json.dumps(content, ensure_ascii=False, indent=2).encode()


class SharedFiles:
    """The lists and documents of an export in which every image has entries.

    Entries are collected on disk, one file a part, so any number of images fits; :meth:`store`
    puts the parts together and uploads the result.
    """

    def __init__(self, shared: Mapping[str, Sequence[str | Slot]]) -> None:
        self._shared = shared
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> SharedFiles:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._between = {
            piece.name: piece.separator
            for pieces in self._shared.values()
            for piece in pieces
            if isinstance(piece, Slot)
        }
        for name in self._between:
            file = (self._folder / f"part-{name}").open("w+", encoding="utf-8", newline="")
            self._files[name] = self._stack.enter_context(file)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def add(self, entries: Mapping[str, Sequence[str]]) -> None:
        """Append the entries of one image to the parts, given by name."""
        for name, texts in entries.items():
            file = self._files[name]
            for text in texts:
                file.write(f"{self._between[name]}{text}" if file.tell() else text)

    def store(self, folder: str) -> None:
        """Put the parts together and write the shared files to ``folder``."""
        for number, (path, pieces) in enumerate(self._shared.items()):
            whole = self._folder / f"whole-{number}"
            with whole.open("w", encoding="utf-8", newline="") as file:
                for piece in pieces:
                    if isinstance(piece, Slot):
                        self._files[piece.name].seek(0)
                        shutil.copyfileobj(self._files[piece.name], file)
                    else:
                        file.write(piece)
            storage.upload(whole, storage.join(folder, path))
