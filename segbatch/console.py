"""Progress: Rich bars on a terminal; elsewhere one line of ``key=value`` every 10 seconds.

Everything goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    pass

EVERY_S = 10.0


class Bar:
    """A bar on a terminal while it is entered; elsewhere it is silent and lines are said."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        # Here, because every command imports this module to say something.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=total, completed=done, pace="")
        self.started = self._last_line = time.monotonic()

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

    def move(self, done: int, pace: str) -> bool:
        """Show how far it is; whether it is time to say it in a line, where there is no bar."""
        self._bar.update(self._task, completed=done, pace=pace)
        due = self._bar.disable and time.monotonic() - self._last_line >= EVERY_S
        if due:
            self._last_line = time.monotonic()
        return due

    def line(self, text: str, prefix: str) -> None:
        """Something that happens now and then: above the bar, or behind ``prefix`` as a line."""
        if self._bar.disable:
            say(f"{prefix}{text}")
        else:
            self._bar.console.print(text, highlight=False)


def say(message: str) -> None:
    """One line to stderr."""
    print(message, file=sys.stderr, flush=True)


# Pace: how far the work on labelled images has come.


class Pace(Bar):
    """Counts images while it is entered; to stderr."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        self.what = what
        self.total = total
        self.done = 0

    def add(self, images: int) -> None:
        self.done += images
        per_second = self.done / max(1e-9, time.monotonic() - self.started)
        if self.move(self.done, f"{per_second:.1f} images/s"):
            self.line(
                f"images={self.done}/{self.total} images_per_second={per_second:.2f}",
                f"labels={self.what} event=progress ",
            )
