"""Engines: what runs a network, from normalised images to coarse logits.

torch runs every network on every device. On CPUs, OpenVINO runs the same network about twice as
fast (``benchmarks/README.md``), and in bf16 and int8 where the CPU computes them in hardware; it
also runs graphs, and ONNX Runtime those in ONNX on GPUs. Nothing before and after depends on which
of them it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, cast

import numpy.typing as npt
import torch
from torch import Tensor

from segbatch.config.job import Predict
from segbatch.console import say
from segbatch.errors import InputError
from segbatch.model.config import GRAPH, ModelConfig
from segbatch.model.device import DTYPES, Lanes, computes_bf16, predict_precision
from segbatch.model.graph import (
    ONNX_BACKBONE,
    Graph,
    as_input,
    as_logits,
    deserialized,
    has_openvino,
    import_openvino,
    kept_graph,
    of_network,
)
from segbatch.model.networks import Network
from segbatch.storage import one_line

ONNX_ON_GPU = "CUDAExecutionProvider"
# OpenVINO's names of precisions; for int8 that of the layers that were not quantised.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


# How ONNX Runtime and the libraries below it say that memory is not enough, in lower case.
OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "alloc_failed")


class EngineChoice(NamedTuple):
    """An engine and a precision, without ``auto``."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


class Engine(Protocol):
    """Runs a network on batches of images; several threads may call it.

    ``name`` is ``torch``, ``openvino`` or ``onnxruntime``. ``align_corners``: as the network
    upsamples its logits to the image's size.
    """

    name: str
    align_corners: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Coarse logits, ``(n, classes, h, w)`` float32 and contiguous, of ``images``, normalised,
        NCHW float32, channels last, padded to multiples of 64 or the size that the model takes. A
        graph that gives labels: class ids, ``(n, 1, h, w)`` float32.
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
    all of them. The graph of a network is made when it is first needed.
    """

    name = "openvino"

    def __init__(self, source: Network | Graph, config: ModelConfig, precision: str) -> None:
        if isinstance(source, Graph):
            self._input, self._output = source.input, source.output
        else:
            self._input, self._output = of_network(source)
        self.align_corners = self._output.align_corners
        self._source, self._architecture = source, config.architecture
        self._num_classes = len(config.classes)
        self._hint = HINTS[precision]
        self._num_lanes = Lanes.count()
        self._threads = torch.get_num_threads()
        self._models: dict[int, Any] = {}  # compiled, by their number of streams
        self._requests = threading.local()
        self._compiling = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        is_alone = torch.get_num_threads() == self._threads
        request = self._request(1 if is_alone else self._num_lanes)
        pixels = as_input(images, self._input)
        shape = request.model_inputs[0].partial_shape
        step = len(pixels) if shape[0].is_dynamic else shape[0].get_length()
        logits = []
        for start in range(0, len(pixels), step):
            given = request.infer(
                {0: pixels[start : start + step]}, share_inputs=True, share_outputs=True
            )
            place = self._place(request.model_outputs)
            logits.append(as_logits(given[place], self._output, self._num_classes))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _place(self, outputs: Sequence[Any]) -> int:
        """The position of the output among the graph's; a network's graph has one."""
        by_name = (i for i, one in enumerate(outputs) if self._output.name in one.names)
        # An output without a name is called by its position.
        return next(by_name, int(self._output.name) if self._output.name.isdigit() else 0)

    @cached_property
    def graph(self) -> Graph:
        """The graph that this engine runs; a network is converted at first use."""
        if isinstance(self._source, Graph):
            return self._source
        return kept_graph(self._source, self._architecture)

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


class OnnxRuntimeEngine:
    """ONNX Runtime on a GPU, for graphs in ONNX."""

    name = "onnxruntime"

    def __init__(self, graph: Graph, device: torch.device, num_classes: int) -> None:
        import onnxruntime

        self.align_corners = graph.output.align_corners
        self._graph, self._device, self._num_classes = graph, device, num_classes
        provider: Any = "CPUExecutionProvider"
        if device.type == "cuda":
            provider = (ONNX_ON_GPU, {"device_id": device.index or 0})
        self._session = onnxruntime.InferenceSession(graph.model, providers=[provider])
        # OpenVINO may know both by the names of tensors next to them.
        [taken] = self._session.get_inputs()
        outputs = [one.name for one in self._session.get_outputs()]
        self._input = taken.name
        self._output = outputs[0] if len(outputs) == 1 else graph.output.name

    def __call__(self, images: Tensor) -> Tensor:
        pixels = as_input(images, self._graph.input)
        batch = self._session.get_inputs()[0].shape[0]
        step = batch if isinstance(batch, int) else len(pixels)
        logits = []
        for start in range(0, len(pixels), step):
            given = self._run(pixels[start : start + step])
            logits.append(as_logits(given, self._graph.output, self._num_classes))
        return torch.cat(logits).to(self._device)

    def _run(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the graph gives; raises ``torch.OutOfMemoryError`` where that does not fit."""
        try:
            [given] = self._session.run([self._output], {self._input: pixels})
        except Exception as error:  # its types have no other base, and none is for memory
            reason = str(error).lower()
            if isinstance(error, MemoryError) or any(text in reason for text in OUT_OF_MEMORY):
                raise torch.OutOfMemoryError(one_line(error)) from None
            raise
        return cast(npt.NDArray[Any], given)


