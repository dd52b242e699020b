"""ONNX export: a model as one file for other runtimes, compared with the network before writing.

The input ``image`` is RGB, ``(batch, height, width, 3)`` uint8 of any size; the file does the
normalisation and padding. The output ``logits`` is ``(batch, classes, height, width)`` float32;
its argmax over the classes is the class id, the same as that of :meth:`Model.predict
<segbatch.model.predict.Model.predict>` in fp32. The caller has to downscale the image to the
model's ``long_side``, because every runtime scales in its own way. The metadata of the file has
the classes, ``long_side`` and provenance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import pad

from segbatch import storage
from segbatch.errors import InputError, JobFailed
from segbatch.images.scaling import PADDING_MULTIPLE
from segbatch.model.bundle import fingerprint, load_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network
from segbatch.model.normalisation import normalized

REQUIRED = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
CHECKED_SIZES = ((1, 96, 160), (2, 131, 77))  # images, height, width
MAX_DIFFERENCE = 1e-3  # of logits, as a share of the largest one
MIN_EQUAL = 0.999  # share of pixels: between equally likely classes, rounding decides


@dataclass(frozen=True)
class Parity:
    """Differences between the exported file and the network, on random images."""

    difference: float
    """The largest difference of a logit, as a share of the largest logit."""
    equal: float
    """The share of pixels with the same class id, 0 to 1."""


class RawImageNetwork(nn.Module):
    """A network with its preprocessing: uint8 NHWC of any size in, logits NCHW of that size out."""

    mean: Tensor
    std: Tensor
    fill: Tensor

    def __init__(self, network: Network, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        for name, color in (("mean", config.mean), ("std", config.std), ("fill", config.fill)):
            self.register_buffer(name, torch.tensor(color, dtype=torch.float32)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        # The exporter understands these as multiples of 64, but cannot reason about `-height % 64`.
        rows = (height + PADDING_MULTIPLE - 1) // PADDING_MULTIPLE * PADDING_MULTIPLE
        columns = (width + PADDING_MULTIPLE - 1) // PADDING_MULTIPLE * PADDING_MULTIPLE
        relative = image.permute(0, 3, 1, 2).float() - self.fill
        padded = pad(relative, (0, columns - width, 0, rows - height)) + self.fill
        logits: Tensor = self.network(normalized(padded, self.mean, self.std))
        return logits[:, :, :height, :width]


def export_onnx(uri: str, output: str) -> Parity:
    """Write a bundle, or a zoo model, as an ONNX file to ``output``, any URI.

    Raises :class:`~segbatch.errors.InputError` if the extra ``onnx`` is not installed or
    ``output`` cannot be written, :class:`~segbatch.errors.ModelError` if the model cannot be
    loaded, and :class:`~segbatch.errors.JobFailed` if the network cannot be exported, or the
    exported file predicts differently.
    """
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        raise InputError(f"{', '.join(missing)}: not installed; pip install 'segbatch[onnx]'")
    network, config = load_bundle(uri)
    module = RawImageNetwork(network, config).eval()
    exportable = RawImageNetwork(network.exportable(), config).eval()
    content = _exported(exportable, _metadata(uri, config))
    parity = _compared(module, content)
    if parity.difference > MAX_DIFFERENCE or parity.equal < MIN_EQUAL:
        raise JobFailed(
            f"{uri}: as ONNX it predicts something else: logits differ by up to"
            f" {parity.difference:.2g} of the largest, and {1 - parity.equal:.2%} of pixels get"
            " another class; nothing was written"
        )
    try:
        storage.write_bytes(output, content)
    except OSError as error:
        raise InputError(f"cannot write {error}") from error
    return parity


def _exported(module: RawImageNetwork, metadata: dict[str, str]) -> bytes:
    sides = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    example = torch.zeros(2, 100, 150, 3, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": sides},
            verbose=False,  # it prints to stdout
        )
    except torch.onnx.OnnxExporterError as error:
        reason = storage.one_line(error.__cause__ or error)
        raise JobFailed(f"the network cannot be exported to ONNX: {reason}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.model.metadata_props.update(metadata)
    proto = program.model_proto
    # The exporter's own names are right but hard to read: Min(height, 64*(height + 63)//64).
    shape = proto.graph.output[0].type.tensor_type.shape
    shape.dim[2].dim_param, shape.dim[3].dim_param = "height", "width"
    content: bytes = proto.SerializeToString()
    return content


def _metadata(uri: str, config: ModelConfig) -> dict[str, str]:
    """The metadata of the file: what its users need to know; lists as JSON."""
    return {
        "input": "image: RGB, uint8, (batch, height, width, 3), any size; normalised inside",
        "output": "logits: float32, (batch, classes, height, width); argmax is the class id",
        "classes": json.dumps(config.classes.to_json(), ensure_ascii=False),
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
        "long_side": json.dumps(config.long_side),
        "arch": config.arch,
        "backbone": config.backbone,
        "model": uri,
        "sha256": fingerprint(uri),
    }


def _compared(module: RawImageNetwork, content: bytes) -> Parity:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    difference, equal = 0.0, 1.0
    for num_images, height, width in CHECKED_SIZES:
        images = torch.randint(
            256, (num_images, height, width, 3), dtype=torch.uint8, generator=generator
        )
        with torch.inference_mode():
            expected: Any = module(images).numpy()
        [logits] = session.run(None, {"image": images.numpy()})
        if logits.shape != expected.shape:
            return Parity(float("inf"), 0.0)
        largest = float(np.abs(expected).max()) or 1.0
        difference = max(difference, float(np.abs(logits - expected).max()) / largest)
        equal = min(equal, float((logits.argmax(1) == expected.argmax(1)).mean()))
    return Parity(difference, equal)
