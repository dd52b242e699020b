"""Model bundles: a folder with everything that prediction needs, and no code that could run.

    config.json         architecture, classes, normalisation, metrics, provenance
    model.safetensors   the weights, under the key names of the architecture's own library;
    model.xml, .bin     or instead of them an OpenVINO graph, which can only predict
    model.onnx          or one in ONNX
    README.md           a model card

``config.json`` is written last, so a folder without it is incomplete and does not load. Functions
that read a bundle also take ``zoo:NAME`` (:mod:`segbatch.model.zoo`). They raise
:class:`~segbatch.errors.ModelError` for a folder that is no bundle or a damaged one, and
:class:`~segbatch.errors.Incomplete` if storage does not answer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import yaml

from segbatch import storage
from segbatch.errors import InputError, ModelError
from segbatch.model import graph as graphs
from segbatch.model import weights, zoo
from segbatch.model.config import GRAPH, ModelConfig
from segbatch.model.graph import Graph
from segbatch.model.networks import Network
from segbatch.model.zoo import ZOO_PREFIX
from segbatch.storage import hub

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
GRAPH_FILES = (graphs.XML, graphs.WEIGHTS)
TERMS = ("licence", "attribution")  # keys of ``provenance`` that the card says first
MAX_CONFIG_BYTES = 10_000_000


def save_bundle(uri: str, module: torch.nn.Module, config: ModelConfig) -> None:
    """Write a bundle into the folder ``uri``, its ``config.json`` last. Raises ``OSError``."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    storage.write_bytes(storage.join(uri, WEIGHTS), safetensors.torch.save(state))
    _write_card_and_config(uri, config)


def _write_card_and_config(uri: str, config: ModelConfig) -> None:
    storage.write_bytes(storage.join(uri, CARD), card(storage.name_of(uri), uri, config).encode())
    text = json.dumps(config.to_json(), indent=2, ensure_ascii=False)
    storage.write_bytes(storage.join(uri, CONFIG), f"{text}\n".encode())


def save_graph_bundle(uri: str, graph: Graph, config: ModelConfig) -> ModelConfig:
    """Write a bundle of a graph.

    Returns its configuration, that of the network with a graph's keys. Raises ``OSError``.
    """
    config = replace(
        config, arch=GRAPH, library=None, options={}, input=graph.input, output=graph.output
    )
    if graph.is_onnx:
        storage.write_bytes(storage.join(uri, graphs.ONNX), graph.model)
    else:
        storage.write_bytes(storage.join(uri, graphs.WEIGHTS), graph.weights.tobytes())
        storage.write_bytes(storage.join(uri, graphs.XML), graph.model)
    _write_card_and_config(uri, config)
    return config


def load_graph(uri: str, config: ModelConfig) -> Graph:
    """The graph of a bundle whose configuration is ``config``."""
    assert config.input is not None
    assert config.output is not None
    model, *data = (weights.read_file(storage.join(uri, name)) for name in files_of(config))
    constants = np.frombuffer(data[0] if data else b"", np.uint8)
    return Graph(model, constants, config.input, config.output)


def files_of(config: ModelConfig) -> tuple[str, ...]:
    """The names of a bundle's files of weights."""
    if not config.is_graph:
        return (WEIGHTS,)
    is_onnx = config.backbone == graphs.ONNX_BACKBONE and not config.is_quantized
    return (graphs.ONNX,) if is_onnx else GRAPH_FILES


def load_bundle(uri: str) -> tuple[Network, ModelConfig]:
    """The network with its weights, in ``eval`` mode on the CPU, and the configuration."""
    config = load_config(uri)
    return load_network(uri, config), config