def has_onnxruntime_on_gpu() -> bool:
    """Whether ONNX Runtime is installed with its CUDA provider."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return ONNX_ON_GPU in onnxruntime.get_available_providers()


def runs_here(arch: str) -> list[str]:
    """The engines and precisions that this machine computes in hardware for an architecture."""
    bf16 = ["bf16"] * computes_bf16()
    openvino = [f"openvino {name}" for name in ("fp32", *bf16, "int8")] if has_openvino() else []
    if arch == GRAPH:
        return openvino
    gpu = ["torch on the GPU"] if torch.cuda.is_available() else []
    return [*gpu, *openvino, *(f"torch {name}" for name in ("fp32", *bf16))]


def choose_engine(options: Predict, config: ModelConfig, device: torch.device) -> EngineChoice:
    """The engine and the precision of a model on a device, for the options of a job.

    Raises :class:`~segbatch.errors.InputError` for what does not run there. A network in int8 is
    one that can be quantised; :func:`require_quantized` refuses it where that is too late.
    """
    if config.is_graph:
        check_graph(options, config, device)
        engine = "openvino" if device.type == "cpu" else "onnxruntime"
    else:
        engine = resolve_engine(options, device, say)
    return EngineChoice(engine, model_precision(options.precision, config, device))


def require_quantized(options: Predict, config: ModelConfig, uri: str = "BUNDLE") -> None:
    """Raises :class:`~segbatch.errors.InputError` for int8 of a model that is not quantised."""
    if options.precision == "int8" and not config.is_quantized:
        raise InputError(
            "predict.precision: the model computes in int8 once it is quantised: segbatch model"
            f" quantize {uri} OUT --images FOLDER"
        )


def start_engine(
    source: Network | Graph,
    config: ModelConfig,
    device: torch.device,
    options: Predict,
    engine: str = "torch",
) -> Engine:
    """What runs a network, with ``engine`` (torch or OpenVINO), or a graph on a device.

    Raises :class:`~segbatch.errors.InputError` for int8 of a model that is not quantised.
    """
    require_quantized(options, config)
    precision = model_precision(options.precision, config, device)
    if isinstance(source, Graph) and device.type != "cpu":
        return OnnxRuntimeEngine(source, device, len(config.classes))
    if isinstance(source, Graph) or engine == "openvino":
        return OpenVinoEngine(source, config, precision)
    # Channels last: up to 1.7 times as fast on the CPU, and as tensor cores take it.
    source.eval().to(device).to(memory_format=torch.channels_last)
    return TorchEngine(source, device, precision, compile=options.compile)


def model_precision(asked: str, config: ModelConfig, device: torch.device) -> str:
    """The precision of a model's predictions: int8 for one that was quantised, fp32 for a graph on
    a GPU, else :func:`~segbatch.model.device.predict_precision`.
    """
    if config.is_graph and device.type != "cpu":
        return "fp32"
    return "int8" if config.is_quantized else predict_precision(asked, device)


def check_graph(options: Predict, config: ModelConfig, device: torch.device) -> None:
    """Raises :class:`~segbatch.errors.InputError` for options that a graph does not take."""
    if options.engine == "torch" or options.compile:
        raise InputError("predict.engine: the model is a graph, which runs with OpenVINO: set auto")
    if config.input is not None and config.input.size and options.scales != [1.0]:
        height, width = config.input.size
        raise InputError(
            f"predict.scales: the model takes images of {width}×{height} alone: set it to [1.0]"
        )
    if device.type != "cpu":
        if config.backbone != ONNX_BACKBONE or config.is_quantized:
            raise InputError(
                f"the model is a graph of OpenVINO, which runs on CPUs, not on {device}: set"
                " resources.device to cpu, or import the network as ONNX"
            )
        if not has_onnxruntime_on_gpu():
            raise InputError(
                f"the model is a graph in ONNX, which needs ONNX Runtime on {device}: pip install"
                " onnxruntime-gpu, or set resources.device to cpu"
            )
    _check_graph_precision(options.precision, config, device)
    require_quantized(options, config)
    if device.type == "cpu":
        import_openvino()


def _check_graph_precision(asked: str, config: ModelConfig, device: torch.device) -> None:
    key = "predict.precision: the model is a graph, which"
    if device.type != "cpu":
        if asked not in ("auto", "fp32"):
            raise InputError(f"{key} computes in fp32 on {device}, not in {asked}: set auto")
    elif config.is_quantized:
        if asked not in ("auto", "int8"):
            raise InputError(
                f"predict.precision: the model computes in int8, not in {asked}: set auto"
            )
    elif asked == "fp16":
        raise InputError(f"{key} OpenVINO computes in fp32 or bf16, not in fp16: set auto")
    elif asked == "bf16" and not computes_bf16():
        raise InputError("predict.precision: this CPU does not compute bf16: set auto")


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
