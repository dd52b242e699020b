"""Reading a job file: YAML to plain values with their lines, and errors that name file, line, key.

YAML as people mean it: ``1e-3`` is a number, a key twice is an error, and what a bool or a date was
made of (``on``, ``2026-11-21``) is told. Anchors and aliases are refused: a job file needs none,
and a small file of nested ones grows without bounds.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from segbatch import storage
from segbatch.errors import JobFileError

STDIN = "-"
MAX_BYTES = 200_000
MAX_INTEGER = 1 << 62
MAX_MESSAGE = 500  # characters
MAX_MISTAKES = 20  # that are listed
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
SECRET_KEY = re.compile(r"secret|password|passwd|token|access_key|api_?key|credential", re.I)

Job = TypeVar("Job", bound=BaseModel)
Key = tuple[str | int, ...]


@dataclass
class Document:
    """A job file's values, and where each key stands: dotted path to line, counted from 1."""

    name: str
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def error(self, key: Key, message: str) -> JobFileError:
        line = self.lines.get(key)
        where = f"{self.name}:{line}" if line else self.name
        path = _dotted(key)
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}…"
        return JobFileError(f"{where}: {path}: {message}" if path else f"{where}: {message}")


class _Alias(yaml.MarkedYAMLError):
    """An alias, which may stand for a thousand values."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with YAML 1.2's floats, and without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"*{alias.anchor}: write the value out instead"
            raise _Alias(None, None, problem, alias.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
FLOAT: tuple[str, re.Pattern[str], list[str]] = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(*FLOAT)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
_Dumper.add_implicit_resolver(*FLOAT)


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # YAML folds what breaks a line, in Unicode's sense, unless it stands in double quotes.
    style = '"' if len(text.splitlines()) > 1 or text != text.strip() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _write_text)


def job_text(values: Mapping[str, Any]) -> str:
    """A job file with these values."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


