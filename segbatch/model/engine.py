"""Engines: what runs a network, from normalised images to coarse logits.

torch runs every network on every device. On CPUs, OpenVINO runs the same network about twice as
fast (``benchmarks/README.md``), and in bf16 and int8 where the CPU computes them in hardware.
Nothing before and after depends on which of them it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from segbatch.config.job import Predict
from segbatch.errors import InputError
from segbatch.model.config import GRAPH, ModelConfig
from segbatch.model.device import DTYPES, computes_bf16, predict_precision
from segbatch.model.graph import Graph, deserialized, has_openvino, import_openvino
from segbatch.model.zoo import Network

# int8: the layers that were not quantised.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class EngineChoice(NamedTuple):
    """An engine and a precision, without ``auto``."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


class Engine(Protocol):
    """Runs a network on batches of images; several threads may call it.

    ``name`` is ``torch`` or ``openvino``. ``align_corners``: as the network upsamples its logits
    to the image's size.
    """

    name: str
    align_corners: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Coarse logits, ``(n, classes, h, w)`` float32 and contiguous, of ``images``, normalised,
        NCHW float32, channels last, padded to multiples of 64.
        """
        ...


class TorchEngine:
    """torch, on any device."""

    name = "torch"

    def __init__(
        self, module: Network, device: torch.device, precision: str, *, compile: bool = False
    ) -> None:
        self.align_corners = module.align_corners
        self._coarse = torch.compile(module.coarse) if compile else module.coarse
        self._device_type = device.type
        self._dtype = DTYPES[precision]

    def __call__(self, images: Tensor) -> Tensor:
        is_reduced = self._dtype != torch.float32
        with torch.autocast(self._device_type, self._dtype, enabled=is_reduced):
            coarse: Tensor = self._coarse(images)
        return coarse.float().contiguous()


class OpenVinoEngine:
    """OpenVINO on the CPU, with one stream for each lane (:class:`~segbatch.model.device.Lanes`).

    A call takes the threads that torch has in the calling thread: in a lane its share, elsewhere
    all of them. ``make_graph`` is called when the graph is first needed.
    """

    name = "openvino"

    def __init__(
        self,
        make_graph: Callable[[], Graph],
        precision: str,
        num_lanes: int,
        *,
        align_corners: bool,
    ) -> None:
        self.align_corners = align_corners
        self._make_graph = make_graph
        self._hint = HINTS[precision]
        self._num_lanes = num_lanes
        self._threads = torch.get_num_threads()
        self._models: dict[int, Any] = {}  # compiled, by their number of streams
        self._requests = threading.local()
        self._compiling = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        is_alone = torch.get_num_threads() == self._threads
        request = self._request(1 if is_alone else self._num_lanes)
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        logits = request.infer({0: pixels}, share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(logits.copy())  # the next call writes into the request's memory

    @cached_property
    def graph(self) -> Graph:
        """What it runs."""
        return self._make_graph()

    def _request(self, num_streams: int) -> Any:
        """This thread's request to the model with so many streams."""
        requests: dict[int, Any] = self._requests.__dict__.setdefault("by_streams", {})
        if num_streams not in requests:
            with self._compiling:
                if num_streams not in self._models:
                    self._models[num_streams] = self._compiled(num_streams)
            requests[num_streams] = self._models[num_streams].create_infer_request()
        return requests[num_streams]

    def _compiled(self, num_streams: int) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": self._threads,
            # Workers that share a node would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        return import_openvino().Core().compile_model(deserialized(self.graph), "CPU", settings)


def runs_here(arch: str) -> list[str]:
    """The engines and precisions that this machine computes in hardware for an architecture."""
    bf16 = ["bf16"] * computes_bf16()
    openvino = [f"openvino {name}" for name in ("fp32", *bf16, "int8")] if has_openvino() else []
    if arch == GRAPH:
        return openvino
    gpu = ["torch on the GPU"] if torch.cuda.is_available() else []
    return [*gpu, *openvino, *(f"torch {name}" for name in ("fp32", *bf16))]


def model_precision(asked: str, config: ModelConfig, device: torch.device) -> str:
    """The precision of a model's predictions: int8 for one that was quantised, else
    :func:`~segbatch.model.device.predict_precision`.
    """
    return "int8" if config.is_quantized else predict_precision(asked, device)


def check_graph(options: Predict, config: ModelConfig, device: torch.device) -> None:
    """Raises :class:`~segbatch.errors.InputError` for options that a graph does not take."""
    if options.engine == "torch" or options.compile:
        raise InputError("predict.engine: the model is a graph, which runs with OpenVINO: set auto")
    if device.type != "cpu":
        raise InputError(f"the model is a graph, which runs on CPUs, not on {device}")
    if config.is_quantized and options.precision not in ("auto", "int8"):
        raise InputError(
            f"predict.precision: the model computes in int8, not in {options.precision}: set auto"
        )
    import_openvino()


def resolve_engine(
    options: Predict, device: torch.device, say: Callable[[str], None] = lambda _: None
) -> str:
    """``torch`` or ``openvino`` for ``options.engine``; ``auto`` is OpenVINO on CPUs.

    Raises :class:`~segbatch.errors.InputError` for an engine that does not run here.
    """
    if options.precision == "int8" and device.type != "cpu":
        raise InputError(f"predict.precision: int8 runs on CPUs, not on {device}: set it to auto")
    emulates_bf16 = options.precision == "bf16" and not computes_bf16()
    if options.engine == "openvino":
        if device.type != "cpu":
            raise InputError(
                f"predict.engine: openvino runs on CPUs and the device is {device}: set it to"
                " torch, or resources.device to cpu"
            )
        if not has_openvino():
            raise InputError("predict.engine: OpenVINO is not installed: pip install openvino")
        if emulates_bf16:
            raise InputError("predict.precision: this CPU does not compute bf16: set it to fp32")
        return "openvino"
    only_torch = options.engine == "torch" or options.compile or options.precision == "fp16"
    if device.type != "cpu" or only_torch or emulates_bf16:
        return "torch"
    if options.precision == "int8":
        import_openvino()
    if not has_openvino():
        say("OpenVINO is not installed, so torch runs the network, at about half the speed")
        return "torch"
    return "openvino"
