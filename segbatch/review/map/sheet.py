"""What a page with a map needs: its files, and the address of tiles that the user has named."""

from __future__ import annotations

import re
from importlib.resources import files
from urllib.parse import urlsplit

from segbatch.errors import InputError

SCRIPTS = ("maplibre-gl.js", "map.js")
STYLE = "map.css"
MAX_POINTS = 20_000  # on one map; of more images so many are drawn at random
SAMPLE = f"USING SAMPLE reservoir({MAX_POINTS} ROWS) REPEATABLE (1)"


def map_file(name: str) -> bytes:
    """The content of one of the map's files."""
    return files("segbatch.review.map").joinpath(name).read_bytes()


def tiles_origin(tiles: str | None) -> str:
    """The origin of an address of tiles, for a Content-Security-Policy; empty for none.

    Raises :class:`~segbatch.errors.InputError` for an address that names no tiles.
    """
    if tiles is None:
        return ""
    parts = urlsplit(tiles)
    has_places = all(name in tiles for name in ("{x}", "{y}", "{z}"))
    is_host = re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc, re.ASCII)
    if parts.scheme not in ("http", "https") or not is_host or not has_places:
        raise InputError(
            f"--tiles {tiles}: must be an address with {{z}}, {{x}} and {{y}}, for example"
            " https://tiles.example.org/{z}/{x}/{y}.png"
        )
    return f"{parts.scheme}://{parts.netloc}"
