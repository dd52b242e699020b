"""The configuration of a model, as it is in the ``config.json`` of a bundle."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from segbatch.config.validation import explain
from segbatch.errors import InputError
from segbatch.masks.classes import Classes
from segbatch.model import networks
from segbatch.model.networks import Network
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

RGB = tuple[float, float, float]
Layout = Literal["NCHW", "NHWC"]
GRAPH = "graph"  # the ``arch`` of models that are no network, which can only predict
FORMAT = 2  # of ``config.json``; 1 had no ``format``, ``library`` and ``options``


@dataclass(frozen=True)
class GraphInput:
    """How a graph takes images: the ``name``, ``layout`` and ``dtype`` of its input.

    Pixels are brought to ``range`` before they are normalised. ``size`` is the height and width
    that it takes, ``None`` if it takes any.
    """

    name: str
    layout: Layout = "NHWC"
    dtype: Literal["float32", "uint8", "int8"] = "float32"
    range: tuple[float, float] = (0.0, 1.0)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class GraphOutput:
    """What a graph gives: logits, probabilities, or a label map, at 1/``stride`` of the input's
    resolution.

    ``align_corners``: as its authors upsample them to the image's size. ``layout`` says where the
    classes are; bundles of earlier versions do not know, and it is guessed by the shape.
    """

    name: str
    kind: Literal["logits", "probabilities", "labels"] = "logits"
    stride: int | None = None
    align_corners: bool = False
    layout: Layout | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The keys of ``config.json``.

    ``library`` is the one whose network ``arch`` and ``backbone`` name, ``options`` those of its
    constructor. ``mean`` and ``std`` normalise RGB from 0 to 1, that of a graph in the ``range`` of
    its input. ``long_side`` is the longer side of images in training, ``None`` where it is unknown.
    ``metrics`` and ``provenance`` are any JSON. A graph, which can only predict, has the ``arch``
    ``graph``, an ``input`` and an ``output``.
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
    input: GraphInput | None = None
    output: GraphOutput | None = None
    library: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_graph(self) -> bool:
        return self.arch == GRAPH

    @property
    def is_quantized(self) -> bool:
        """Whether it computes in int8."""
        return self.is_graph and "quantized_from" in self.provenance

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, RGB from 0 to 255, with which images are padded; grey for a graph that
        normalises by itself.
        """
        if self.is_graph and not any(self.mean) and set(self.std) == {1.0}:
            return 128, 128, 128
        low, high = self.range
        red, green, blue = (
            min(255, max(0, round(255 * (value - low) / (high - low)))) for value in self.mean
        )
        return red, green, blue

    @property
    def range(self) -> tuple[float, float]:
        """Values of black and white pixels, before they are normalised."""
        return (0.0, 1.0) if self.input is None else self.input.range

    @property
    def gives_labels(self) -> bool:
        """Whether the model gives class ids alone, without confidence."""
        return self.output is not None and self.output.kind == "labels"

    @property
    def architecture(self) -> str:
        """What :meth:`build` builds, as a text."""
        of_library = f" {self.library} {json.dumps(self.options)}" if self.library else ""
        return f"{self.arch} {self.backbone} {self.output_stride} {len(self.classes)}{of_library}"

    @property
    def description(self) -> str:
        """The network in words."""
        if self.is_graph:
            return self.backbone
        library = f", as in {self.library}" if self.library else ""
        return f"{self.arch} with {self.backbone}{library}, output stride {self.output_stride}"

    def to_json(self) -> dict[str, Any]:
        values = {key.name: getattr(self, key.name) for key in fields(self)}
        for key in ("input", "output"):
            spec = values.pop(key)
            values |= {} if spec is None else {key: asdict(spec)}
        return {"format": FORMAT, **values, "classes": self.classes.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> ModelConfig:
        """The inverse of :meth:`to_json`; raises ``InputError`` naming the key that is wrong."""
        if not isinstance(values, dict):
            raise InputError("not a JSON object")
        if missing := {"arch", "backbone", "output_stride", "classes"} - values.keys():
            raise InputError(f"{', '.join(sorted(missing))}: missing")
        if (written := values.get("format", 1)) not in range(1, FORMAT + 1):
            raise InputError(f"format: {written!r} is of a newer segbatch: install a newer version")
        values = {key: value for key, value in values.items() if key != "format"}
        if unknown := values.keys() - {key.name for key in fields(cls)}:
            raise InputError(f"{', '.join(sorted(unknown))}: unknown")
        parsed = {key: _PARSERS[key](key, value) for key, value in values.items()}
        if parsed["arch"] == GRAPH and not {"input", "output"} <= parsed.keys():
            raise InputError("a graph needs an input and an output")
        if parsed["arch"] != GRAPH and not all(0 <= value <= 1 for value in parsed.get("mean", ())):
            raise InputError(f"mean: {parsed['mean']!r} must be from 0 to 1")
        return cls(**parsed)

    def build(self, *, auxiliary: bool = False) -> Network:
        """The network with random weights; ``auxiliary`` adds the head that only training uses."""
        return networks.build(
            self.arch,
            self.backbone,
            len(self.classes),
            self.output_stride,
            library=self.library,
            options=self.options,
            auxiliary=auxiliary,
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


def _library(key: str, value: Any) -> str | None:
    if value is not None and value not in networks.LIBRARIES:
        raise InputError(f"{key}: {value!r} is none of {', '.join(networks.LIBRARIES)}")
    return cast(str | None, value)


def _options(key: str, value: Any) -> dict[str, Any]:
    """Numbers, names, and lists and dicts of them, so that no option can name what is loaded or
    run.
    """
    if not isinstance(value, dict):
        raise InputError(f"{key}: {value!r} is no dict")
    for name, option in value.items():
        items = [*option, *option.values()] if isinstance(option, dict) else option
        for item in items if isinstance(items, list | tuple) else [items]:
            if not isinstance(item, int | float | str | None):
                raise InputError(f"{key}.{name}: {option!r} is neither a number nor a name")
            if isinstance(item, str):
                _backbone(f"{key}.{name}", item)
    return value


def _rgb(key: str, value: Any) -> RGB:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise InputError(f"{key}: {value!r} is not three numbers")
    if not all(type(number) in (int, float) and abs(number) <= 1000 for number in value):
        raise InputError(f"{key}: {value!r} is not three numbers")
    red, green, blue = (float(number) for number in value)
    return red, green, blue


def _std(key: str, value: Any) -> RGB:
    std = _rgb(key, value)
    if min(std) <= 0:
        raise InputError(f"{key}: {value!r} must be above 0")
    return std


def _long_side(key: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value < 1 << 31):
        raise InputError(f"{key}: {value!r} is neither a number of pixels nor null")
    return value


def _spec(kind: type) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def parse(key: str, value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise InputError(next(explain(error, key))) from error

    return parse


_PARSERS: dict[str, Any] = {
    "input": _spec(GraphInput),
    "output": _spec(GraphOutput),
    "arch": _typed(str),
    "backbone": _backbone,
    "output_stride": _typed(int),
    "classes": lambda key, value: Classes.from_json(value),
    "mean": _rgb,
    "std": _std,
    "long_side": _long_side,
    "metrics": _typed(dict),
    "provenance": _typed(dict),
    "library": _library,
    "options": _options,
}
