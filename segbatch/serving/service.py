"""What is served, typed: the ``args`` of an application in Serve's own configuration file."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from segbatch.config.job import Limits, Predict
from segbatch.config.keys import Location, Positive, Strict
from segbatch.config.validation import explain
from segbatch.errors import InputError

IMPORT_PATH = "segbatch.serving.app:build"  # of the application's builder
NAME = "segbatch"  # of the application; one of another name is served below /NAME


class Service(Strict):
    """A model and how it is served."""

    model: Location
    """A model bundle, or ``zoo:NAME``."""
    predict: Predict = Predict()
    """How the model predicts: the keys of ``predict`` in job files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one."""
    replicas: Positive = 1
    """Copies of the model, each in a process of its own."""
    max_replicas: Positive | None = None
    """Under load, Serve adds replicas up to this number; ``null``: none."""
    max_bytes: Positive = Limits().max_bytes
    """Largest image file that is taken, in bytes."""
    max_pixels: Positive = Limits().max_pixels
    """Largest image that is decoded, in pixels."""
    label_studio: bool = False
    """Answer Label Studio, too, and read the images that its tasks name."""

    @model_validator(mode="after")
    def _served(self) -> Service:
        if self.most_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below replicas")
        if self.predict.decode == "device":
            raise ValueError("predict.decode: device: a server decodes on CPUs")
        return self

    @property
    def most_replicas(self) -> int:
        """The number of replicas under full load."""
        return self.replicas if self.max_replicas is None else self.max_replicas


def service_of(values: dict[str, Any]) -> Service:
    """The service with these keys. Raises :class:`~segbatch.errors.InputError`."""
    try:
        return Service.model_validate(values)
    except ValidationError as error:
        raise InputError(next(explain(error))) from error


def check_name(name: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a name that is no part of a URL."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"--name {name!r}: must be of letters, digits, _, . and -")


def route_of(name: str) -> str:
    """The path that the application called ``name`` is served at."""
    return "/" if name == NAME else f"/{name}"


def url_of(host: str, port: int, name: str) -> str:
    """The URL of the application called ``name``, with a slash at its end."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{route_of(name).rstrip('/')}/"


def require_serve() -> None:
    """Raises :class:`~segbatch.errors.InputError` if the extra ``serve`` is not installed."""
    if find_spec("fastapi") is None:  # of Ray's own extra; `ray.serve` is there without it
        raise InputError("serving needs Ray Serve: pip install 'segbatch[serve]'")