def load_network(uri: str, config: ModelConfig) -> Network:
    """The network of a bundle whose configuration is ``config``; as in :func:`load_bundle`."""
    uri = zoo.shipped_bundle(uri) or uri
    if uri.startswith(ZOO_PREFIX):
        return zoo.zoo_model(uri).load().eval()
    if config.is_graph:
        raise ModelError(f"{uri}: is a graph, which can only predict: name a model with weights")
    where = storage.join(uri, WEIGHTS)
    return _loaded(config, weights.read_file(where), where)


def load_config(uri: str) -> ModelConfig:
    """The configuration of a bundle; that of a zoo model without downloading anything."""
    uri = zoo.shipped_bundle(uri) or uri
    if uri.startswith(ZOO_PREFIX):
        model = zoo.zoo_model(uri)
        provenance = {"source": model.url}
        return ModelConfig(
            model.arch, model.backbone, model.output_stride, model.classes, provenance=provenance
        )
    return _parse(_config_bytes(uri), uri)


def bundle_sha256(uri: str) -> str:
    """SHA-256 of a bundle's configuration and weights, 64 hex digits."""
    text = _config_bytes(uri)
    names = files_of(_parse(text, uri))
    return _sha256(text, *(weights.read_file(storage.join(uri, name)) for name in names))


def fingerprint(uri: str) -> str:
    """64 hex digits that change with the model: :func:`bundle_sha256`, or that of the zoo."""
    uri = zoo.shipped_bundle(uri) or uri
    if uri.startswith(ZOO_PREFIX):
        return zoo.zoo_model(uri).fingerprint
    return bundle_sha256(uri)


def file_sha256(uri: str) -> str:
    """SHA-256 of a file of weights, 64 hex digits."""
    return _sha256(weights.read_file(uri))


def push(uri: str, repository: str) -> str:
    """Push a bundle to a repository on the Hugging Face Hub, and return its URI at that commit.

    Raises :class:`~segbatch.errors.ModelError`, and :class:`~segbatch.errors.Incomplete` if the Hub
    does not answer.
    """
    if not hub.is_on_hub(repository):
        raise ModelError(f"{repository}: must be hf://owner/name")
    config = load_config(uri)
    names = files_of(config)
    uri = zoo.shipped_bundle(uri) or uri
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        for name in (CONFIG, *names):
            Path(folder, name).write_bytes(weights.read_file(storage.join(uri, name)))
        text = card(storage.name_of(repository), repository, config)
        Path(folder, CARD).write_text(text, encoding="utf-8")
        with storage.translate_errors("cannot push:", ModelError):
            return hub.push_folder(Path(folder), repository, "Push a segbatch bundle")


def list_bundles(uri: str) -> Iterator[tuple[str, ModelConfig]]:
    """The URI and configuration of each bundle in or below the folder ``uri``, ordered by URI.

    Folders with weights but no readable configuration are skipped.
    """
    for file in _files(uri):
        folder, _, name = file.uri.rpartition("/")
        if name in (WEIGHTS, graphs.XML, graphs.ONNX):
            try:
                yield folder, load_config(folder)
            except ModelError:
                continue


def describe(uri: str) -> dict[str, Any]:
    """Facts about a bundle as JSON: configuration, number of parameters, SHA-256, bytes per file.

    Loads the weights, so it fails where :func:`load_bundle` would.
    """
    network: Network | None
    folder = zoo.shipped_bundle(uri) or uri
    if folder.startswith(ZOO_PREFIX):
        network, config = load_bundle(uri)
        sha256, files = fingerprint(uri), {}
    else:
        text = _config_bytes(folder)
        config = _parse(text, folder)
        names = files_of(config)
        data = {name: weights.read_file(storage.join(folder, name)) for name in names}
        where = storage.join(folder, WEIGHTS)
        network = None if config.is_graph else _loaded(config, data[WEIGHTS], where)
        sha256 = _sha256(text, *data.values())
        files = {CONFIG: len(text), **{name: len(content) for name, content in data.items()}}
    parameters = network and sum(parameter.numel() for parameter in network.parameters())
    return {
        "uri": uri,
        **config.to_json(),
        "parameters": parameters,
        "sha256": sha256,
        "files": files,
    }


