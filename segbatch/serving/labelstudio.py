"""Label Studio's protocol for ML backends: tasks in, predictions with brushes out.

Source: ``label_studio_ml/api.py`` of HumanSignal/label-studio-ml-backend, and
https://labelstud.io/guide/ml_create
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from segbatch.config.job import Limits
from segbatch.config.validation import explain
from segbatch.errors import InputError
from segbatch.formats.labelconfig import LabelConfig, read_label_config
from segbatch.formats.labelstudio import reference_of, to_prediction
from segbatch.formats.references import to_address
from segbatch.images.faults import Content, Undecodable
from segbatch.images.parts import read_images
from segbatch.serving.answers import Predicted
from segbatch.serving.replica import Predictor
from segbatch.storage import one_line
from segbatch.storage.uris import without_query

Body = TypeVar("Body", bound=BaseModel)

LOG = logging.getLogger("ray.serve")  # of the replica; Serve puts it into files
TIMEOUT_S = 20.0  # of reading an image: an annotator waits for it
RETRIES = 2


class Task(BaseModel):
    """A task; only its data matter."""

    data: dict[str, Any]


class Tasks(BaseModel):
    """The body of a request for predictions; other keys are for models that learn."""

    tasks: list[Task]
    label_config: str | None = None


class Setup(BaseModel):
    """The body of the request by which a project is connected."""

    label_config: str | None = Field(None, alias="schema")


def model_version(predictor: Predictor) -> str:
    """The name of the model in Label Studio: its URI, and the beginning of its SHA-256."""
    return f"{predictor.name.uri}@{predictor.name.sha256[:12]}"


def set_up(predictor: Predictor, body: bytes) -> dict[str, Any]:
    """Check a project's configuration. Raises :class:`~segbatch.errors.InputError`."""
    setup = _read(Setup, body)
    if setup.label_config:
        _config(setup.label_config)
    return {"model_version": model_version(predictor)}


async def predict_tasks(predictor: Predictor, body: bytes) -> dict[str, Any]:
    """The predictions for tasks, in their order.

    That of an image that cannot be used has no regions; the server's log says why. Raises
    :class:`~segbatch.errors.InputError` for a body that is no list of tasks.
    """
    asked = _read(Tasks, body)
    config = _config(asked.label_config) if asked.label_config else LabelConfig()
    at_once = asyncio.Semaphore(predictor.service.predict.batch_size)  # bounds memory

    async def predict(task: Task) -> dict[str, Any]:
        async with at_once:
            return await _predict_task(predictor, task, config)

    results = await asyncio.gather(*map(predict, asked.tasks))
    return {"results": results, "model_version": model_version(predictor)}


async def _predict_task(predictor: Predictor, task: Task, config: LabelConfig) -> dict[str, Any]:
    version = model_version(predictor)
    try:
        uri = to_address(reference_of(task.data, config))
    except ValueError as error:
        LOG.warning("a task of Label Studio %s", one_line(error))
        return {"model_version": version, "result": []}
    content = await predictor.in_thread(_read_image, uri, predictor.service.max_bytes)
    found = await predictor.predict(content) if isinstance(content, bytes) else content
    if not isinstance(found, Predicted):
        LOG.warning("%s: %s: %s", without_query(uri), found.kind, found.message)
        return {"model_version": version, "result": []}
    return await predictor.in_thread(_prediction, found, version, config)


def _prediction(found: Predicted, version: str, config: LabelConfig) -> dict[str, Any]:
    prediction = found.prediction
    return to_prediction(
        prediction.mask,
        prediction.classes,
        prediction.confidence,
        version,
        from_name=config.from_name,
        to_name=config.to_name,
    )


def _read_image(uri: str, max_bytes: int) -> Content:
    limits = Limits(max_bytes=max_bytes, timeout_s=TIMEOUT_S, retries=RETRIES)
    try:
        [content] = read_images([uri], limits.read_limits())
    except InputError as error:
        return Undecodable("unsupported", one_line(error))
    return content


def _config(text: str) -> LabelConfig:
    config = read_label_config(text)
    if config is None or not config.has_brush:
        raise InputError(
            "the project's labelling configuration needs an Image and BrushLabels for it;"
            " /label_config.xml is one for this model"
        )
    return config


def _read(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise InputError(next(explain(error))) from error
