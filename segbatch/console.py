"""What commands print while they work: Rich bars on a terminal, elsewhere lines of ``key=value``.

All of it goes to stderr; stdout is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Self

from segbatch.errors import visible

EVERY_S = 10.0  # between two lines


class _Said:
    """What this process prints to stderr."""

    is_quiet = False


@contextmanager
def quiet() -> Iterator[None]:
    """Print no progress and no advice in the block; errors and results are printed elsewhere."""
    before, _Said.is_quiet = _Said.is_quiet, True
    try:
        yield
    finally:
        _Said.is_quiet = before


def say(message: str) -> None:
    """Print one line to stderr, whole: it may hold advice to type."""
    if not _Said.is_quiet:
        print(visible(message), file=sys.stderr, flush=True)


@cache
def say_once(message: str) -> None:
    """:func:`say` for what several steps of a command find: they list the same images."""
    say(message)


def in_pairs(facts: Mapping[str, object]) -> str:
    """Facts for a log: ``images=12 failed=1``."""
    return " ".join(f"{key}={value}" for key, value in facts.items())


def in_words(facts: Mapping[str, object]) -> str:
    """Facts for a terminal: ``images 12, failed 1``."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())


class Bar:
    """A progress bar, shown on a terminal while entered; elsewhere the caller prints lines."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        # Imported here because every command imports this module for say().
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            # Rich draws nothing on a dumb terminal until the end.
            disable=_Said.is_quiet or not sys.stderr.isatty() or console.is_dumb_terminal,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, state="")
        self.started = self._last_line = time.monotonic()

    @property
    def shown(self) -> bool:
        """Whether there is a bar, because stderr is a terminal that can show one."""
        return not self._bar.disable

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def move(self, done: int, state: str) -> bool:
        """Update the bar, with ``state`` as the text behind it.

        Returns whether a line is due because there is no bar.
        """
        self._bar.update(self._task, completed=done, state=state)
        due = not self.shown and time.monotonic() - self._last_line >= EVERY_S
        if due:
            self._last_line = time.monotonic()
        return due

    def line(self, text: str, prefix: str) -> None:
        """Print ``text`` above the bar, or after ``prefix`` where there is no bar."""
        if self.shown:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(f"{prefix}{text}")


class ImageBar(Bar):
    """A progress bar that counts labelled images."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        self.what = what
        self.total = total
        self.done = 0

    def add(self, images: int) -> None:
        """Count ``images`` more, and print a line if one is due."""
        self.done += images
        per_second = self.done / max(1e-9, time.monotonic() - self.started)
        if self.move(self.done, f"{per_second:.1f} images/s"):
            self.line(
                f"images={self.done}/{self.total} images_per_second={per_second:.2f}",
                f"labels={self.what} event=progress ",
            )
