"""Graphs of other tools: ONNX, TensorFlow, TensorFlow Lite, Paddle and OpenVINO.

OpenVINO reads them, and they can only predict. What a graph takes and gives is found out by its
shapes, by its first and last operations, and by running it on a picture.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from segbatch import storage
from segbatch.console import say
from segbatch.errors import InputError, ModelError, shortened
from segbatch.masks.classes import PRESETS, Classes
from segbatch.model.bundle import save_graph_bundle
from segbatch.model.checkpoints import inspection, outputs
from segbatch.model.checkpoints.checkpoint import Known, check_names_of_sigmoids, exists
from segbatch.model.config import ModelConfig
from segbatch.model.graph import (
    ONNX_BACKBONE,
    Graph,
    import_openvino,
    serialized,
)
from segbatch.model.weights import read_file
from segbatch.storage import hub

# By the extension of a file, and by a file in a folder.
FILES = {".onnx": "onnx", ".tflite": "tflite", ".pb": "tensorflow", ".pdmodel": "paddle",
         ".xml": "openvino"}  # fmt: skip
SAVED_MODEL = "saved_model.pb"
FOLDERS = {SAVED_MODEL: "tensorflow", "inference.pdmodel": "paddle", "model.onnx": "onnx"}
NAMES = {"onnx": "ONNX", "tflite": "TensorFlow Lite", "tensorflow": "TensorFlow",
         "paddle": "Paddle", "openvino": "OpenVINO"}  # fmt: skip

MAX_REASON = 200  # characters of an error of OpenVINO

# What people have instead, and how they get a graph of it.
ELSEWHERE = {
    (".h5", ".keras"): (
        "a file of Keras, which needs its code: in Python, keras.saving.load_model(FILE)"
        ".export('FOLDER'), and import that folder"
    ),
    (".index", ".meta", ".data-00000-of-00001"): (
        "a checkpoint of TensorFlow, which needs its code: freeze it (research/deeplab:"
        " export_model.py), and import the .pb"
    ),
    (".pdparams", ".pdiparams"): (
        "weights of Paddle, which need their code: export the model (PaddleSeg: tools/export.py),"
        " and import its folder"
    ),
    (".engine", ".plan", ".trt"): (
        "an engine of TensorRT, which runs on one GPU and version: import the ONNX that it was"
        " made from"
    ),
    (".mlmodel", ".mlpackage"): (
        "a model of Core ML, which runs on Apple's devices: import the ONNX or checkpoint that it"
        " was made from"
    ),
}


def is_graph(source: str) -> bool:
    """Whether a file or folder is a graph, or what a graph can be made from.

    Raises :class:`~segbatch.errors.ModelError` for the latter, saying how.
    """
    lower = storage.name_of(source).lower()
    for extensions, advice in ELSEWHERE.items():
        if lower.endswith(extensions):
            raise ModelError(f"{source}: {advice}")
    return lower.endswith(tuple(FILES)) or _in_folder(source) is not None


def _in_folder(source: str) -> str | None:
    """The file that makes a folder one of a graph."""
    found = (name for name in FOLDERS if exists(storage.join(source, name)))
    return next(found, None)


def import_graph(source: str, bundle_uri: str, known: Known) -> ModelConfig:
    """Write a bundle of a graph, and say what it takes and gives.

    Raises :class:`~segbatch.errors.ModelError` for a graph that OpenVINO cannot read, that is no
    segmentation of RGB images, or whose input and output cannot be told without ``known``.
    """
    ov = import_openvino()
    if storage.name_of(source) == SAVED_MODEL:
        source = source.rpartition("/")[0] or "."
    with _local(source) as (path, kind):
        try:
            model = ov.Core().read_model(path) if kind == "openvino" else ov.convert_model(path)
        except Exception as error:  # its readers raise anything
            reason = shortened(storage.one_line(error).rpartition("Check '")[2], MAX_REASON)
            raise ModelError(
                f"{source}: {NAMES[kind]} that OpenVINO cannot read: {reason}; export it for one"
                " size of image"
            ) from error
        facts = _metadata(path) if kind == "onnx" else {}
        content = path.read_bytes() if path.is_file() else b""
    known = _with_facts(known, facts)
    model, is_changed = inspection.with_plain_types(model)
    takes, mean, std = inspection.input_of(source, model, known)
    answers = inspection.run(source, model, takes)
    found, others = outputs.output_of(source, model, answers, takes, known)
    if found.is_one_channel and known.classes is not None:
        check_names_of_sigmoids(source, known.classes, 1)
    classes = _classes(source, found, others, known)
    gives = found.output(len(classes), takes)
    is_whole = kind == "onnx" and not is_changed and _is_self_contained(content)
    graph = (
        Graph(content, np.empty(0, np.uint8), takes, gives)
        if is_whole
        else serialized(model, takes, gives)
    )
    config = ModelConfig(
        "graph",
        ONNX_BACKBONE if is_whole else "openvino" if kind == "onnx" else kind,
        gives.stride or 1,
        classes,
        mean=mean,
        std=std,
        long_side=known.long_side or (max(takes.size) if takes.size else None),
        provenance={"imported_from": source, "graph_of": NAMES[kind]},
    )
    config = save_graph_bundle(bundle_uri, graph, config)
    _say(source, NAMES[kind], config)
    if found.is_one_channel:
        say(
            f"it has one channel: {classes[1].name} where that is likelier than not, else"
            f" {classes[0].name}"
        )
    return config


def _say(source: str, kind: str, config: ModelConfig) -> None:
    assert config.input is not None
    assert config.output is not None
    takes, gives = config.input, config.output
    size = "any size" if takes.size is None else f"{takes.size[1]}×{takes.size[0]}"
    low, high = takes.range
    normalised = (
        ""
        if (config.mean, config.std) == (inspection.ZERO, inspection.ONE)
        else (f", minus {list(config.mean)} divided by {list(config.std)}")
    )
    say(f"{source}: a graph of {kind}, {len(config.classes)} classes; it can predict, not train")
    say(
        f"it takes {takes.layout} {takes.dtype} of {size}, pixels from {low:g} to"
        f" {high:g}{normalised}; it gives {gives.kind} at 1/{gives.stride} of that"
    )
    if gives.kind == "labels":
        say("it gives no probabilities, so there is no confidence: those columns will be null")


@contextmanager
def _local(source: str) -> Iterator[tuple[Path, str]]:
    """A graph as a local file or folder, and its kind."""
    extension = "." + storage.name_of(source).lower().rpartition(".")[2]
    inside = None if extension in FILES else _in_folder(source)
    kind = FILES[extension] if inside is None else FOLDERS[inside]
    if storage.is_local(source):
        path = storage.local_path(source)
        if not path.exists():
            raise ModelError(f"{source}: no such file")
        # Of a SavedModel the readers want the folder, of the others the file in it.
        yield (path if inside in (None, SAVED_MODEL) else path / inside), kind
        return
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        if inside is None:
            path = Path(folder, storage.name_of(source))
            path.write_bytes(read_file(source))
            _copy_companion(source, path)
            yield path, kind
            return
        _copy_folder(source, Path(folder))
        yield (Path(folder) if inside == SAVED_MODEL else Path(folder, inside)), kind


def _copy_companion(source: str, path: Path) -> None:
    """Copy the file that has the weights of a graph whose own file has none."""
    stem = source.rpartition(".")[0]
    names = {".onnx": f"{source}.data", ".xml": f"{stem}.bin", ".pdmodel": f"{stem}.pdiparams"}
    companion = names.get(path.suffix)
    if companion and exists(companion):
        (path.parent / storage.name_of(companion)).write_bytes(read_file(companion))


def _copy_folder(source: str, folder: Path) -> None:
    if hub.is_on_hub(source):
        raise ModelError(f"{source}: a folder on the Hub: download it (hf download), and import it")
    base = source.rstrip("/") + "/"
    with storage.translate_errors("cannot list", ModelError):
        files = list(storage.list_files(source))
    for file in files:
        path = folder / file.uri.removeprefix(base)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_file(file.uri))


def _metadata(path: Path) -> dict[str, Any]:
    """What ``segbatch model export`` writes into a file of ONNX; empty for another's."""
    if find_spec("onnx") is None:
        return {}
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # OpenVINO has read it; its metadata are not needed
        return {}
    found = {entry.key: entry.value for entry in model.metadata_props}
    if not {"classes", "long_side"} <= found.keys():
        return {}
    try:
        return {key: json.loads(found[key]) for key in ("classes", "long_side")}
    except ValueError:
        return {}


