"""Engines on a cluster: what all nodes of the workers can run, and the model for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segbatch.config.job import Limits, Predict
from segbatch.console import say
from segbatch.jobs.runtime.executor import wait_for
from segbatch.jobs.runtime.nodes import alive_nodes
from segbatch.jobs.runtime.rayerrors import known_error
from segbatch.jobs.runtime.workers import Workers
from segbatch.jobs.watch import Watch
from segbatch.model.bundle import Packed, pack
from segbatch.model.config import ModelConfig
from segbatch.model.device import resolve_device
from segbatch.model.engine import EngineChoice, choose_engine
from segbatch.model.predict import Model, unpack_model


def engine_on_workers(
    asked: Predict, config: ModelConfig, device: str, watch: Watch
) -> EngineChoice:
    """What all nodes that have the workers' device can run of what a job ``asked`` for.

    This waits for a first node of a cluster that is scaled to zero, and says so once a minute.
    Nodes that join later are not asked. Raises :class:`~segbatch.errors.InputError`.
    """
    nodes = _cpu_nodes() if device == "cpu" else []
    if nodes == [ray.get_runtime_context().get_node_id()]:
        return _choose(asked, config, device)  # a task would import torch for seconds
    task: Any = ray.remote(num_cpus=1, num_gpus=0.01 if device == "cuda" else 0)(_choose)
    places: list[Any] = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    running = [
        task.options(scheduling_strategy=place).remote(asked, config, device)
        for place in places or ["DEFAULT"]
    ]
    waiting = f"waiting for a node with a free {'GPU' if device == 'cuda' else 'CPU'}"
    choices = {_answer(answer, watch, waiting) for answer in running}
    [choice, *others] = choices
    if not others:
        return cast(EngineChoice, choice)
    say("the CPUs of the nodes differ in what they compute")
    precisions = {choice.precision for choice in choices}
    return EngineChoice(
        "openvino" if all(choice.engine == "openvino" for choice in choices) else "torch",
        precisions.pop() if len(precisions) == 1 else "fp32",
    )


def _cpu_nodes() -> list[str]:
    """The ids of the nodes that have CPUs for Ray."""
    return [node["NodeID"] for node in alive_nodes() if node["Resources"].get("CPU")]


def _choose(asked: Predict, config: ModelConfig, device: str) -> EngineChoice:
    return choose_engine(asked, config, resolve_device(device))


@dataclass(frozen=True)
class Calibration:
    """How a model becomes one in int8.

    ``out`` is the folder of its bundle, ``uris`` are the images to calibrate with; ``options`` say
    how images are brought to the network.
    """

    model_uri: str
    out: str
    uris: list[str]
    options: Predict
    limits: Limits


def quantize_on_worker(
    packed: Callable[[], Packed], calibration: Calibration, workers: Workers, watch: Watch
) -> None:
    """Write the int8 bundle of a model, calibrated by one worker.

    Raises :class:`~segbatch.errors.SourceError` if no image can be read.
    """
    task: Any = ray.remote(num_cpus=workers.num_cpus, max_retries=1)(_quantize)
    _answer(task.remote(packed, calibration, workers.num_cpus), watch, "calibrating int8")


def _quantize(packed: Callable[[], Packed], calibration: Calibration, threads: int) -> None:
    from segbatch.model.quantize import save_quantized

    model = unpack_model(packed(), "cpu", options=calibration.options, threads=threads)
    save_quantized(
        model, calibration.model_uri, calibration.out, calibration.uris, calibration.limits
    )


def _answer(running: Any, watch: Watch, waiting: str | None = None) -> Any:
    """The result of a task. Raises what its worker raised on purpose, and
    :class:`~segbatch.errors.Incomplete` for a lost worker.
    """
    try:
        return wait_for(running, watch, waiting)
    except RayError as error:
        if known := known_error(error):
            raise known from error
        raise


def share_model(model: Model, engine: str) -> Callable[[], Packed]:
    """Put the model into the object store, which each node asks once. Returns what fetches it.

    For OpenVINO and ONNX Runtime it is the graph, which then is the same for all workers.
    """
    if engine != "torch":
        packed = Packed(model.config, graph=model.graph)
    else:
        assert model.module is not None
        packed = pack(model.module, model.config)
    reference: Any = ray.put(packed)
    return cast(Callable[[], Packed], partial(ray.get, reference))
