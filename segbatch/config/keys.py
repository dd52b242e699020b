"""Keys: the small types that job files are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from segbatch.storage import uris

MAX_COUNT = 2**31 - 1
IDENTITY: JsonDict = {"identity": True}


class Strict(BaseModel):
    """Keys that are refused when unknown, of another type, or changed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


def _location(uri: str) -> str:
    if not uri.strip():
        raise ValueError("must not be empty")
    if re.match(r"[A-Za-z][\w+.-]*:/*[^/]*@", uri):
        raise ValueError("holds a user name or password; credentials belong in the environment")
    if uri != uri.strip() or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", uri):
        raise ValueError(f"{uri!r} holds spaces around it or control characters")
    if correct := uris.corrected(uri):
        raise ValueError(f"{uri} is no location; did you mean {correct}?")
    if uris.scheme_of(uri) in uris.OBJECT_SCHEMES and not uris.split_bucket(uri)[0].split("//")[1]:
        raise ValueError(f"{uri} names no bucket")
    return uri


def _output(uri: str) -> str:
    """Delta tables take some characters of their paths for something else, and write elsewhere."""
    odd = re.search(r"[?#%*\[\]\\]", uri)
    if odd:
        raise ValueError(f"{uri} holds {odd[0]}, which does not work in every path: rename it")
    key = uris.split_bucket(uri.rstrip("/"))[1]
    if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(f"{uri} holds a part that is empty, . or ..: write it without")
    return uri


Location = Annotated[str, AfterValidator(_location)]
Output = Annotated[Location, AfterValidator(_output)]


def outside(output: str, folders: Mapping[str, Any]) -> str:
    """``output``, if it lies in none of ``folders``, by what each of them is; ``None`` is none."""
    for what, folder in folders.items():
        if folder is not None and uris.is_inside(output, folder):
            raise ValueError(f"lies in {what}, {folder}: choose a folder of its own")
    return output


def auto_or(kind: str, check: Any) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if value == "auto" or check(value):
            return value
        raise ValueError(f"must be auto or {kind}, not {value!r}")

    return BeforeValidator(validate)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT


def is_workers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(is_count(v) for v in value) and value[0] <= value[1]
    return is_count(value)


Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Workers = Annotated[Any, auto_or("a number of workers, or [min, max]", is_workers)]
LongSide = Annotated[
    int | str | None,
    auto_or("null or a whole number of pixels", lambda v: v is None or is_count(v)),
]
RowsPerFile = Annotated[
    int | str, auto_or("a number from 1 to 500", lambda v: is_count(v) and v <= 500)
]
CpusPerWorker = Annotated[int | str, auto_or("a number of CPUs", is_count)]


def identity_of(model: BaseModel, prefix: str = "", inside: bool = False) -> dict[str, Any]:
    """The identity keys below ``model``, dotted, with their values as JSON.

    What is below an identity key is identity as well, as is everything if ``inside`` says so.
    """
    keys: dict[str, Any] = {}
    values = model.model_dump(mode="json", by_alias=True)
    for name, info in type(model).model_fields.items():
        value, key = getattr(model, name), info.alias or name
        identity = inside or info.json_schema_extra == IDENTITY
        if isinstance(value, BaseModel) and (not identity or info.annotation is type(value)):
            keys |= identity_of(value, f"{prefix}{key}.", identity)
        elif identity:
            keys[prefix + key] = values[key]
    return keys
