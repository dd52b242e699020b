"""What this machine has, what it can compute, and whether it reaches storage: segbatch doctor."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segbatch import storage
from segbatch.__version__ import __version__
from segbatch.errors import SegbatchError
from segbatch.machine import cpu_model, num_cores
from segbatch.storage import hub, one_line
from segbatch.storage.clients import is_unsigned, s3_endpoint

LIBRARIES = ("ray", "torch", "torchvision", "openvino", "pyarrow", "deltalake", "duckdb")
# A package of each extra of pyproject.toml.
EXTRAS = {
    "gcs": "gcsfs", "azure": "adlfs", "demo": "moto", "excel": "xlsxwriter", "int8": "nncf",
    "onnx": "onnx", "serve": "fastapi", "transformers": "transformers", "mlflow": "mlflow-skinny",
    "wandb": "wandb",
}  # fmt: skip
PROBE = b"written by segbatch doctor; it can be deleted"


def examine(uri: str | None = None) -> dict[str, Any]:
    """Facts about this machine, by name; with ``uri``, a folder, also whether it can be listed,
    written to and read from.

    What goes wrong with storage is a fact that begins with ``no:``, and not an error.
    """
    from segbatch.model.device import device_here, device_name, resolve_device
    from segbatch.model.engine import runs_here

    facts = {
        "segbatch": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) or "missing" for name in LIBRARIES},
        "extras": [extra for extra, package in EXTRAS.items() if _version(package)],
        "cpu": f"{cpu_model()}, {num_cores()} cores",
        "device": device_name(resolve_device(device_here("auto"))),
        "runs": runs_here("deeplabv3plus"),
        "ray": os.environ.get("RAY_ADDRESS") or "starts on this machine",
        "aws_credentials": _aws(),
        "s3_endpoint": s3_endpoint() or "AWS",
        "hugging_face": "a token" if hub.headers() else "no token: public repositories only",
    }
    return facts if uri is None else facts | _storage(storage.normalize(uri))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _aws() -> str:
    """Where the credentials for S3 come from."""
    from botocore.session import Session

    if is_unsigned():
        return "none asked for (AWS_SKIP_SIGNATURE)"
    credentials = Session().get_credentials()
    return "none found" if credentials is None else f"found ({credentials.method})"


def _is_missing(path: Path) -> bool:
    """Whether there is nothing at ``path``; false where the folder around it cannot be read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _storage(uri: str) -> dict[str, str]:
    """Whether a folder can be listed, written to and read from."""
    facts = {"uri": uri}
    folder = storage.local_path(uri) if storage.is_local(uri) else None
    missing = [each for each in (folder, *folder.parents) if _is_missing(each)] if folder else []
    probe = storage.join(uri, f"doctor-{uuid.uuid4().hex}")

    def attempt(name: str, does: Callable[[], str]) -> bool:
        try:
            facts[name] = does()
        except (SegbatchError, OSError) as error:
            facts[name] = f"no: {one_line(error).replace(probe, uri)}"
        return not facts[name].startswith("no:")

    def write() -> str:
        storage.write_bytes(probe, PROBE)
        return "yes"

    def read() -> str:
        try:
            same = storage.read_bytes(probe) == PROBE
        finally:
            storage.delete([probe])
        return "yes, the same bytes" if same else "no: other bytes than were written"

    def list_it() -> str:
        if folder in missing:
            return "yes; the folder does not exist yet"
        if folder is not None and not folder.is_dir():
            return "no: it is a file, not a folder"
        return "yes" if next(iter(storage.list_files(uri)), None) else "yes; there are no files"

    try:
        storage.require_extra(uri)
    except SegbatchError as error:
        return facts | {"extra": f"no: {error}"}
    attempt("list", list_it)
    if attempt("write", write):
        attempt("read", read)
    for made in missing:
        with suppress(OSError):  # another process may have written to it
            made.rmdir()
    return facts
