"""A plain script around OpenVINO, as a good engineer writes it today for CPUs.

The network converted once, its `AsyncInferQueue` with a request a core, photographs decoded by a
few threads meanwhile, logits brought to full size and PNG files written in the callbacks.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from PIL import Image, ImageOps

from benchmarks.peers.pytorch_script import Photographs, masks, save
from benchmarks.peers.task import Pixels, Task
from segbatch.machine import num_cores
from segbatch.model.bundle import load_bundle

__all__ = ["masks"]

MULTIPLE = 64
HINTS = {"fp32": "f32", "bf16": "bf16"}


class Coarse(torch.nn.Module):
    """What the script converts."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        coarse: torch.Tensor = self.network.coarse(images)
        return coarse


def main() -> None:
    task = Task.given()
    torch.set_num_threads(1)  # of each callback
    network, config = load_bundle(task.model)
    model = ov.convert_model(Coarse(network).eval(), example_input=torch.zeros(1, 3, 128, 128))
    model.reshape([-1, 3, -1, -1])
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": HINTS[task.precision],
        "INFERENCE_NUM_THREADS": num_cores(),
    }
    queue = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", settings), num_cores())
    mean, std = (np.array(value, np.float32) for value in (config.mean, config.std))
    photographs = Photographs(task.images)
    folder = Path(task.output)
    folder.mkdir(parents=True)

    def read(index: int) -> tuple[str, Pixels]:
        key = photographs.keys[index]
        if photographs.parts.scheme == "s3":
            answer = photographs.client.get_object(Bucket=photographs.parts.netloc, Key=key)
            data = answer["Body"].read()
        else:
            data = Path(key).read_bytes()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        return Path(key).name, np.asarray(image)

    def write(request: Any, about: tuple[str, int, int, tuple[int, int]]) -> None:
        name, height, width, padded = about
        coarse = torch.from_numpy(request.get_output_tensor().data)
        logits = torch.nn.functional.interpolate(
            coarse, padded, mode="bilinear", align_corners=network.align_corners
        )
        mask = logits[0, :, :height, :width].argmax(0).to(torch.uint8).numpy()
        save(mask, folder / f"{name}.png")
        task.note(1)

    queue.set_callback(write)
    with ThreadPoolExecutor(num_cores()) as pool:
        for name, image in pool.map(read, range(len(photographs))):
            height, width, _ = image.shape
            padded = tuple(-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
            pixels = np.empty((*padded, 3), np.float32)
            pixels[:] = np.array(config.fill)
            pixels[:height, :width] = image
            scaled = (pixels / 255 - mean) / std
            inputs = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
            queue.start_async({0: inputs}, (name, height, width, padded))
    queue.wait_all()


if __name__ == "__main__":
    main()