def _with_facts(known: Known, facts: dict[str, Any]) -> Known:
    if not facts:
        return known
    try:
        classes = Classes.from_json(facts["classes"])
    except (InputError, TypeError, KeyError):
        return known
    return replace(
        known,
        classes=known.classes or classes,
        long_side=known.long_side or facts["long_side"],
    )


def _is_self_contained(content: bytes) -> bool:
    """Whether a file of ONNX has its weights in it: OpenVINO reads it without a path."""
    try:
        import_openvino().Core().read_model(model=content)
    except Exception:  # as above
        return False
    return True


def _classes(source: str, found: outputs.Found, others: list[str], known: Known) -> Classes:
    """The classes that the user names; ``others`` are the names of the graph's other outputs."""
    number = found.number
    if known.classes is None:
        gives = "label maps" if number is None else f"{number} classes"
        presets = [name for name, preset in PRESETS.items() if len(preset) == number]
        like = f", or --classes {' or '.join(presets)}" if presets else ""
        raise ModelError(
            f"{source}: gives {gives} without their names: name them in the order of their ids"
            f" with --classes a,b,c or --classes FILE{like}"
        )
    if number not in (None, len(known.classes)):
        other = f"; --output NAME takes another output: {', '.join(others)}" if others else ""
        raise ModelError(
            f"{source}: {found.name} gives {number} classes, but {len(known.classes)} were"
            f" given{other}"
        )
    return known.classes
