"""Quantisation: a network whose layers compute in int8, for CPUs.

NNCF inserts the quantisers, and finds their ranges by running the network on images like those
that it will see (post-training quantisation). The result is a graph, in a bundle of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from segbatch.config.images import parse_source
from segbatch.config.job import Limits
from segbatch.console import say
from segbatch.errors import InputError, SourceError
from segbatch.images.decode import Decoded, decode_image
from segbatch.images.parts import read_images
from segbatch.images.sources import URI, stream_images
from segbatch.model.bundle import fingerprint, load_config, save_graph_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.graph import Graph, deserialized, import_openvino, serialized
from segbatch.model.patches import Pixels
from segbatch.model.predict import Model, load_model

NUM_IMAGES = 100
MAX_BYTES = 256 << 20  # of the images' pixels
SEED = 0


def has_nncf() -> bool:
    """Whether NNCF is installed; it is an extra."""
    return find_spec("nncf") is not None


def require_nncf() -> None:
    """Raises :class:`~segbatch.errors.InputError` if NNCF is not installed."""
    if not has_nncf():
        raise InputError("int8 needs NNCF: pip install 'segbatch[int8]'")


def quantize_bundle(uri: str, out: str, images: str) -> ModelConfig:
    """Write a bundle ``out`` that is the model ``uri`` in int8, calibrated with images drawn from
    ``images``: a folder, a glob or a manifest.

    Raises :class:`~segbatch.errors.InputError` if there are no images that can be read.
    """
    require_nncf()
    config = load_config(uri)
    if config.is_quantized or (config.input is not None and config.input.dtype != "float32"):
        raise InputError(f"{uri}: computes in int8 already")
    model = load_model(uri, device="cpu", engine="openvino", precision="fp32")
    source = parse_source(images)
    uris: list[str] = []
    with stream_images([source], reserved=(), leave_out=out) as stream:
        for batch in stream.batches:
            uris += batch.column(URI.name).to_pylist()
    if not uris:
        raise SourceError(f"--images {images}: has no images")
    return save_quantized(model, uri, out, [uris[row] for row in drawn(len(uris))])


def drawn(number: int) -> list[int]:
    """The positions of the images to calibrate with, out of ``number``: random, always the same.

    Memory and time do not grow with ``number``.
    """
    size = min(NUM_IMAGES, number)
    chosen = np.random.default_rng(SEED).choice(number, size, replace=False)
    return [int(position) for position in chosen]


def save_quantized(
    model: Model, model_uri: str, out: str, uris: Sequence[str], limits: Limits | None = None
) -> ModelConfig:
    """Quantise ``model``, which ``model_uri`` names, with the images at ``uris``, and write its
    bundle.

    Raises :class:`~segbatch.errors.SourceError` if none of the images can be read.
    """
    pixels = read_calibration_images(uris, limits or Limits(), model.long_side)
    say(f"calibrating int8 with {len(pixels)} images")
    graph = quantized(model, pixels)
    facts = {
        "quantized_from": model_uri,
        "sha256": fingerprint(model_uri),
        "calibration_images": len(pixels),
    }
    config = replace(model.config, provenance={**model.config.provenance, **facts})
    return save_graph_bundle(out, graph, config)


def read_calibration_images(
    uris: Sequence[str], limits: Limits, long_side: int | None
) -> list[Pixels]:
    """The images at ``uris`` that can be read, RGB HWC uint8, at most ``MAX_BYTES`` of them.

    Raises :class:`~segbatch.errors.SourceError` if there are none.
    """
    found: list[Pixels] = []
    for uri in uris:
        [data] = read_images([uri], limits.read_limits())
        if not isinstance(data, bytes):
            continue
        image = decode_image(data, max_pixels=limits.max_pixels, long_side=long_side)
        if isinstance(image, Decoded):
            found.append(image.pixels)
        if sum(pixels.nbytes for pixels in found) > MAX_BYTES:
            break
    if not found:
        raise SourceError(f"none of {len(uris)} images to calibrate with can be read")
    return found


def _is_transformer(config: ModelConfig) -> bool:
    """Whether residuals and layer norms have to stay in float, as in a SegFormer."""
    return config.arch == "segformer" and config.backbone.startswith("mit_")


def quantized(model: Model, images: Sequence[Pixels]) -> Graph:
    """The graph of ``model`` in int8; ``images`` as for :meth:`Model.predict_batch
    <segbatch.model.predict.Model.predict_batch>`.

    Source: NNCF's post-training quantisation, with its preset for networks whose activations are
    not all symmetric.
    """
    import_openvino()  # without telemetry, also in NNCF
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # about CUDA
    nncf = import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    graph = model.graph
    batches = list(model.graph_inputs(images))
    with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode(False):  # its bars
        network: Any = nncf.quantize(
            deserialized(graph),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            # Weights of 7 bits in every layer: with 8, sums overflow on CPUs without VNNI, and the
            # label maps are nonsense. A run must not depend on which CPU its nodes have.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                # SmoothQuant, which comes with TRANSFORMER, moves ranges into the weights, whose 7
                # bits are too few: of a SegFormer of random weights, 79 % of the pixels agreed with
                # fp32 instead of 93 %.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
            model_type=nncf.ModelType.TRANSFORMER if _is_transformer(model.config) else None,
        )
    return serialized(network, graph.input, graph.output)
