"""Claim: a file in the folder of an export, which says whose it is until everything is in it.

Without a claim a folder must be empty. With one, the same export goes on, and any other is refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from segbatch import storage
from segbatch.errors import InputError

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