def read_document(
    source: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Document:
    """The values of a job file (``-`` is stdin), with overrides put in and variables resolved.

    Raises :class:`JobFileError` for a file that is missing or not one YAML mapping.
    """
    name = "job" if isinstance(source, Mapping) else str(source)
    name = "<stdin>" if name == STDIN else name
    variables = os.environ if environment is None else environment
    try:
        if isinstance(source, Mapping):
            document = Document(name, dict(source))
        else:
            document = _parse(name, _read_stdin() if source == STDIN else _read(name))
        for override in overrides:
            _override(document, override)
        document.values = _resolve(document, (), document.values, variables)
    except RecursionError as error:
        raise JobFileError(f"{name}: nested too deeply for a job file") from error
    return document


def _read(path: str) -> str:
    if storage.is_local(path) and os.path.isdir(storage.local_path(path)):
        raise JobFileError(f"{path}: is a folder, not a job file")
    return _decoded(path, storage.read_input(path, JobFileError, "no such job file"))


def _read_stdin() -> str:
    return _decoded("<stdin>", sys.stdin.buffer.read(MAX_BYTES + 1))


def _decoded(name: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{name}: {len(data):,} bytes is no job file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise JobFileError(f"{name}: not a text file in UTF-8") from error


def _parse(name: str, text: str) -> Document:
    document = Document(name, {})
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise JobFileError(f"{name}: not a job file: it should begin with 'kind: segment'")
        loader = _Loader("")
        document.values = _construct(document, (), node, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        what = "" if isinstance(error, _Alias) else "not valid YAML: "
        raise JobFileError(f"{where}: {what}{problem[:MAX_MESSAGE]}") from error
    return document


def _construct(document: Document, key: Key, node: yaml.Node, loader: _Loader) -> Any:
    """Plain values of a node; notes the line of every key and refuses one that stands twice."""
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            child = (*key, name)
            document.lines[child] = key_node.start_mark.line + 1
            if name in values:
                raise document.error(child, "stands twice")
            if key_node.tag.endswith(":bool"):
                raise document.error(
                    child, f"YAML takes this for true or false; quote it: '{name}'"
                )
            if CONTROL.search(name):
                raise document.error(key, "a key holds a control character")
            values[name] = _construct(document, child, value_node, loader)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(document, (*key, index), child, loader)
            for index, child in enumerate(node.value)
        ]
    return _scalar(document, key, node, loader)


def _scalar(document: Document, key: Key, node: yaml.Node, loader: _Loader) -> Any:
    kind = node.tag.rpartition(":")[2]
    try:
        value = loader.construct_object(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise document.error(
            key, f"{node.value[:40]!r} is no {kind}; a text is to be quoted"
        ) from error
    taken_for = None
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        taken_for = str(value).lower()
    if isinstance(value, date):
        taken_for = "a date"
    if taken_for:
        raise document.error(
            key, f"YAML takes {node.value} for {taken_for}; quote it: '{node.value}'"
        )
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise document.error(key, "this number is too large")
    if isinstance(value, str) and CONTROL.search(value):
        raise document.error(key, "holds a control character")
    return value


def _override(document: Document, override: str) -> None:
    key_text, equals, value_text = override.partition("=")
    if not equals or not key_text.strip():
        raise JobFileError(f"--set {override}: must be key=value, as in predict.batch_size=64")
    value = _parse("--set", f"value: {value_text}" if value_text.strip() else "value: null")
    *parents, last = key_text.strip().split(".")
    target: dict[str, Any] = document.values
    for parent in parents:
        child = target.get(parent)
        target[parent] = dict(child) if isinstance(child, Mapping) else {}
        target = target[parent]
    target[last] = value.values["value"]


def _resolve(document: Document, key: Key, value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _resolve(document, (*key, k), v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(document, (*key, i), v, variables) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise document.error(key, f"the environment variable {match[1]} is not set")
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def validate(document: Document, kinds: Mapping[str, type[Job]]) -> Job:
    """The job that a document describes. Raises :class:`JobFileError`, a line per mistake."""
    kind = document.values.get("kind")
    model = kinds.get(str(kind))
    if model is None:
        what = "is missing" if kind is None else f"{kind!r} is unknown"
        raise document.error(("kind",), f"{what}; this version knows {', '.join(kinds)}")
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        lines = [_explain(document, model, dict(entry)) for entry in error.errors()]
        lines = list(dict.fromkeys(lines))
        more = [f"and {len(lines) - MAX_MISTAKES:,} more"] * (len(lines) > MAX_MISTAKES)
        raise JobFileError("\n".join(lines[:MAX_MISTAKES] + more)) from error


def _explain(document: Document, model: type[BaseModel], entry: dict[str, Any]) -> str:
    key: Key = tuple(part for part in entry["loc"] if part != "constrained-str")
    message = entry["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if entry["type"] == "extra_forbidden":
        message = _unknown_key(model, key)
    elif entry["type"] == "missing":
        message = "is missing"
    elif entry["type"] not in ("value_error",) and not isinstance(entry["input"], Mapping | list):
        message = f"{message[0].lower()}{message[1:]}, not {entry['input']!r}"
    return str(document.error(key, message))


def _unknown_key(model: type[BaseModel], key: Key) -> str:
    if SECRET_KEY.search(str(key[-1])):
        return "credentials do not belong in a job file; give them through the environment"
    fields: list[str] = list(model.model_fields)
    for part in key[:-1]:
        info = model.model_fields.get(str(part))
        nested = next((t for t in _models_in(info.annotation) if info), None) if info else None
        if nested is None:
            fields = []
            break
        model, fields = nested, list(nested.model_fields)
    guess = difflib.get_close_matches(str(key[-1]), fields, n=1)
    if guess:
        return f"unknown key; did you mean {guess[0]}?"
    return f"unknown key; known here: {', '.join(fields)}" if fields else "unknown key"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a field's annotation names (``Tile | None`` names ``Tile``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
