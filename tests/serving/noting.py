"""The server, which also notes how many images it predicts together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve

from segbatch.images.decode import Decoded
from segbatch.serving.endpoints import api
from segbatch.serving.replica import Predictor
from segbatch.serving.service import Service


class Noting(Predictor):
    """Appends the size of each batch to ``batches``, and waits as long as ``hold`` exists."""

    def __init__(self, service: Service, hold: Path, batches: Path) -> None:
        super().__init__(service)
        self._hold = hold
        self._batches = batches

    def _predict(self, images: Sequence[Decoded]) -> list[Any]:
        while self._hold.exists():
            time.sleep(0.05)
        with self._batches.open("a") as batches:
            batches.write(f"{len(images)}\n")
        return super()._predict(images)


deployment: Any = serve.deployment(serve.ingress(api)(Noting)).options(
    max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}
)
