"""A server that says how many images it predicted together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segbatch.images.decode import Decoded
from segbatch.serving.replica import Predictor
from segbatch.serving.service import Service

FIRST_S = 1.0


class Counted(Predictor):
    """Writes the size of each batch to ``log``; the first one takes its time."""

    def __init__(self, service: Service, log: str) -> None:
        super().__init__(service)
        self._log = Path(log)

    def _predict(self, images: Sequence[Decoded]) -> list[Any]:
        if not self._log.exists():
            time.sleep(FIRST_S)
        with self._log.open("a") as log:
            log.write(f"{len(images)}\n")
        return super()._predict(images)
