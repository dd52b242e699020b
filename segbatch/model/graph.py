"""A network as a graph for OpenVINO: converted from torch, kept on this machine, and read again.

The graph of a network takes normalised images, ``(n, height, width, 3)`` float32 of any size, and
gives their coarse logits, ``(n, classes, h, w)`` float32. Converting a network takes seconds, so
converted graphs are kept in the user's cache folder, by the SHA-256 of what they were made from.

Graphs that other tools made take and give other tensors, as their ``input`` and ``output`` say;
:func:`as_input` and :func:`as_logits` translate.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from torch import Tensor, nn

from segbatch.errors import InputError, JobFailed
from segbatch.model.config import GraphInput, GraphOutput, Layout
from segbatch.model.networks import Network

XML, WEIGHTS = "model.xml", "model.bin"
ONNX = "model.onnx"
ONNX_BACKBONE = "onnx"  # the ``backbone`` of a bundle whose graph is in ONNX
DIGEST = "sha256"  # of both, next to a kept graph
KEPT = 8  # graphs on a machine; those that were not used for longest are deleted
SMALLEST_PROBABILITY = 1e-12  # below it, a logarithm tells nothing
CLASS_AXIS: dict[Layout, int] = {"NCHW": 1, "NHWC": 3}
EXAMPLE_SIDE = 64  # pixels of the image with which a network is traced
_importing = threading.Lock()


@dataclass(frozen=True, eq=False)
class Graph:
    """A network in OpenVINO's intermediate representation, or in ONNX; it holds no code.

    ``model`` is the XML of the one or all of the other, ``weights`` the bytes of the constants,
    uint8, of which ONNX has none. ``input`` and ``output`` say what it takes and gives.
    """

    model: bytes
    weights: npt.NDArray[np.uint8]
    input: GraphInput
    output: GraphOutput

    @property
    def is_onnx(self) -> bool:
        return not self.weights.size

    @property
    def sha256(self) -> str:
        """SHA-256 of both files, 64 hex digits."""
        digest = hashlib.sha256(self.model + b"\0")
        digest.update(self.weights.data)
        return digest.hexdigest()


def has_openvino() -> bool:
    """Whether OpenVINO can be imported; it has no wheel for some platforms."""
    return find_spec("openvino") is not None


def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry: segbatch sends nothing anywhere.

    Raises :class:`~segbatch.errors.InputError` if it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with _importing:
        try:
            openvino = import_module("openvino")
        except ImportError as error:
            raise InputError("OpenVINO is not installed: pip install openvino") from error
        # The first use fills a static table of C++, in whose middle it lets go of Python's lock.
        # Two threads that first use it at the same time would wait for each other for ever.
        openvino.Type.f32.to_dtype()
    return openvino


class _Coarse(nn.Module):
    """The part of a network that prediction runs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.coarse(images)


