"""A replica of the server: one copy of the model, shared by requests that come together.

An image takes the way that it takes in a segment job, so its mask is the same to the byte:

    file → decode (threads) → batch with other requests → predict (the device) → answer (threads)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
from ray import serve

from segbatch.errors import DoesNotFit
from segbatch.images.decode import Decoded, decode_image
from segbatch.images.faults import Undecodable
from segbatch.model.bundle import fingerprint
from segbatch.model.predict import Prediction, load_model
from segbatch.serving.answers import ModelName, Predicted
from segbatch.serving.service import Service
from segbatch.storage.uris import without_query

Result = TypeVar("Result")


class Predictor:
    """A model that predicts image files; Ray Serve makes one in each replica."""

    def __init__(self, service: Service) -> None:
        self.service = service
        runtime: Any = ray.get_runtime_context()
        threads = max(1, int(runtime.get_assigned_resources().get("CPU", 1)))
        self.model = load_model(
            service.model, device=service.device, options=service.predict, threads=threads
        )
        self.name = ModelName(uri=without_query(service.model), sha256=fingerprint(service.model))
        self._threads = ThreadPoolExecutor(threads, "images")  # decoding takes a lot of memory
        self._device = ThreadPoolExecutor(1, "device")
        self._idle = asyncio.Event()
        self._idle.set()
        batches: Any = self._batch
        batches.set_max_batch_size(service.predict.batch_size)

    async def predict(self, data: bytes) -> Predicted | Undecodable:
        """Predict an image file, together with those of other requests.

        Returns why, if it cannot be decoded or is too large for the device. Raises
        :class:`~segbatch.errors.JobFailed` where the model fails for every image.
        """
        image = await self.in_thread(self._decode, data)
        if isinstance(image, Undecodable):
            return image
        await self._idle.wait()
        prediction = await self._batch(image)
        if isinstance(prediction, DoesNotFit):
            return Undecodable("too_large", str(prediction))
        return Predicted(data, self.service.max_pixels, image, prediction, self.name)

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes CPU time in one of the threads for images."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    def _decode(self, data: bytes) -> Decoded | Undecodable:
        return decode_image(
            data, max_pixels=self.service.max_pixels, long_side=self.model.long_side
        )

    # Serve collects its next batch while one is running, for as long as its timeout. So requests
    # wait for the device before they join its queue: a batch is all that came meanwhile, and a
    # request that comes alone waits for nobody.
    @serve.batch(batch_wait_timeout_s=0.0)
    async def _batch(self, images: list[Decoded]) -> list[Prediction | DoesNotFit]:
        self._idle.clear()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._device, self._predict, images)
        finally:
            self._idle.set()

    def _predict(self, images: Sequence[Decoded]) -> list[Prediction | DoesNotFit]:
        """A prediction for each image, or why it is too large for the device.

        Raises :class:`~segbatch.errors.JobFailed` where the model fails otherwise.
        """
        sizes = [(image.height, image.width) for image in images]
        try:
            return [*self.model.predict_batch([image.pixels for image in images], sizes)]
        except DoesNotFit as error:
            if len(images) == 1:
                return [error]
        return [result for image in images for result in self._predict([image])]
