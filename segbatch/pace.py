"""Pace: how far the work on labelled images has come."""

from __future__ import annotations

import time

from segbatch.console import Bar


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