def convert(network: Network) -> Graph:
    """The graph of a network on the CPU; its weights stay float32."""
    ov = import_openvino()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about torch.jit, on which convert_model itself relies
        side = max(EXAMPLE_SIDE, network.size_multiple)
        example = torch.zeros(1, 3, side, side)
        # Without its check, which runs the network twice more.
        coarse = _Coarse(network).eval()
        traced = torch.jit.trace(coarse, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = ov.convert_model(traced, example_input=example)
    model.reshape([-1, 3, -1, -1])
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_layout(ov.Layout("NHWC"))  # as images lie in memory
    steps.input().model().set_layout(ov.Layout("NCHW"))
    return serialized(steps.build(), *of_network(network))


def of_network(network: Network) -> tuple[GraphInput, GraphOutput]:
    """What the graph of a network takes and gives."""
    output = GraphOutput("logits", align_corners=network.align_corners, layout="NCHW")
    return GraphInput("images"), output


def serialized(model: Any, input: GraphInput, output: GraphOutput) -> Graph:
    """An ``openvino.Model`` as a graph."""
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        # By default, weights would be rounded to half precision.
        import_openvino().save_model(model, Path(folder, XML), compress_to_fp16=False)
        return _read(Path(folder), input, output)


def deserialized(graph: Graph) -> Any:
    """A graph as an ``openvino.Model``."""
    ov = import_openvino()
    if graph.is_onnx:
        return ov.Core().read_model(model=graph.model)
    return ov.Core().read_model(model=graph.model, weights=ov.Tensor(graph.weights))


def as_input(images: Tensor, input: GraphInput) -> npt.NDArray[Any]:
    """Normalised images, NCHW float32, in the layout and type that a graph takes."""
    pixels = images.permute(0, 2, 3, 1) if input.layout == "NHWC" else images
    array: npt.NDArray[Any] = pixels.contiguous().cpu().numpy()
    if input.dtype == "float32":
        return array
    whole: npt.NDArray[Any] = np.rint(array)  # as they were, up to rounding
    return whole.astype(input.dtype)


def as_logits(given: npt.NDArray[Any], output: GraphOutput, num_classes: int) -> Tensor:
    """What a graph gives, as logits, ``(n, classes, h, w)`` float32 and contiguous; labels as class
    ids, ``(n, 1, h, w)`` float32. One channel of two classes is that of the second one.

    Raises :class:`~segbatch.errors.JobFailed` for class ids that are none.
    """
    if output.kind == "labels":
        ids = given.reshape(given.shape[0], 1, *sides_of_labels(given.shape))
        if ids.size:
            _check_labels(ids, num_classes)
        return torch.from_numpy(ids.astype(np.float32))
    if given.ndim == 3:
        given = given[:, None]
    layout = output.layout or guessed_layout(given.shape, num_classes)
    number = given.shape[CLASS_AXIS[layout]]
    if number != num_classes and (number, num_classes) != (1, 2):
        raise JobFailed(f"the graph gives {given.shape}, which are not {num_classes} classes")
    if layout == "NHWC":
        given = given.transpose(0, 3, 1, 2)
    # In half precision, the smallest probability would be 0.
    given = given.astype(np.promote_types(given.dtype, np.float32), copy=False)
    if number == 1 < num_classes:
        other = 1 - given if output.kind == "probabilities" else np.zeros_like(given)
        given = np.concatenate([other, given], axis=1)
    if output.kind == "probabilities":
        given = np.log(np.maximum(given, SMALLEST_PROBABILITY))
    # A copy: the next call writes into the request's memory.
    return torch.from_numpy(np.array(given, np.float32, order="C"))


def _check_labels(ids: npt.NDArray[Any], num_classes: int) -> None:
    fractions = ids[ids != np.rint(ids)] if ids.dtype.kind == "f" else ids[:0]
    if fractions.size:
        raise JobFailed(
            f"the graph gives {fractions[0]:g} as a class id: import it without --output"
            " labels, or export it without a resize that blends class ids"
        )
    low, high = ids.min(), ids.max()
    if 0 <= low <= high < num_classes:
        return
    if high == 255 and np.isin(ids, (0, 255)).all():
        raise JobFailed(
            "the graph gives masks scaled to 0 and 255, and class ids are 0 and 1: export it"
            " without the factor of 255, and import it again"
        )
    raise JobFailed(
        f"the graph gives class ids from {low:g} to {high:g}, and the model has {num_classes}"
        " classes: import it again with all its --classes"
    )


def guessed_layout(shape: Sequence[int], num_classes: int) -> Layout:
    """The layout of logits or probabilities: NCHW, or NHWC where only that fits."""
    return "NHWC" if shape[1] != num_classes and shape[3] == num_classes else "NCHW"


def sides_of_labels(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of label maps ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, h, w, 1)``."""
    if len(shape) == 4:
        return (shape[2], shape[3]) if shape[1] == 1 else (shape[1], shape[2])
    return shape[1], shape[2]


def kept_graph(network: Network, what: str) -> Graph:
    """:func:`convert`, or the graph that an earlier call kept.

    ``what`` names the architecture: with the weights it decides whether two networks are the same.
    Where the cache folder cannot be used, nothing is kept.
    """
    folder = platformdirs.user_cache_path("segbatch") / "graphs"
    kept = folder / _key(network, what)
    try:
        graph = _read(kept, *of_network(network))
        if graph.sha256 == (kept / DIGEST).read_text():  # else the disk was full, or power failed
            kept.touch()
            return graph
        shutil.rmtree(kept)
    except OSError:
        pass
    graph = convert(network)
    try:
        _keep(graph, kept)
    except OSError:
        shutil.rmtree(kept, ignore_errors=True)
    return graph


def _key(network: Network, what: str) -> str:
    versions = f"{import_openvino().__version__} {torch.__version__}"
    digest = hashlib.sha256(f"{versions} {what}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().numpy().ravel())
    return digest.hexdigest()


def _read(folder: Path, input: GraphInput, output: GraphOutput) -> Graph:
    weights = np.fromfile(folder / WEIGHTS, np.uint8)
    return Graph((folder / XML).read_bytes(), weights, input, output)


def _keep(graph: Graph, kept: Path) -> None:
    """Write a graph next to others, so that it is there as a whole or not at all."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=kept.parent) as folder:
        written = Path(folder, kept.name)
        written.mkdir()
        (written / XML).write_bytes(graph.model)
        graph.weights.tofile(written / WEIGHTS)
        (written / DIGEST).write_text(graph.sha256)
        written.rename(kept)  # fails where another process was faster
    others = [path for path in kept.parent.iterdir() if not path.name.startswith(".")]
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
