"""A Label Studio server as a place to read photographs from, named by environment variables.

``LABEL_STUDIO_URL`` is its address and ``LABEL_STUDIO_API_KEY`` the access token of a user, as for
Label Studio's own ML backends.
"""

from __future__ import annotations

import os


def server_url() -> str | None:
    """The server's address without a slash at its end; ``None`` if none is named."""
    return os.environ.get("LABEL_STUDIO_URL", "").rstrip("/") or None


def headers(uri: str) -> dict[str, str]:
    """The headers with which the server gives ``uri``; none for what is not on it."""
    server, token = server_url(), os.environ.get("LABEL_STUDIO_API_KEY")
    is_there = server is not None and uri.startswith(f"{server}/")
    return {"Authorization": f"Token {token}"} if is_there and token else {}
