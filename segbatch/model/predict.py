"""Prediction: images in, label maps and their statistics out, on one device and without Ray.

The way of a call: images are cut into patches, and patches of one padded shape run as one batch,
which crosses to the device as bytes. When the last patch of an image is through, its coarse logits
are reduced on the device to a label map and counts, which are read back while the next batch runs.
On the CPU, batches run side by side in lanes, and so does what reduces them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from segbatch import masks
from segbatch.config.job import Predict
from segbatch.console import say
from segbatch.errors import InputError, JobFailed
from segbatch.images.scaling import FILTER, downscale
from segbatch.masks.classes import Classes
from segbatch.model.bundle import Packed, load_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.device import Arriving, Lanes, Transfer
from segbatch.model.patches import Cut, Patch, Pixels, size_of, stack
from segbatch.model.strips import Reduced, reduce_in_strips
from segbatch.model.surfaces import Size, Surface, Upsampled
from segbatch.model.zoo import Network
from segbatch.storage import one_line

BATCH_PIXELS = 512 * 512  # of a batch on the CPU: its layers are to stay in a core's cache


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model sees in one image.

    ``image`` is ``(height, width, 3)`` uint8, as it was given. ``mask`` is ``(height, width)``
    uint8 of class ids, ``pixels`` ``(classes,)`` int64 on its grid. ``confidences`` is
    ``(classes,)`` float32, 0 to 1: the mean probability with which the class won its pixels, NaN
    where it has none. ``uncertainty`` is 1 − the mean margin between the two likeliest classes, 0
    to 1. Both are on the network's grid, and NaN where the options do not ask for them.
    """

    image: Pixels
    classes: Classes
    mask: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float32]
    uncertainty: float

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the mask that each class covers, by name; 0 to 1, together 1."""
        shares = self.pixels / self.mask.size
        return dict(zip(self.classes.names, shares.tolist(), strict=True))

    @property
    def confidence(self) -> dict[str, float | None]:
        """``confidences`` by class name; ``None`` where the class is absent."""
        values = [None if np.isnan(value) else float(value) for value in self.confidences]
        return dict(zip(self.classes.names, values, strict=True))

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image under the colours of its classes, on the mask's grid."""
        image = self.image
        if size_of(image) != self.mask.shape:
            height, width = self.mask.shape
            image = np.asarray(Image.fromarray(image).resize((width, height), FILTER))
        return masks.overlay(image, self.mask, self.classes, alpha)


