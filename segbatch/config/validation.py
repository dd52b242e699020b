"""pydantic's errors in words for users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def explain(error: ValidationError, *above: str) -> Iterator[str]:
    """A line for each thing that is wrong, as ``key.key: message``; ``above`` are outer keys."""
    for details in error.errors():
        key = ".".join(map(str, (*above, *details["loc"])))
        message = message_of(details)
        yield f"{key}: {message}" if key else message


def message_of(details: ErrorDetails) -> str:
    """What is wrong with a value, without its key: ``should be 'a' or 'b', not 'c'``.

    A document that is no JSON is not repeated: it may be megabytes.
    """
    message = details["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if details["type"] == "missing":
        return "is missing"
    if details["type"] in ("model_type", "model_attributes_type"):
        return "should have keys and values"
    given = details["input"]
    if details["type"] in ("value_error", "json_invalid") or isinstance(given, Mapping | list):
        return message
    return f"{message[0].lower()}{message[1:]}, not {given!r}"
