"""A plain PyTorch script that skips what exists, to be started again.

As :mod:`benchmarks.peers.pytorch_script`; images whose PNG is there already are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.peers.pytorch_script import Photographs, save
from benchmarks.peers.task import Pixels, Segmenter, Task
from segbatch.machine import num_cores
from tests import poison


def main() -> None:
    task = Task.given()
    segment = Segmenter(task)
    folder = Path(task.output)
    folder.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(task.images)
    photographs.keys = [
        key for key in photographs.keys if not (folder / f"{Path(key).name}.png").exists()
    ]
    loader = DataLoader(
        photographs,
        batch_size=task.batch_size,
        num_workers=num_cores(),
        collate_fn=list,
        worker_init_fn=lambda _: poison.install(),
    )
    with ThreadPoolExecutor(4) as pool:
        written: Any = []
        for batch in loader:
            names, images = zip(*batch, strict=True)
            for future in written:
                future.result()
            masks = segment(images)
            written = [
                pool.submit(save, mask, folder / f"{name}.png")
                for name, mask in zip(names, masks, strict=True)
            ]
            task.note(len(names))
        for future in written:
            future.result()


def masks(output: str) -> Iterator[tuple[str, Pixels]]:
    for path in sorted(Path(output).iterdir()):
        try:
            yield path.stem, np.array(Image.open(path))
        except (OSError, SyntaxError):  # half a file, which exists all the same
            yield path.stem, np.empty((0, 0), np.uint8)


if __name__ == "__main__":
    main()
