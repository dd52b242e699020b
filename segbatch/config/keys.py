"""The types of single keys of job files, and which keys are a job's identity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from segbatch.storage import uris

MAX_COUNT = 2**31 - 1
IDENTITY: JsonDict = {"identity": True}

# How Spark names a container of an account. adlfs, which is behind pyarrow, drops the account.
_HADOOP_AZURE = re.compile(
    r"(abfs|wasb)s?://(?P<container>[\w$-]+)@(?P<account>\w+)\.(dfs|blob)\.core\.windows\.net"
    r"(?P<path>(/.*)?)",
    re.S | re.I,
)


class Strict(BaseModel):
    """Base of all mappings in job files: refuses unknown keys, other types, and changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


def _location(uri: str) -> str:
    if not uri.strip():
        raise ValueError("must not be empty")
    if azure := _HADOOP_AZURE.fullmatch(uri):
        raise ValueError(
            f"{uri}: write abfss://{azure['container']}{azure['path']} and set"
            f" AZURE_STORAGE_ACCOUNT_NAME={azure['account']} in the environment"
        )
    if re.match(r"[A-Za-z][\w+.-]*:/*[^/]*@", uri):
        raise ValueError("has a user name or password; credentials belong in the environment")
    if uri != uri.strip() or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", uri):
        raise ValueError(f"{uri!r} has spaces around it or control characters")
    if correct := uris.corrected(uri):
        raise ValueError(f"{uri} is not a valid location; did you mean {correct}?")
    if uris.scheme_of(uri) in uris.OBJECT_SCHEMES and not uris.split_bucket(uri)[0].split("//")[1]:
        raise ValueError(f"{uri} names no bucket")
    return uri


def _output(uri: str) -> str:
    """Refuse paths whose characters Delta tables misread: they would write somewhere else."""
    odd = re.search(r"[?#%*\[\]\\]", uri)
    if odd:
        raise ValueError(f"{uri} has {odd[0]} in it, which not every library accepts: rename it")
    if variable := re.search(r"\$([A-Za-z_]\w*)", uri):
        raise ValueError(f"{variable[0]} is not replaced: write ${{{variable[1]}}}")
    key = uris.split_bucket(uri.rstrip("/"))[1]
    if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(f"{uri} has a part that is empty, . or ..: write it without")
    return uri


Location = Annotated[str, AfterValidator(_location)]
Output = Annotated[Location, AfterValidator(_output)]


# Parameters of a web address that are others when it is signed again: of S3, Google, Azure (`se`).
_SIGNATURE = re.compile(
    r"(x-\w+-.*|.*(signature|token|secret|passw|credential|access_?key|api_?key).*|expires|policy"
    r"|sig|s[et]|sk[et])=.*",
    re.I | re.S,
)


def recorded(value: Any) -> Any:
    """``value`` of a job, as JSON, as the job's output keeps it: without signatures.

    The query of a web address may be one. A digest of the other parameters takes its place, so that
    ``?id=2`` is another source than ``?id=1``, and an address that is signed again the same one.
    """
    if isinstance(value, Mapping):
        return {key: recorded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [recorded(inner) for inner in value]
    if not isinstance(value, str) or (address := uris.without_query(value)) == value:
        return value
    parameters = value.removeprefix(address).lstrip("?").split("&")
    kept = "&".join(one for one in parameters if one and not _SIGNATURE.fullmatch(one))
    return address + (f"#query={hashlib.sha256(kept.encode()).hexdigest()[:16]}" if kept else "")


def check_outside(output: str, folders: Mapping[str, Any]) -> str:
    """Returns ``output`` if it lies in none of ``folders``, else raises ``ValueError``.

    The keys of ``folders`` say what each is; its values are locations or ``None``.
    """
    for what, folder in folders.items():
        if folder is not None and uris.is_inside(output, folder):
            raise ValueError(f"lies in {what}, {folder}: choose a folder of its own")
    return output


def auto_or(kind: str, check: Any) -> BeforeValidator:
    """A validator that takes ``auto`` and what ``check`` accepts; ``kind`` describes the latter."""

    def validate(value: Any) -> Any:
        if value == "auto" or check(value):
            return value
        raise ValueError(f"must be auto or {kind}, not {value!r}")

    return BeforeValidator(validate)


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number from 1 to ``MAX_COUNT``."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT


def is_workers(value: Any) -> bool:
    """Whether ``value`` is a number of workers, or ``[min, max]``."""
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
    """The identity keys of ``model`` and of the mappings in it, dotted, with their values as JSON.

    All keys below an identity key are identity, too; with ``inside``, all keys of ``model`` are.
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
