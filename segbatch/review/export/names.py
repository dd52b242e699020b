"""Names: what the files of exported images are called, by their URIs.

A name is the image's path below what all URIs begin with, without an extension, of letters, digits,
``_``, ``-`` and ``.`` only, so that every tool and storage takes it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS

MAX_PART = 180  # bytes of one part of a path; the limit of most storage is 255
UNSAFE = re.compile(r"[^\w.-]+")


def common_folder(first: str, last: str) -> str:
    """What all URIs begin with whose first and last, in their order, are these; up to a slash."""
    pairs = enumerate(zip(first, last, strict=False))
    end = next((index for index, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, end) + 1]


def safe_name(uri: str, folder: str) -> str:
    """The name of an image below ``folder``, with which ``uri`` begins. Never empty; two URIs may
    have one name.
    """
    path = uri.removeprefix(folder)
    if storage.scheme_of(uri) in storage.HTTP_SCHEMES:
        path = unquote(without_query(path))
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    if is_image_name(path):
        path = str(PurePosixPath(path).with_suffix(""))
    return "/".join(part for raw in path.split("/") if (part := _safe(raw))) or "image"


def without_query(address: str) -> str:
    """A web address without what follows its path, which may be a signature."""
    return re.split(r"[?#]", address, maxsplit=1)[0]


def is_image_name(path: str) -> bool:
    return PurePosixPath(path).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS


def _safe(part: str) -> str:
    """A part of a path that is no hidden file and leads nowhere else; empty if nothing is left."""
    safe = UNSAFE.sub("_", part).strip(".")  # Windows takes no point at the end
    return safe.encode()[:MAX_PART].decode(errors="ignore")
