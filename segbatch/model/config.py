"""The configuration of a model, as it is in the ``config.json`` of a bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from segbatch.errors import InputError
from segbatch.masks.classes import Classes
from segbatch.model import zoo
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD, Network

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class ModelConfig:
    """The keys of ``config.json``.

    ``mean`` and ``std`` normalise RGB from 0 to 1. ``long_side`` is the longer side of images in
    training, ``None`` where it is unknown. ``metrics`` and ``provenance`` are any JSON.
    """

    arch: str
    backbone: str
    output_stride: int
    classes: Classes
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    long_side: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, RGB from 0 to 255, with which images are padded."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def to_json(self) -> dict[str, Any]:
        values = {key.name: getattr(self, key.name) for key in fields(self)}
        return {**values, "classes": self.classes.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> ModelConfig:
        """The inverse of :meth:`to_json`; raises ``InputError`` naming the key that is wrong."""
        if not isinstance(values, dict):
            raise InputError("not a JSON object")
        if missing := {"arch", "backbone", "output_stride", "classes"} - values.keys():
            raise InputError(f"{', '.join(sorted(missing))}: missing")
        if unknown := values.keys() - {key.name for key in fields(cls)}:
            raise InputError(f"{', '.join(sorted(unknown))}: unknown")
        parsed = {key: _PARSERS[key](key, value) for key, value in values.items()}
        return cls(**parsed)

    def build(self, *, auxiliary: bool = False) -> Network:
        """The network with random weights; ``auxiliary`` as in :func:`segbatch.model.zoo.build`."""
        return zoo.build(
            self.arch, self.backbone, len(self.classes), self.output_stride, auxiliary=auxiliary
        )


def _typed(kind: type) -> Any:
    def parse(key: str, value: Any) -> Any:
        if type(value) is not kind:
            raise InputError(f"{key}: {value!r} is no {kind.__name__}")
        return value

    return parse


def _backbone(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]{1,100}", value):
        raise InputError(f"{key}: {value!r} is no name")  # timm downloads from some that are none
    return value


def _rgb(key: str, value: Any) -> RGB:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise InputError(f"{key}: {value!r} is not three numbers")
    if not all(type(number) in (int, float) and abs(number) <= 1000 for number in value):
        raise InputError(f"{key}: {value!r} is not three numbers")
    red, green, blue = (float(number) for number in value)
    return red, green, blue


def _mean(key: str, value: Any) -> RGB:
    mean = _rgb(key, value)
    if not all(0 <= number <= 1 for number in mean):
        raise InputError(f"{key}: {value!r} must be from 0 to 1")
    return mean


def _std(key: str, value: Any) -> RGB:
    std = _rgb(key, value)
    if min(std) <= 0:
        raise InputError(f"{key}: {value!r} must be above 0")
    return std


def _long_side(key: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value < 1 << 31):
        raise InputError(f"{key}: {value!r} is neither a number of pixels nor null")
    return value


_PARSERS: dict[str, Any] = {
    "arch": _typed(str),
    "backbone": _backbone,
    "output_stride": _typed(int),
    "classes": lambda key, value: Classes.from_json(value),
    "mean": _mean,
    "std": _std,
    "long_side": _long_side,
    "metrics": _typed(dict),
    "provenance": _typed(dict),
}
