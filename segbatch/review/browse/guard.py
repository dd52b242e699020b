"""Who may ask the server of the browse page, and the headers of its answers."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Cache-Control": "no-store",  # another run may have the same address tomorrow
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self';"
        " worker-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "X-Content-Type-Options": "nosniff",
}


class RequestGuard:
    """Refuses requests from anywhere but the page, and adds the headers to every answer."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str] | None,
        token: str | None,
        tiles_origin: str = "",
    ) -> None:
        self._app = app
        policy = HEADERS["Content-Security-Policy"]
        for part in ("img-src 'self'", "connect-src 'self'") if tiles_origin else ():
            policy = policy.replace(part, f"{part} {tiles_origin}")
        self._headers = HEADERS | {"Content-Security-Policy": policy}
        self._hosts = hosts
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if scope["type"] != "http":  # there are no web sockets
            return
        path, refusal = scope["path"], self._refusal(Headers(scope=scope))
        if self._token is not None:
            given, _, rest = path.removeprefix("/").partition("/")
            path = f"/{rest}"
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                refusal = "the address lacks its token; use it as segbatch browse printed it"
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app({**scope, "path": path, "raw_path": path.encode()}, receive, send_guarded)

    def _refusal(self, headers: Headers) -> str | None:
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            name = None
        if name is None or (self._hosts is not None and name not in self._hosts):
            return "this page has another address; use it as segbatch browse printed it"
        # Only browsers send this header. Links to the page work; embedding its content does not.
        from_elsewhere = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
        if from_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return "requests from other sites are refused"
        return None
