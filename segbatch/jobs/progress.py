"""Progress of a run and of a training: a bar on a terminal, elsewhere ``key=value`` lines.

Everything goes to stderr; stdout belongs to results.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from segbatch.console import Bar

if TYPE_CHECKING:
    from segbatch.results.write import Account


class Progress(Bar):
    """Progress of a run. ``done`` images were committed before this start."""

    def __init__(self, run: str, total: int, done: int) -> None:
        super().__init__(run, total, done)
        self.run = run
        self.total = total
        self.done = done
        self.passes = 0
        self.kinds: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()

    def event(self, name: str, **facts: object) -> None:
        """Print one line at once, with the state of the run and ``facts``."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        everywhere = {"pass": self.passes, **self.facts()}
        text = " ".join(f"{key}={value}" for key, value in (everywhere | facts).items())
        self.line(f"{name} {text}", f"time={now} run={self.run} event=")

    def add(self, account: Account) -> None:
        """Count the images of an account; images that will be tried again are not counted yet."""
        self.seconds.update(account.seconds)
        self.counted.update(account.counted)
        if account.file is not None:
            self.kinds[account.kind] += len(account.image_ids)
            self.counted["written_bytes"] += account.file.size
        if self.move(self.done + self.finished, f"{self.images_per_second:.1f} images/s"):
            self.event("progress")

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


class TrainProgress(Bar):
    """Progress of a training: a line for each epoch, and the steps in between."""

    def __init__(self, uri: str, num_steps: int) -> None:
        super().__init__("steps", num_steps)
        self.uri = uri

    def show(self, facts: dict[str, Any]) -> None:
        """Show the facts of a step, or of an epoch, which is printed at once."""
        text = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in facts.items()
        )
        if "step" not in facts or self.move(facts["step"], f"loss {facts['loss']:.3f}"):
            self.line(text, f"training={self.uri} ")
