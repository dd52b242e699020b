"""Pillow's settings while images are decoded: they belong to the process and not to a thread."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# What Pillow would log of a broken file stands in the file's row; a million rows are no log.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class _Pillow:
    """The job's pixel limit, and not a warning.

    The first thread to come in sets them and the last one to leave restores them. The limit is the
    one of the last that came in: a process works for one job.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.given_limit = Image.MAX_IMAGE_PIXELS
        self.warnings = warnings.catch_warnings()

    @contextmanager
    def limited(self, max_pixels: int) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.given_limit = Image.MAX_IMAGE_PIXELS
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
                # Pillow itself only warns up to twice the limit.
                warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    Image.MAX_IMAGE_PIXELS = self.given_limit
                    self.warnings.__exit__(None, None, None)


pillow = _Pillow()
