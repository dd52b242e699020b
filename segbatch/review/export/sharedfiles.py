"""Shared files: the lists and documents of an export in which every image has its entries."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from segbatch import storage
from segbatch.formats.writing import Part


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
