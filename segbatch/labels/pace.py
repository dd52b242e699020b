"""Pace: how far the work on images has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segbatch.progress import EVERY_S, say


class Pace:
    """Counts images while it is entered; to stderr."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Pace:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def add(self, images: int) -> None:
        self.done += images
        self._bar.update(self._task, completed=self.done)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= EVERY_S:
            self._last_line = now
            per_second = self.done / max(1e-9, now - self.started)
            say(
                f"labels={self.what} event=progress images={self.done}/{self.total}"
                f" images_per_second={per_second:.2f}"
            )