@dataclass(frozen=True)
class Packed:
    """A model to send to other processes: as arrays, which they can share without a copy.

    It has the ``state`` of its network, or its ``graph`` for an engine that needs no network.
    """

    config: ModelConfig
    state: dict[str, npt.NDArray[Any]] | None = None
    graph: Graph | None = None

    def unpack(self) -> Network | Graph:
        """The graph, or a copy of the network, in ``eval`` mode on the CPU."""
        if self.graph is not None:
            return self.graph
        assert self.state is not None
        network = self.config.build()
        network.load_state_dict({key: torch.tensor(value) for key, value in self.state.items()})
        return network.eval()


def pack(network: torch.nn.Module, config: ModelConfig) -> Packed:
    """Pack a network on the CPU; its arrays are not copied."""
    state = network.state_dict()
    return Packed(config, {key: value.contiguous().numpy() for key, value in state.items()})


def _loaded(config: ModelConfig, data: bytes, where: str) -> Network:
    network = config.build()
    state = weights.decode_safetensors(data, where)
    weights.fit(network, state, f"{config.arch} with {config.backbone}", where)
    return network.eval()


def _config_bytes(uri: str) -> bytes:
    try:
        return weights.read_file(storage.join(uri, CONFIG))
    except ModelError as error:
        raise ModelError(
            f"{error}; a model is zoo:NAME or a bundle, which `segbatch model import` makes from"
            " weights"
        ) from error


def _parse(data: bytes, uri: str) -> ModelConfig:
    where = storage.join(uri, CONFIG)
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelError(f"{where}: {len(data):,} bytes, too large for a model's configuration")
    try:
        return ModelConfig.from_json(json.loads(data))
    except (InputError, RecursionError, ValueError) as error:  # ValueError: neither JSON nor UTF-8
        message = storage.one_line(error)
        raise ModelError(f"{where}: not a model's configuration: {message}") from error


def _files(uri: str) -> list[storage.StoredFile]:
    with storage.translate_errors("cannot list", ModelError):
        return list(storage.list_files(uri))


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def card(name: str, uri: str, config: ModelConfig) -> str:
    """The model card: front matter for model hubs, then the network, its scores, its classes with
    the IoU of each, and its provenance, in Markdown.
    """
    facts = config.provenance
    scores = {key: value for key, value in config.metrics.items() if isinstance(value, int | float)}
    iou = config.metrics.get("iou", {})
    lines = [
        "---",
        "library_name: segbatch",
        "pipeline_tag: image-segmentation",
        "---",
        f"# {name}",
        "",
        f"Semantic segmentation: {config.description}, {len(config.classes)} classes"
        f"{', computed in int8 on CPUs' if config.is_quantized else ''}.",
        "",
        *(f"- {word.capitalize()}: {facts[word]}" for word in TERMS if word in facts),
        f"- Longer side of images: {_side(config.long_side)}",
        f"- Normalisation: mean {list(config.mean)}, standard deviation {list(config.std)}",
        *(f"- {key}: {value:.4g}" for key, value in scores.items()),
        "",
        "| id | class | colour | IoU |",
        "|---|---|---|---|",
        *(f"| {c.id} | {c.name} | {c.hex} | {_score(iou.get(c.name))} |" for c in config.classes),
        "",
        *_provenance(config.provenance),
        "```python",
        "import segbatch",
        f'prediction = segbatch.load_model("{uri}").predict(image)  # RGB, HWC uint8',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _provenance(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return ["Provenance:", "", "```yaml", *text.splitlines(), "```", ""]


def _score(iou: float | None) -> str:
    return "" if iou is None else f"{iou:.3f}"


def _side(long_side: int | None) -> str:
    return "any, they are not downscaled" if long_side is None else f"at most {long_side} pixels"
