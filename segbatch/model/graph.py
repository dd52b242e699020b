"""A network as an OpenVINO graph: converted from torch, kept on this machine, and read again.

A graph takes normalised images, ``(n, height, width, 3)`` float32 of any size, and gives their
coarse logits, ``(n, classes, h, w)`` float32. Converting a network takes seconds, so converted
graphs are kept in the user's cache folder, by the SHA-256 of what they were made from.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import warnings
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

from segbatch.errors import InputError
from segbatch.model.zoo import Network

XML, WEIGHTS = "model.xml", "model.bin"
DIGEST = "sha256"  # of both, next to a kept graph
KEPT = 8  # graphs on a machine; those that were not used for longest are deleted
EXAMPLE_SIDE = 64  # pixels of the image with which a network is traced


@dataclass(frozen=True, eq=False)
class Graph:
    """A network in OpenVINO's intermediate representation; it holds no code.

    ``weights`` are the bytes of its constants, uint8. ``align_corners``: as the network upsamples
    its logits to the image's size.
    """

    xml: bytes
    weights: npt.NDArray[np.uint8]
    align_corners: bool

    @property
    def sha256(self) -> str:
        """Of both files, 64 hex digits."""
        digest = hashlib.sha256(self.xml + b"\0")
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
    try:
        return import_module("openvino")
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install openvino") from error


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
    return serialized(steps.build(), network.align_corners)


def serialized(model: Any, align_corners: bool) -> Graph:
    """An ``openvino.Model`` as a graph."""
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        # By default, weights would be rounded to half precision.
        import_openvino().save_model(model, Path(folder, XML), compress_to_fp16=False)
        return _read(Path(folder), align_corners)


def deserialized(graph: Graph) -> Any:
    """A graph as an ``openvino.Model``."""
    ov = import_openvino()
    return ov.Core().read_model(model=graph.xml, weights=ov.Tensor(graph.weights))


def kept_graph(network: Network, what: str) -> Graph:
    """:func:`convert`, or the graph that an earlier call kept.

    ``what`` names the architecture: with the weights it decides whether two networks are the same.
    Where the cache folder cannot be used, nothing is kept.
    """
    folder = platformdirs.user_cache_path("segbatch") / "graphs"
    kept = folder / _key(network, what)
    try:
        graph = _read(kept, network.align_corners)
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


def _read(folder: Path, align_corners: bool) -> Graph:
    weights = np.fromfile(folder / WEIGHTS, np.uint8)
    return Graph((folder / XML).read_bytes(), weights, align_corners)


def _keep(graph: Graph, kept: Path) -> None:
    """Write a graph next to others, so that it is there as a whole or not at all."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=kept.parent) as folder:
        written = Path(folder, kept.name)
        written.mkdir()
        (written / XML).write_bytes(graph.xml)
        graph.weights.tofile(written / WEIGHTS)
        (written / DIGEST).write_text(graph.sha256)
        written.rename(kept)  # fails where another process was faster
    others = [path for path in kept.parent.iterdir() if not path.name.startswith(".")]
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
