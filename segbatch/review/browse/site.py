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
from dataclasses import asdict
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlsplit

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segbatch import storage
from segbatch.errors import InputError, RunError, SegbatchError
from segbatch.images.parts import part_extension, read_parts
from segbatch.results.runfolder import open_folder
from segbatch.review.browse.grid import Grid
from segbatch.review.browse.layers import LONG_SIDES, LayerCache, Layers, Size
from segbatch.review.browse.query import GridQuery
from segbatch.review.map.sheet import map_file, tiles_origin
from segbatch.review.theme import THEME

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ALL_ADDRESSES = ("0.0.0.0", "::")  # for listening; no client uses them as a name
SHUTDOWN_S = 3

SCRIPTS = (
    "browse.js", "browse-address.js", "browse-filters.js", "browse-range.js", "browse-grid.js",
    "browse-marks.js", "browse-large.js", "browse-zoom.js", "browse-map.js",
)  # fmt: skip
PAGE = {
    "browse.html": "text/html",
    "browse.css": "text/css",
    "browse-large.css": "text/css",
    **dict.fromkeys(SCRIPTS, "text/javascript"),
}
MAP = {"map.css": "text/css", "map.js": "text/javascript", "maplibre-gl.js": "text/javascript"}

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


class RunEndpoints:
    """The HTTP endpoints of one run. The page opens an unfinished run again when it loads."""

    def __init__(self, run_uri: str, tiles: str | None = None) -> None:
        self.tiles = tiles
        self._open(run_uri)

    def _open(self, run_uri: str) -> None:
        run = open_folder(run_uri)
        self.grid = Grid(run)
        self.layer_cache = LayerCache(run)

    def facts(self) -> dict[str, Any]:
        """The run, and the filters for its images."""
        run = open_folder(self.grid.run.uri)
        if run.info != self.grid.run.info:
            self._open(run.uri)
        return {
            "name": run.name,
            "uri": run.uri,
            "status": run.status,
            "images": run.info.manifest.rows,
            "model": run.info.model.uri,
            "masks": run.info.job.get("masks") != "none",
            "classes": [{"name": c.name, "field": c.field, "color": c.hex} for c in run.classes],
            "measures": [
                {"name": m.name, "group": m.group, "label": m.label, "whole": m.is_whole}
                for m in self.grid.measures.values()
            ],
            "created": run.info.created,
            "columns": self.grid.own_columns,
            "texts": self.grid.texts,
            "kinds": self.grid.kinds(),
            "coordinates": self.grid.coordinates,
            "tiles": self.tiles,
        }

    async def run(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.facts))

    async def facets(self, _: Request) -> Response:
        return JSONResponse(asdict(await asyncio.to_thread(self.grid.facets)))

    async def images(self, request: Request) -> Response:
        query = _query_of(request)
        return JSONResponse({"images": await asyncio.to_thread(self.grid.page, query)})

    async def points(self, request: Request) -> Response:
        query = _query_of(request)
        return JSONResponse({"points": await asyncio.to_thread(self.grid.points, query)})

    async def count(self, request: Request) -> Response:
        query = _query_of(request)
        return JSONResponse({"count": await asyncio.to_thread(self.grid.count, query)})

    async def image(self, request: Request) -> Response:
        image_id = request.path_params["image_id"]
        return JSONResponse(await asyncio.to_thread(self.grid.image, image_id))

    async def photo(self, request: Request) -> Response:
        layers = await self._layers(request)
        return Response(layers.photo, media_type=layers.media_type)

    async def mask(self, request: Request) -> Response:
        layers = await self._layers(request)
        return Response(layers.mask, 200 if layers.mask else 204, media_type="image/png")

    async def original(self, request: Request) -> Response:
        """The original file, as a download: it may hold anything, and is never shown."""
        image_id = request.path_params["image_id"]
        uri = await asyncio.to_thread(self.grid.uri, image_id)
        parts = await asyncio.to_thread(self.grid.run.parts, [(image_id, uri)])
        [content] = await asyncio.to_thread(
            read_parts, parts, self.layer_cache.limits.read_limits()
        )
        if not isinstance(content, bytes):
            return PlainTextResponse(f"{content.kind}: {content.message}", 404)
        name = quote(storage.name_of(uri) + part_extension(uri, content), safe="")
        return Response(
            content,
            media_type="application/octet-stream",
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{name}"},
        )

    async def _layers(self, request: Request) -> Layers:
        size: Size = request.path_params["size"]
        if size not in LONG_SIDES:
            raise InputError(f"no such size: {size}")
        image_id = request.path_params["image_id"]
        uri = await asyncio.to_thread(self.grid.uri, image_id)
        return await self.layer_cache.get(image_id, uri, size)


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


class Site:
    """The page of a run at an address; :meth:`run` serves it until Ctrl-C or :meth:`stop`.

    Port 0 takes any free one. Raises :class:`~segbatch.errors.InputError` if it cannot listen at
    the address or ``tiles`` names none, and what
    :func:`~segbatch.results.runfolder.open_folder` raises.
    """

    def __init__(self, run_uri: str, host: str, port: int, *, tiles: str | None = None) -> None:
        origin = tiles_origin(tiles)
        token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        hosts = frozenset({host.lower(), *(LOOPBACK if token is None else ())})
        app = RequestGuard(
            _application(RunEndpoints(run_uri, tiles)),
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
        self._server = uvicorn.Server(config)
        self._listening = _listen(host, port)
        name = socket.gethostname() if host in ALL_ADDRESSES else host
        name = f"[{name}]" if ":" in name else name
        path = f"{token}/" if token else ""
        self.url = f"http://{name}:{self._listening.getsockname()[1]}/{path}"

    def run(self) -> None:
        with suppress(KeyboardInterrupt):  # the server shuts down first, then raises it again
            self._server.run(sockets=[self._listening])

    def stop(self) -> None:
        """End :meth:`run`, from any thread."""
        self._server.should_exit = True


def _application(endpoints: RunEndpoints) -> ASGIApp:
    picture = "pictures/{size}/{image_id:int}"
    routes = [
        Route("/", _static("browse.html")),
        Route("/theme.css", _fixed(THEME.encode(), "text/css")),
        *(Route(f"/{name}", _static(name)) for name in (*PAGE, *MAP)),
        Route("/points", endpoints.points),
        Route("/run", endpoints.run),
        Route("/facets", endpoints.facets),
        Route("/images", endpoints.images),
        Route("/count", endpoints.count),
        Route("/images/{image_id:int}", endpoints.image),
        Route("/originals/{image_id:int}", endpoints.original),
        Route(f"/{picture}/photo", endpoints.photo),
        Route(f"/{picture}/mask", endpoints.mask),
    ]
    return Starlette(
        routes=routes, exception_handlers={SegbatchError: _error_response, OSError: _error_response}
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both_families = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both_families)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # Python repeats the address
        raise InputError(
            f"cannot listen at {host}, port {port}: {why}; choose another with --port or --host"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _query_of(request: Request) -> GridQuery:
    try:
        return GridQuery.model_validate_json(request.query_params.get("query", "{}"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"query: {where}: {first['msg']}") from error


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
