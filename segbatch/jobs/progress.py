"""Progress of a run and of a training: a bar on a terminal, elsewhere ``key=value`` lines.

Everything goes to stderr; stdout belongs to results.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from segbatch.console import Bar, in_pairs, in_words
from segbatch.storage import name_of

if TYPE_CHECKING:
    from segbatch.results.write import Account


# Events that a terminal does not show, because its bar does.
ROUTINE = ("pass", "pass_end", "commit", "progress")


class Progress(Bar):
    """Progress of a run. ``done`` images were committed before this start."""

    def __init__(self, run: str, total: int, done: int) -> None:
        super().__init__(name_of(run), total, done)
        self.run = run
        self.total = total
        self.done = self.committed = done
        self.passes = 0
        self.kinds: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()

    def event(self, name: str, **facts: object) -> None:
        """Print one line at once, with the state of the run and ``facts``.

        A terminal, whose bar shows the state, gets the facts of events that are no routine.
        """
        if self.shown:
            if name not in ROUTINE:
                self.line(f"{name.replace('_', ' ')}: {in_words(facts)}", "")
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        everywhere = {"pass": self.passes, **self.facts()}
        self.line(f"{name} {in_pairs(everywhere | facts)}", f"time={now} run={self.run} event=")

    def add(self, account: Account) -> None:
        """Count the images of an account; images that will be tried again are not counted yet."""
        self.seconds.update(account.seconds)
        self.counted.update(account.counted)
        if account.file is not None:
            self.kinds[account.kind] += len(account.image_ids)
            self.counted["written_bytes"] += account.file.size
        if self._move():
            self.event("progress")

    def commit(self, images: int, version: int) -> None:
        """Count ``images`` as committed: they are kept if the driver stops now."""
        self.committed += images
        self._move()
        self.event("commit", version=version, committed=images)

    def _move(self) -> bool:
        failed = f"{self.failed:,} failed · " if self.failed else ""
        state = f"{self.committed:,} committed · {failed}{self.images_per_second:.1f} images/s"
        return self.move(self.done + self.finished, state)

    @property
    def failed(self) -> int:
        return self.finished - self.kinds["ok"]

    @property
    def finished(self) -> int:
        return self.kinds.total()

    @property
    def images_per_second(self) -> float:
        return self.finished / max(1e-9, time.monotonic() - self.started)

    def facts(self) -> dict[str, object]:
        return {
            "images": f"{self.done + self.finished}/{self.total}",
            "ok": self.kinds["ok"],
            "failed": self.failed,
            "images_per_second": f"{self.images_per_second:.2f}",
        }


class TrainProgress(Bar):
    """Progress of a training: a line for each epoch, and the steps in between."""

    def __init__(self, uri: str, num_steps: int) -> None:
        super().__init__("steps", num_steps)
        self.uri = uri

    def show(self, facts: dict[str, Any]) -> None:
        """Show the facts of a step, or of an epoch, which is printed at once."""
        if "step" not in facts or self.move(facts["step"], f"loss {facts['loss']:.3f}"):
            rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in facts.items()}
            text = in_words(rounded) if self.shown else in_pairs(rounded)
            self.line(text, f"training={self.uri} ")