class Model:
    """A network on a device, ready to predict; ``module`` is the network, ``classes`` its classes.

    ``precision`` and ``device`` are what ``auto`` came to, ``num_batches`` counts those that went
    through the network.
    """

    def __init__(
        self,
        module: Network,
        config: ModelConfig,
        device: str | torch.device = "auto",
        options: Predict | None = None,
        *,
        confidence: bool = True,
    ) -> None:
        self.config = config
        self.options = options or Predict()
        self.confidence = confidence
        self.device = resolve_device(device)
        self.long_side = resolve_long_side(self.options, config)
        self.precision = resolve_precision(self.options.precision, self.device)
        # Channels last: on the CPU up to 1.7 times as fast, and what tensor cores want.
        self.module = module.eval().to(self.device).to(memory_format=torch.channels_last)
        self._coarse = torch.compile(module.coarse) if self.options.compile else module.coarse
        self._cut = Cut(self.options.tile, tuple(self.options.scales), self.options.flip)
        self._transfer = Transfer(self.device)
        self._lanes = Lanes() if self.device.type == "cpu" else None
        self._mean = torch.tensor(config.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(config.std, device=self.device)[:, None, None]
        self.num_batches = 0
        # Batches of a padded shape that fit the device, where `batch_size` patches did not.
        self._fitting: dict[Size, int] = {}

    @property
    def classes(self) -> Classes:
        return self.config.classes

    def predict(self, image: Pixels | Image.Image) -> Prediction:
        """Predict one image, RGB HWC uint8 or a Pillow image, as it stands (EXIF is not looked at).

        The mask has the image's own size. Raises :class:`~segbatch.errors.InputError` for an array
        of another shape or type.
        """
        original = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
        _check(original)
        scaled = np.asarray(downscale(Image.fromarray(original), self.long_side))
        [prediction] = self.predict_batch([scaled], [size_of(original)])
        return replace(prediction, image=original)

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[Pixels], mask_sizes: Sequence[Size | None]
    ) -> list[Prediction]:
        """Predict images that were already brought to :attr:`long_side`; results in their order.

        ``images`` are RGB HWC uint8, of any sizes. ``mask_sizes`` has ``(height, width)`` for each
        mask, or ``None`` for the image's size. A GPU holds one batch in the network and one in
        waiting, the CPU two for each lane, and the coarse logits of ``batch_size`` images, or of
        one image in tiles.
        Raises :class:`~segbatch.errors.InputError` for other arrays and
        :class:`~segbatch.errors.JobFailed` for an image too large for the device.
        """
        for image in images:
            _check(image)
        sizes = [size_of(image) for image in images]
        views: list[dict[int, Surface]] = [{} for _ in images]
        arriving: list[tuple[int, Callable[[], Arriving]]] = []
        predictions: dict[int, Prediction] = {}

        def finish() -> None:
            for index, result in arriving:
                predictions[index] = self._prediction(images[index], result())

        batches = self._cut.batches(images, self.options.batch_size, self._batch_of)
        for batch, logits in self._through_network(batches):
            self.num_batches += 1
            launched = []
            for patch, coarse in zip(batch, logits, strict=True):
                index, of_image = patch.image, views[patch.image]
                of_image[patch.view] = patch.surface(coarse, self.module.align_corners)
                if len(of_image) == self._cut.num_patches(sizes[index]):
                    surface = self._cut.assembled(
                        sizes[index], of_image, len(self.classes), self.device
                    )
                    launched.append((index, self._reducing(surface, mask_sizes[index])))
                    views[index] = {}
            finish()  # of the batch before: this one keeps the device busy meanwhile
            arriving = launched
        finish()
        return [predictions[index] for index in range(len(images))]

    def _batch_of(self, padded: Size) -> int:
        """How many patches of a padded shape go through the network together."""
        number = self._fitting.get(padded, self.options.batch_size)
        if self._lanes is None:
            return number
        height, width = padded
        return min(number, max(1, BATCH_PIXELS // (height * width)))

    def _through_network(
        self, batches: Iterator[list[Patch]]
    ) -> Iterator[tuple[list[Patch], list[Tensor]]]:
        """Each batch with the coarse logits of its patches."""
        if self._lanes is not None:
            return self._lanes.map(lambda batch: self._forward(self._pack(batch, False)), batches)
        uploaded = self._transfer.uploaded(batches, self._pack)
        return ((batch, self._forward(pixels)) for batch, pixels in uploaded)

    def _pack(self, batch: list[Patch], pinned: bool) -> Tensor:
        """The patches with their padding, NHWC uint8, on the host."""
        host = torch.empty(len(batch), *batch[0].padded, 3, dtype=torch.uint8, pin_memory=pinned)
        stack(batch, host.numpy(), np.array(self.config.fill, np.uint8))
        return host

    def _forward(self, pixels: Tensor) -> list[Tensor]:
        """Coarse logits of each of ``pixels``, NHWC uint8: ``(classes, height, width)`` float32.

        Halves the batch as long as it does not fit the device.
        """
        num_images, height, width, _ = pixels.shape
        try:
            return list(self._logits(pixels))
        except torch.OutOfMemoryError:
            if num_images == 1:
                raise JobFailed(
                    f"{self.device} has not enough memory for one image of {width}×{height}:"
                    " set predict.long_side or predict.tile"
                ) from None
        # Outside of `except`, which keeps the failed batch alive through its traceback.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = self._fitting[height, width] = (num_images + 1) // 2
        return self._forward(pixels[:half]) + self._forward(pixels[half:])

    def _logits(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float()  # NCHW, channels last as the bytes were
        images.div_(255).sub_(self._mean).div_(self._std)
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"):
            coarse: Tensor = self._coarse(images)
        return coarse.float().contiguous()

    def _reducing(self, surface: Surface, mask_size: Size | None) -> Callable[[], Arriving]:
        """Begin to reduce; what waits until that is done, or on its way."""
        if self._lanes is not None:
            return self._lanes.start(partial(self._reduce, surface, mask_size)).result
        arriving = self._reduce(surface, mask_size)
        return lambda: arriving

    def _reduce(self, surface: Surface, mask_size: Size | None) -> Arriving:
        reduced = reduce(
            surface,
            mask_size or surface.size,
            len(self.classes),
            self.device,
            confidence=self.confidence,
        )
        return self._transfer.download(
            (reduced.mask, reduced.pixels, reduced.confidence, reduced.uncertainty)
        )

    def _prediction(self, image: Pixels, result: Arriving) -> Prediction:
        mask, pixels, confidence, uncertainty = result.wait()
        return Prediction(
            image,
            self.classes,
            mask=mask.numpy(),
            pixels=pixels.numpy(),
            confidences=confidence.numpy(),
            uncertainty=uncertainty.item(),
        )


def load_model(
    uri: str | Packed,
    device: str | torch.device = "auto",
    options: Predict | None = None,
    threads: int | None = None,
    *,
    confidence: bool = True,
) -> Model:
    """The model of a bundle, or of the zoo by ``zoo:NAME``, on a device (``auto``: GPU, else CPU).

    One that another process has packed is unpacked. ``threads`` sets how many CPU threads torch
    takes in this process. Raises :class:`~segbatch.errors.ModelError` where the model cannot be
    loaded.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if isinstance(uri, Packed):
        network, config = uri.unpack(), uri.config
    else:
        network, config = load_bundle(uri)
    return Model(network, config, device, options, confidence=confidence)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant; ``auto`` is the first GPU, else the CPU. ``InputError`` for no device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device; auto, cpu, cuda or cuda:N are") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, but torch sees no GPU here")
    return resolved


def resolve_long_side(options: Predict, config: ModelConfig) -> int | None:
    """The longer side that images are downscaled to before prediction; ``None``: their own.

    ``auto`` is the model's ``long_side``, but ``None`` where images are cut into tiles.
    """
    if isinstance(options.long_side, str):  # auto
        return None if options.tile else config.long_side
    return options.long_side


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision meant; ``auto`` is fp32 on the CPU, bf16 on GPUs that have it, else fp16."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _check(image: Any) -> None:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        given = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image)
        raise InputError(f"an image to predict must be RGB, (height, width, 3) uint8, not {given}")


def reduce(
    surface: Surface,
    mask_size: Size,
    num_classes: int,
    device: torch.device,
    *,
    confidence: bool = True,
) -> Reduced:
    """Class ids on a grid of ``mask_size``, their counts, and confidence on the surface's grid.

    On a GPU by the fused kernel where it can, else in strips: class ids are the same but where two
    classes are as good as equal.
    """
    if device.type == "cuda" and isinstance(surface, Upsampled) and fused_on(device):
        from segbatch.model import fused

        if fused.serves(surface, mask_size):
            return fused.reduce(surface, mask_size, confidence=confidence)
    return reduce_in_strips(surface, mask_size, num_classes, device, confidence=confidence)


@cache
def fused_on(device: torch.device) -> bool:
    """Whether :mod:`segbatch.model.fused` can be had and was proved on ``device``; says if not."""
    try:
        from segbatch.model import fused  # Triton may be missing, and its compiler's compiler

        fused.prove(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"{device}: reducing logits without the fused kernel: {one_line(error)}")
        return False
    return True
