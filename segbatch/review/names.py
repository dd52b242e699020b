"""File names for copies of images, made from the images' URIs.

A name is the image's path below the folder that all URIs share, without its extension. It holds
letters, digits, ``_``, ``-`` and ``.`` only, so that every tool and every storage accepts it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote

from segbatch import storage
from segbatch.config.images import IMAGE_EXTENSIONS

MAX_PART = 180  # bytes of one part of a path; most storage allows 255
UNSAFE = re.compile(r"[^\w.-]+")


def common_folder(first: str, last: str) -> str:
    """The folder that all URIs share, up to its slash, given the first and last in sorted order."""
    pairs = enumerate(zip(first, last, strict=False))
    end = next((index for index, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, end) + 1]


def safe_name(uri: str, folder: str) -> str:
    """The name of the image at ``uri``, which begins with ``folder``. Never empty.

    Two URIs may get the same name.
    """
    path = uri.removeprefix(folder)
    if storage.scheme_of(uri) in storage.HTTP_SCHEMES:
        path = unquote(cut_query(path))
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    if is_image_name(path):
        path = str(PurePosixPath(path).with_suffix(""))
    return "/".join(part for raw in path.split("/") if (part := _safe_part(raw))) or "image"


def cut_query(address: str) -> str:
    """A web address without its query and fragment, which may hold a signature."""
    return re.split(r"[?#]", address, maxsplit=1)[0]


def is_image_name(path: str) -> bool:
    """Whether ``path`` ends in the extension of an image format."""
    return PurePosixPath(path).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS


def _safe_part(part: str) -> str:
    """One part of a path, neither hidden nor ``..``; empty if nothing is left of it."""
    safe = UNSAFE.sub("_", part).strip(".")  # Windows allows no dot at the end
    return safe.encode()[:MAX_PART].decode(errors="ignore")
