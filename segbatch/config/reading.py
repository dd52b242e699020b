"""Reads job files: YAML to a validated job, with errors that name file, line and key.

Differences from plain YAML: ``1e-3`` is a number, duplicate keys are errors, and so are values that
YAML turns into a bool or a date by surprise (``on``, ``2026-11-21``). Anchors and aliases are
refused: a job file needs none, and a small file of nested aliases can expand without limit.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segbatch import storage
from segbatch.config.validation import message_of
from segbatch.errors import JobFileError, shortened

STDIN = "-"
MAX_BYTES = 200_000
MAX_INTEGER = 1 << 62
MAX_MESSAGE = 500  # characters
MAX_LISTED_ERRORS = 20
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
FLOAT: tuple[str, re.Pattern[str], list[str]] = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),  # what a float begins with
)
SECRET_KEY = re.compile(r"secret|password|passwd|token|access_key|api_?key|credential", re.I)

Job = TypeVar("Job", bound=BaseModel)
Key = tuple[str | int, ...]


@dataclass
class JobDocument:
    """The values of a job file, not validated yet, and the line of each key, counted from 1.

    ``overridden`` are the keys that ``--set`` gives; ``expanded`` are the values with variables, as
    they were written.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: set[Key] = field(default_factory=set)
    expanded: dict[Key, str] = field(default_factory=dict)

    def error(self, key: Key, message: str) -> JobFileError:
        """The error to raise for the value at ``key``."""
        line = self.lines.get(key)
        where = f"{self.name}:{line}" if line else self.name
        if any(key[:length] in self.overridden for length in range(len(key) + 1)):
            where = "--set"
        path = _dotted(key)
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}…"
        return JobFileError(f"{where}: {path}: {message}" if path else f"{where}: {message}")


