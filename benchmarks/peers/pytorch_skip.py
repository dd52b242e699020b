"""A plain PyTorch script that skips what exists, to be started again.

As :mod:`benchmarks.peers.pytorch_script`; images whose PNG is there already are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers.pytorch_script import Photographs, segment_all
from benchmarks.peers.task import Pixels, Task
from tests import poison

ON_RAY = False


def main() -> None:
    task = Task.given()
    folder = Path(task.output)
    folder.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(task.images)
    photographs.keys = [
        key for key in photographs.keys if not (folder / f"{Path(key).name}.png").exists()
    ]
    segment_all(task, photographs, folder, worker_init_fn=lambda _: poison.install())


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    for path in sorted(Path(output).iterdir()):
        try:
            yield path.stem, np.array(Image.open(path))
        except (OSError, SyntaxError):  # half a file, which exists all the same
            yield path.stem, np.empty((0, 0), np.uint8)


if __name__ == "__main__":
    main()
