"""``segbatch browse``: serves a run as a web page. Read-only.

The page is static and requests its content as JSON and pictures. Only the page itself may request
them: other sites are refused by the ``Sec-Fetch-Site`` header, and DNS rebinding by the ``Host``
header. If other machines can connect, every address starts with a token that is only in the printed
URL.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segbatch import storage
from segbatch.errors import InputError, RunError, SegbatchError
from segbatch.machine import listen
from segbatch.review.browse.endpoints import RunEndpoints
from segbatch.review.browse.guard import RequestGuard
from segbatch.review.map.sheet import map_file, tiles_origin
from segbatch.review.theme import THEME

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ALL_ADDRESSES = ("0.0.0.0", "::")  # for listening; no client uses them as a name
SHUTDOWN_S = 3

SCRIPTS = (
    "browse.js", "browse-address.js", "browse-filters.js", "browse-range.js", "browse-grid.js",
    "browse-marks.js", "browse-sides.js", "browse-large.js", "browse-zoom.js", "browse-map.js",
)  # fmt: skip
PAGE = {
    "browse.html": "text/html",
    "browse.css": "text/css",
    "browse-large.css": "text/css",
    **dict.fromkeys(SCRIPTS, "text/javascript"),
}
MAP = {"map.css": "text/css", "map.js": "text/javascript", "maplibre-gl.js": "text/javascript"}


class Site:
    """The page of a run at an address; :meth:`run` serves it until Ctrl-C or :meth:`stop`.

    ``against`` is a run over the same images, to compare with. Port 0 takes any free one. Raises
    :class:`~segbatch.errors.InputError` if it cannot listen at the address or ``tiles`` names none,
    and what :func:`~segbatch.results.runfolder.open_folder` raises.
    """

    def __init__(
        self,
        run_uri: str,
        host: str,
        port: int,
        *,
        tiles: str | None = None,
        against: str | None = None,
    ) -> None:
        origin = tiles_origin(tiles)
        token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        hosts = frozenset({host.lower(), *(LOOPBACK if token is None else ())})
        app = RequestGuard(
            _application(RunEndpoints(run_uri, tiles, against)),
            None if host in ALL_ADDRESSES else hosts,
            token,
            origin,
        )
        config = uvicorn.Config(
            app,
            access_log=False,  # it would contain the token
            log_level="warning",
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        self._server = _Server(config)
        self._listening = listen(host, port)
        name = socket.gethostname() if host in ALL_ADDRESSES else host
        name = f"[{name}]" if ":" in name else name
        path = f"{token}/" if token else ""
        self.url = f"http://{name}:{self._listening.getsockname()[1]}/{path}"

    def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Serve the page; ``ready`` is called once it is served and Ctrl-C ends it."""
        self._server.ready = ready
        with suppress(KeyboardInterrupt):  # the server shuts down first, then raises it again
            self._server.run(sockets=[self._listening])

    def stop(self) -> None:
        """End :meth:`run`, from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """A server that calls ``ready`` when it handles signals and answers requests.

    A signal that came before would be lost where a shell has the process ignore it, as it does for
    commands in the background.
    """

    ready: Callable[[], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await asyncio.to_thread(self.ready)  # it may request the page itself


def _application(endpoints: RunEndpoints) -> ASGIApp:
    routes = [
        Route("/", _static("browse.html")),
        Route("/theme.css", _fixed(THEME.encode(), "text/css")),
        *(Route(f"/{name}", _static(name)) for name in (*PAGE, *MAP)),
        *endpoints.routes(),
    ]
    return Starlette(
        routes=routes, exception_handlers={SegbatchError: _error_response, OSError: _error_response}
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _static(name: str) -> Callable[[Request], Awaitable[Response]]:
    if name in MAP:
        return _fixed(map_file(name), MAP[name])
    return _fixed(files("segbatch.review.browse").joinpath(name).read_bytes(), PAGE[name])


def _fixed(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return page


async def _error_response(_: Request, error: Exception) -> Response:
    """An error as one line, as on the command line."""
    status = 404 if isinstance(error, RunError) else 400 if isinstance(error, InputError) else 503
    line = " ".join(str(error).split()) if status != 503 else storage.one_line(error)
    return JSONResponse({"error": line}, status)
