"""Progress: Rich bars on a terminal; elsewhere one line of ``key=value`` every 10 seconds.

Everything goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from segbatch.results.write import Account

EVERY_S = 10.0


class Shown:
    """A bar on a terminal, while this is open; else ``_bar`` is ``None``."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress(Shown):
    """What a run says while it works. ``done`` images were committed before."""

    def __init__(self, run: str, total: int, done: int) -> None:
        super().__init__()
        self.run = run
        self.total = total
        self.done = done
        self.passes = 0
        self.kinds: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.started = time.monotonic()
        self._last_line = self.started
        if self._bar is not None:
            self._task = self._bar.add_task(run, total=total, completed=done, pace="")

    def event(self, name: str, **facts: object) -> None:
        """Something that happens now and then: one line, at once."""
        text = " ".join([name, *(f"{key}={value}" for key, value in facts.items())])
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(f"run={self.run} event={text}", file=sys.stderr, flush=True)

    def add(self, account: Account) -> None:
        """Images that came through; those that will be tried again are not counted yet."""
        self.seconds.update(account.seconds)
        if account.file is not None:
            self.kinds[account.kind] += len(account.image_ids)
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self.done + self.finished,
                pace=f"{self.images_per_second:.1f} images/s",
            )
        elif time.monotonic() - self._last_line >= EVERY_S:
            self._last_line = time.monotonic()
            self.event("progress", **self.facts())

    @property
    def finished(self) -> int:
        return self.kinds.total()

    @property
    def images_per_second(self) -> float:
        return self.finished / max(1e-9, time.monotonic() - self.started)

    def facts(self) -> dict[str, object]:
        failed = self.finished - self.kinds["ok"]
        return {
            "images": f"{self.done + self.finished}/{self.total}",
            "ok": self.kinds["ok"],
            "failed": failed,
            "images_per_second": f"{self.images_per_second:.2f}",
        }


class TrainProgress(Shown):
    """What a training says while it works: a line per epoch, and between them how it goes."""

    def __init__(self, uri: str, num_steps: int) -> None:
        super().__init__()
        self.uri = uri
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task("steps", total=num_steps, pace="")

    def show(self, facts: dict[str, Any]) -> None:
        """What a worker tells: of a step, or of an epoch, which comes out at once."""
        text = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in facts.items()
        )
        if self._bar is not None:
            if "step" in facts:
                step, pace = facts["step"], f"loss {facts['loss']:.3f}"
                self._bar.update(self._task, completed=step, pace=pace)
            else:
                self._bar.console.print(text, highlight=False)
        elif "step" not in facts or time.monotonic() - self._last_line >= EVERY_S:
            self._last_line = time.monotonic()
            print(f"training={self.uri} {text}", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One line to stderr."""
    print(message, file=sys.stderr, flush=True)