def read_document(
    source: str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> JobDocument:
    """The values of a job file (``-`` is stdin), with overrides and variables applied.

    Raises :class:`JobFileError` for a file that is missing or not one YAML mapping.
    """
    name = "job" if isinstance(source, Mapping) else str(source)
    name = "<stdin>" if name == STDIN else name
    variables = os.environ if environment is None else environment
    try:
        if isinstance(source, Mapping):
            document = JobDocument(name, dict(source))
        else:
            document = _parse(name, _read_text(str(source), name))
        for override in overrides:
            _apply_override(document, override)
        document.values = _expand_variables(document, (), document.values, variables)
    except RecursionError as error:
        raise JobFileError(f"{name}: nested too deeply for a job file") from error
    return document


def validate(document: JobDocument, kinds: Mapping[str, type[Job]]) -> Job:
    """The job that a document describes. Raises :class:`JobFileError` with a line per error."""
    kind = document.values.get("kind")
    model = kinds.get(str(kind))
    if model is None:
        what = "is missing" if kind is None else f"{kind!r} is unknown"
        raise document.error(("kind",), f"{what}; this version knows {', '.join(kinds)}")
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        lines = [_explain(document, model, details) for details in error.errors()]
        lines = list(dict.fromkeys(lines))
        more = [f"and {len(lines) - MAX_LISTED_ERRORS:,} more"] * (len(lines) > MAX_LISTED_ERRORS)
        raise JobFileError("\n".join(lines[:MAX_LISTED_ERRORS] + more)) from error


# ----------------------------------------------------------------------------- from text to values


def _read_text(source: str, name: str) -> str:
    if source == STDIN:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    elif storage.is_local(source) and os.path.isdir(storage.local_path(source)):  # never raises
        raise JobFileError(f"{name}: is a folder, not a job file")
    else:
        data = storage.read_input(source, JobFileError, "no such job file")
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{name}: {len(data):,} bytes is too large for a job file")
    return storage.decode_text(data, name, JobFileError)


class _AliasError(yaml.MarkedYAMLError):
    """The file has an alias, which could expand to any number of values."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2, and without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"*{alias.anchor}: write the value out instead"
            raise _AliasError(None, None, problem, alias.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes values so that :class:`_Loader` reads the same ones."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # YAML folds text at any line break of Unicode unless it is in double quotes.
        style = '"' if len(data.splitlines()) > 1 or data != data.strip() else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Loader.add_implicit_resolver(*FLOAT)
_Dumper.add_implicit_resolver(*FLOAT)
_Dumper.add_representer(str, _Dumper.represent_str)


def job_text(values: Mapping[str, Any]) -> str:
    """A job file with these values."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


def _parse(name: str, text: str) -> JobDocument:
    document = JobDocument(name, {})
    with _reading_yaml(name):
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise JobFileError(f"{name}: not a job file: it should begin with 'kind: segment'")
        document.values = _value_of(document, (), node, _Loader(""))
    return document


@contextmanager
def _reading_yaml(name: str, quoted: str | None = None) -> Iterator[None]:
    """Raises :class:`JobFileError` for wrong YAML in the file ``name``, or in the option ``name``
    whose value is to be ``quoted`` so.
    """
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark and quoted is None else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        what = "" if isinstance(error, _AliasError) else "not valid YAML: "
        start = getattr(error, "context_mark", None) or mark
        text = start.buffer[start.pointer :] if start and start.buffer else ""
        advice = "; indent with spaces" if text.startswith("\t") else ""
        if value := re.match(r"[*&@%!`][^,\]}#\n\0]*", text):  # they begin no text
            advice = f"; quote it if it is text: {quoted or repr(shortened(value[0].rstrip()))}"
        raise JobFileError(f"{where}: {what}{problem[:MAX_MESSAGE]}{advice}") from error


def _value_of(document: JobDocument, key: Key, node: yaml.Node, loader: _Loader) -> Any:
    """The plain value of a YAML node; records the line of every key below it."""
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [
            _value_of(document, (*key, index), child, loader)
            for index, child in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(document, key, node, loader)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        child = (*key, name)
        document.lines[child] = key_node.start_mark.line + 1
        if name in values:
            raise document.error(child, "duplicate key")
        if key_node.tag.endswith(":bool"):
            raise document.error(child, f"YAML reads this as true or false; quote it: '{name}'")
        if CONTROL.search(name):
            raise document.error(key, "a key has a control character")
        values[name] = _value_of(document, child, value_node, loader)
    return values


def _scalar(document: JobDocument, key: Key, node: yaml.Node, loader: _Loader) -> Any:
    """The value of a scalar node, without YAML's surprises."""
    try:
        value = loader.construct_object(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        kind = node.tag.rpartition(":")[2]
        raise document.error(
            key, f"{node.value[:40]!r} is not a valid {kind}; quote it if it is text"
        ) from error
    read_as = None
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        read_as = str(value).lower()
    if isinstance(value, date):
        read_as = "a date"
    if read_as:
        raise document.error(key, f"YAML reads {node.value} as {read_as}; quote it: '{node.value}'")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise document.error(key, "this number is too large")
    if isinstance(value, str) and CONTROL.search(value):
        raise document.error(key, "has a control character")
    return value


def _apply_override(document: JobDocument, override: str) -> None:
    """Set one key of the document, as ``--set key=value`` says."""
    key_text, equals, value_text = override.partition("=")
    if not equals or not key_text.strip():
        raise JobFileError(f"--set {override}: must be key=value, as in predict.batch_size=64")
    *parents, last = key_text.strip().split(".")
    document.overridden.add((*parents, last))
    name = f"--set {key_text.strip()}"
    text = f"value: {value_text}"
    as_text = f"{key_text.strip()}={json.dumps(value_text, ensure_ascii=False)}"
    quoted = f"--set {shlex.quote(as_text)}"
    with _reading_yaml(name, quoted):
        node = yaml.compose(text, Loader=_Loader)
        assert isinstance(node, yaml.MappingNode)
        end = node.value[0][1].end_mark.index
        if end < len(text.rstrip()):  # a comment, or another key on the next line
            read = text[len("value: ") : end]
            raise JobFileError(f"{name}: YAML reads only {read!r} of its value; quote it: {quoted}")
        value = _value_of(document, (*parents, last), node.value[0][1], _Loader(""))
    target: dict[str, Any] = document.values
    for parent in parents:
        child = target.get(parent)
        target[parent] = dict(child) if isinstance(child, Mapping) else {}
        target = target[parent]
    target[last] = value


def _expand_variables(
    document: JobDocument, key: Key, value: Any, variables: Mapping[str, str]
) -> Any:
    """``value`` with every ``${VAR}`` replaced. Other expansions of a shell are refused."""
    if isinstance(value, Mapping):
        return {k: _expand_variables(document, (*key, k), v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand_variables(document, (*key, i), v, variables) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if not re.fullmatch(r"\w+", match[1]):
            raise document.error(key, f"{match[0]} is not replaced: only ${{NAME}} is")
        if match[1] not in variables:
            raise document.error(key, f"the environment variable {match[1]} is not set")
        return variables[match[1]]

    expanded = re.sub(r"\$\{([^}]*)\}", variable, value)
    if expanded != value:
        document.expanded[key] = value
    return expanded


# ---------------------------------------------------------------------------------- error messages


def _explain(document: JobDocument, model: type[BaseModel], details: ErrorDetails) -> str:
    """One of pydantic's errors as a line with file, line and key."""
    key: Key = tuple(part for part in details["loc"] if part != "constrained-str")
    is_unknown = details["type"] == "extra_forbidden"
    message = _unknown_key(model, key) if is_unknown else message_of(details)
    written = document.expanded.get(key)
    if written is not None and _is_no_text(str(details["input"])):
        message += f": {written} inserts text; use --set {_dotted(key)}={written}"
    return str(document.error(key, message))


def _is_no_text(value: str) -> bool:
    """Whether YAML reads ``value`` as a number, a boolean or null."""
    tag: str = _Loader("").resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
    return not tag.endswith(":str")


def _unknown_key(model: type[BaseModel], key: Key) -> str:
    """What to say about an unknown key: a suggestion, or the keys that are known there."""
    if SECRET_KEY.search(str(key[-1])):
        return "credentials do not belong in a job file; set them in the environment"
    for part in key[:-1]:
        info = model.model_fields.get(str(part))
        nested = _models_in(info.annotation) if info else []
        if not nested:
            return "unknown key"
        model = nested[0]
    guess = difflib.get_close_matches(str(key[-1]), model.model_fields, n=1)
    if guess:
        return f"unknown key; did you mean {guess[0]}?"
    return f"unknown key; known here: {', '.join(model.model_fields)}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in a field's annotation (``Tile`` in ``Tile | None``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _dotted(key: Key) -> str:
    """A key as users write it: ``images[0].prefix``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
