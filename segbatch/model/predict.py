"""Prediction: images in, label maps and their statistics out, on one device and without Ray.

:meth:`Model.predict_batch` takes an image through six steps, each in a file of its own:

    patches.py     images → patches, in batches of one padded shape
    predict.py     a batch of patches → normalised → the engine → coarse logits of each patch
    engine.py      what runs the network: torch or OpenVINO
    logits.py      the coarse logits of an image's patches → full-size logits, by strips of rows
    reduction.py   full-size logits → label map, counts and confidence, on the device
    device.py      batches to the device and results back, while it computes

An image is reduced as soon as its last patch is through the network, and its results are read
while the next batch runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from segbatch import masks
from segbatch.config.job import Predict
from segbatch.config.validation import explain
from segbatch.errors import DoesNotFit, InputError
from segbatch.images.scaling import FILTER, downscale
from segbatch.masks.classes import Classes, SegClass
from segbatch.masks.html import picture_html, swatch, table_html
from segbatch.model.bundle import Packed, load_config, load_graph, load_network
from segbatch.model.config import ModelConfig
from segbatch.model.device import (
    HostCopy,
    Lanes,
    Transfer,
    resolve_device,
)
from segbatch.model.engine import (
    Engine,
    OpenVinoEngine,
    choose_engine,
    model_precision,
    require_quantized,
    start_engine,
)
from segbatch.model.graph import Graph, as_input, kept_graph
from segbatch.model.logits import LazyLogits, combine, logits_of
from segbatch.model.networks import Network
from segbatch.model.normalisation import normalized
from segbatch.model.patches import (
    Patch,
    Pixels,
    Size,
    num_patches,
    patch_batches,
    size_of,
    stack,
)
from segbatch.model.reduction import reduce

CPU_BATCH_PIXELS = 512 * 512  # at most, so that layers stay in a core's cache


def load_model(
    uri: str,
    device: str | torch.device = "auto",
    engine: str = "auto",
    precision: str = "auto",
    *,
    options: Predict | None = None,
    threads: int | None = None,
    confidence: bool = True,
) -> Model:
    """The model of a bundle, or ``zoo:NAME``, on a device (``auto``: the GPU, else the CPU).

    ``engine`` (``torch``, ``openvino``) and ``precision`` (``fp32``, ``bf16``, ``fp16``) are those
    of ``options`` where they are ``auto``; ``options`` and ``confidence`` are those of
    :class:`Model`. ``threads`` sets the number of CPU threads that the engine takes. Raises
    :class:`~segbatch.errors.ModelError` if the model cannot be loaded, and
    :class:`~segbatch.errors.InputError` for an engine or a precision that does not run here.
    """
    options = _options(options or Predict(), engine, precision)
    place, config = resolve_device(device), load_config(uri)
    chosen = choose_engine(options, config, place)
    require_quantized(options, config, uri)
    source = load_graph(uri, config) if config.is_graph else load_network(uri, config)
    return _with_engine(
        source, config, place, options, engine=chosen.engine, threads=threads, confidence=confidence
    )


def unpack_model(
    packed: Packed,
    device: str | torch.device = "auto",
    *,
    options: Predict | None = None,
    threads: int | None = None,
    confidence: bool = True,
) -> Model:
    """The model that another process has packed; arguments as for :func:`load_model`.

    That process has chosen the engine, and packed what it runs.
    """
    return _with_engine(
        packed.unpack(),
        packed.config,
        resolve_device(device),
        options or Predict(),
        engine="torch",
        threads=threads,
        confidence=confidence,
    )


def _with_engine(
    source: Network | Graph,
    config: ModelConfig,
    device: torch.device,
    options: Predict,
    *,
    engine: str,
    threads: int | None,
    confidence: bool,
) -> Model:
    """A model whose engine is started; ``engine`` runs a network, a graph has no choice."""
    if threads is not None:
        torch.set_num_threads(threads)
    running = start_engine(source, config, device, options, engine)
    module = None if isinstance(source, Graph) else source
    return Model(module, config, device, options, engine=running, confidence=confidence)


def _options(options: Predict, engine: str, precision: str) -> Predict:
    given = {"engine": engine, "precision": precision}
    chosen = {key: value for key, value in given.items() if value != "auto"}
    try:
        return Predict.model_validate({**options.model_dump(), **chosen})
    except ValidationError as error:
        raise InputError(f"load_model: {next(explain(error))}") from error


def resolve_long_side(options: Predict, config: ModelConfig) -> int | None:
    """The longer side that images are downscaled to before prediction; ``None``: never.

    ``auto`` is the ``long_side`` of the model, but ``None`` where images are cut into tiles.
    """
    if isinstance(options.long_side, str):  # auto
        return None if options.tile else config.long_side
    return options.long_side


class Model:
    """A network on a device, ready to predict.

    ``module`` is the network, ``None`` in a process that got only its graph; ``classes`` are its
    classes. ``options`` say how to predict, ``confidence`` whether to measure confidence and
    uncertainty. ``engine`` runs the network, by default torch. ``device``, ``precision`` and
    ``long_side`` have no ``auto`` left. ``num_batches`` counts batches through the network.
    """

    def __init__(
        self,
        module: Network | None,
        config: ModelConfig,
        device: str | torch.device = "auto",
        options: Predict | None = None,
        *,
        engine: Engine | None = None,
        confidence: bool = True,
    ) -> None:
        self.config = config
        self.options = options or Predict()
        self.confidence = confidence and not config.gives_labels
        self.device = resolve_device(device)
        self.precision = model_precision(self.options.precision, config, self.device)
        self.long_side = resolve_long_side(self.options, config)
        self.module = module
        if engine is None:
            assert module is not None
            engine = start_engine(module, config, self.device, self.options)
        self.engine = engine
        self._lanes = Lanes() if self.device.type == "cpu" else None
        self._transfer = Transfer(self.device)
        self._mean = torch.tensor(config.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(config.std, device=self.device)[:, None, None]
        self._fitting: dict[Size, int] = {}  # patches a batch, where `batch_size` did not fit
        self.num_batches = 0

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Model({config.arch} {config.backbone}, {len(config.classes)} classes, {self.device},"
            f" {self.engine.name} {self.precision})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: what the model is, and its classes with their IoU."""
        iou = self.config.metrics.get("iou", {})
        rows = [
            (swatch(c), "–" if iou.get(c.name) is None else f"{iou[c.name]:.3f}")
            for c in self.classes
        ]
        return f"<p>{escape(repr(self))}</p>{table_html(rows, ('class', 'IoU'))}"

    @property
    def classes(self) -> Classes:
        return self.config.classes

    @cached_property
    def graph(self) -> Graph:
        """The network as an OpenVINO graph."""
        if isinstance(self.engine, OpenVinoEngine):
            return self.engine.graph
        assert self.module is not None
        return kept_graph(self.module, self.config.architecture)

    def predict(self, image: Pixels | Image.Image) -> Prediction:
        """Predict one image, RGB HWC uint8 or a Pillow image; EXIF orientation is ignored.

        The mask has the size of the image. Raises :class:`~segbatch.errors.InputError` for an
        array of another shape or type.
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
        """Predict images that were already downscaled to :attr:`long_side`, in their order.

        ``images`` are RGB HWC uint8, of any sizes. ``mask_sizes`` has ``(height, width)`` for each
        mask, or ``None`` for the size of the image. In memory are, on a GPU, one batch in the
        network and one waiting, on the CPU two for each lane, and the coarse logits of
        ``batch_size`` images, or of one image in tiles.
        Raises :class:`~segbatch.errors.InputError` for other arrays and
        :class:`~segbatch.errors.DoesNotFit` for an image too large for the device.
        """
        for image in images:
            _check(image)
        predictions: dict[int, Prediction] = {}
        reductions: dict[int, Future[tuple[Tensor, ...]] | HostCopy] = {}
        for complete in self._complete_images(images):
            started = {i: self._reduce(logits, mask_sizes[i]) for i, logits in complete.items()}
            # Those of the batch before: the device has this batch to work on meanwhile.
            predictions |= {i: self._prediction(images[i], r) for i, r in reductions.items()}
            reductions = started
        predictions |= {i: self._prediction(images[i], r) for i, r in reductions.items()}
        return [predictions[index] for index in range(len(images))]

    def _complete_images(self, images: Sequence[Pixels]) -> Iterator[dict[int, LazyLogits]]:
        """After each batch, the full-size logits of the images whose last patch was in it."""
        views: defaultdict[int, dict[int, LazyLogits]] = defaultdict(dict)
        num_labels = len(self.classes) if self.config.gives_labels else None
        batches = patch_batches(images, self.options, self._max_patches, self._canvas)
        for batch, coarse_logits in self._through_network(batches):
            self.num_batches += 1
            complete = {}
            for patch, coarse in zip(batch, coarse_logits, strict=True):
                index, size = patch.image, size_of(images[patch.image])
                views[index][patch.view] = logits_of(
                    patch, coarse, self.engine.align_corners, num_labels
                )
                if len(views[index]) == num_patches(size, self.options):
                    complete[index] = combine(
                        size, views.pop(index), self.options, len(self.classes), self.device
                    )
            yield complete

    @property
    def _canvas(self) -> Size | None:
        """The size of image that the model takes, ``None`` if it takes any."""
        return None if self.config.input is None else self.config.input.size

    def graph_inputs(self, images: Sequence[Pixels]) -> Iterator[npt.NDArray[Any]]:
        """What the graph gets of ``images``, one patch at a time."""
        for batch in patch_batches(images, self.options, lambda _: 1, self._canvas):
            yield as_input(self._normalized(self._pack(batch)), self.graph.input)

    def _max_patches(self, padded: Size) -> int:
        """The number of patches of a padded shape that go through the network together."""
        number = self._fitting.get(padded, self.options.batch_size)
        if self._lanes is None:
            return number
        height, width = padded
        return min(number, max(1, CPU_BATCH_PIXELS // (height * width)))

    def _through_network(
        self, batches: Iterator[list[Patch]]
    ) -> Iterator[tuple[list[Patch], list[Tensor]]]:
        """Each batch with the coarse logits of its patches, ``(classes, h, w)`` float32."""
        if self._lanes is not None:
            return self._lanes.map(lambda batch: self._forward(self._pack(batch)), batches)
        uploaded = self._transfer.upload(batches, self._pack)
        return ((batch, self._forward(pixels)) for batch, pixels in uploaded)

    def _pack(self, batch: list[Patch], pinned: bool = False) -> Tensor:
        """The patches with their padding, NHWC uint8, on the host."""
        host = torch.empty(len(batch), *batch[0].padded, 3, dtype=torch.uint8, pin_memory=pinned)
        stack(batch, host.numpy(), np.array(self.config.fill, np.uint8))
        return host

    def _forward(self, pixels: Tensor) -> list[Tensor]:
        """The coarse logits of each of ``pixels``, NHWC uint8.

        Halves the batch until it fits the memory of the device.
        """
        num_images, height, width, _ = pixels.shape
        try:
            return list(self.engine(self._normalized(pixels)))
        except torch.OutOfMemoryError:
            if num_images == 1:
                raise DoesNotFit(
                    f"{self.device} has not enough memory for one image of {width}×{height}:"
                    " set predict.long_side or predict.tile"
                ) from None
        # Outside of `except`, which keeps the failed batch alive through its traceback.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = self._fitting[height, width] = (num_images + 1) // 2
        return self._forward(pixels[:half]) + self._forward(pixels[half:])

    def _normalized(self, pixels: Tensor) -> Tensor:
        """NHWC uint8 as normalised NCHW float32, channels last as the bytes were."""
        values = pixels.permute(0, 3, 1, 2).float()
        return normalized(values, self._mean, self._std, self.config.range)

    def _reduce(
        self, logits: LazyLogits, mask_size: Size | None
    ) -> Future[tuple[Tensor, ...]] | HostCopy:
        """Start to reduce ``logits``; the result is a :class:`~segbatch.model.strips.Reduced`."""
        reduction = partial(
            reduce,
            logits,
            mask_size or logits.size,
            len(self.classes),
            self.device,
            confidence=self.confidence,
        )
        if self._lanes is not None:
            return self._lanes.start(reduction)
        return self._transfer.download(reduction())

    def _prediction(
        self, image: Pixels, reduction: Future[tuple[Tensor, ...]] | HostCopy
    ) -> Prediction:
        """Wait for a reduction."""
        mask, pixels, confidence, uncertainty = reduction.result()
        return Prediction(
            image,
            self.classes,
            mask=mask.numpy(),
            pixels=pixels.numpy(),
            confidences=confidence.numpy(),
            uncertainty=uncertainty.item(),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What the model sees in one image.

    ``image`` is ``(height, width, 3)`` uint8, as it was given. ``mask`` is ``(height, width)``
    uint8 of class ids, ``pixels`` ``(classes,)`` int64, their counts. ``confidences`` is
    ``(classes,)`` float32, 0 to 1: the mean probability with which the class won its pixels, NaN
    where it has none. ``uncertainty`` is 1 − the mean margin between the two likeliest classes, 0
    to 1. Both are measured on the grid of the network's image, and NaN if not requested.
    """

    image: Pixels
    classes: Classes
    mask: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float32]
    uncertainty: float

    def __repr__(self) -> str:
        height, width = self.mask.shape
        shares = ", ".join(f"{c.name} {share}" for c, share in self._shares())
        return f"Prediction({width}×{height}: {shares or 'nothing'})"

    def _repr_html_(self) -> str:
        """For notebooks: the overlay, and the share of each class."""
        return picture_html(self.overlay(), self._shares())

    def _shares(self) -> list[tuple[SegClass, str]]:
        """The classes with pixels and their shares as texts, the largest first."""
        largest = np.argsort(-self.pixels, kind="stable")
        shares = self.pixels / self.mask.size
        return [(self.classes[i], masks.share(shares[i])) for i in largest.tolist() if shares[i]]

    @property
    def coverage(self) -> dict[str, float]:
        """The share of the mask that each class covers, by name; 0 to 1, together 1."""
        shares = self.pixels / self.mask.size
        return dict(zip(self.classes.names, shares.tolist(), strict=True))

    @property
    def confidence(self) -> dict[str, float | None]:
        """``confidences`` by class name; ``None`` where the class is absent."""
        values = [None if np.isnan(value) else float(value) for value in self.confidences]
        return dict(zip(self.classes.names, values, strict=True))

    def overlay(self, alpha: float = masks.FILL) -> Image.Image:
        """The image under the colours of its classes, in the size of the mask; see
        :func:`segbatch.masks.overlay`.
        """
        image = self.image
        if size_of(image) != self.mask.shape:
            height, width = self.mask.shape
            image = np.asarray(Image.fromarray(image).resize((width, height), FILTER))
        return masks.overlay(image, self.mask, self.classes, alpha)


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
