"""The HTTP endpoints of a run: which images match, and what each looks like."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from segbatch import storage
from segbatch.config.validation import explain
from segbatch.errors import InputError
from segbatch.images.parts import part_extension, read_parts
from segbatch.results.runfolder import RunFolder, open_folder
from segbatch.review.browse.grid import Grid
from segbatch.review.browse.layers import LONG_SIDES, LayerCache, Layers, Size
from segbatch.review.browse.query import GridQuery


class RunEndpoints:
    """The HTTP endpoints of one run; those of a run to compare it with are below ``/other/``.

    The page opens unfinished runs again when it loads.
    """

    def __init__(self, run_uri: str, tiles: str | None = None, against: str | None = None) -> None:
        self.tiles = tiles
        self.other: RunEndpoints | None = None if against is None else RunEndpoints(against)
        self.grid: Grid
        self._open(open_folder(run_uri))

    def _open(self, run: RunFolder) -> None:
        self.grid = Grid(run, None if self.other is None else self.other.grid.run)
        self.layer_cache = LayerCache(run)

    def _reopen(self) -> bool:
        """Open the run again if it has changed; returns whether it has."""
        has_changed = self.other is not None and self.other._reopen()
        run = open_folder(self.grid.run.uri)
        if run.info == self.grid.run.info and not has_changed:
            return False
        self._open(run)
        return True

    def facts(self) -> dict[str, Any]:
        """The run, and the filters for its images."""
        self._reopen()
        run, grid = self.grid.run, self.grid
        return {
            **_described(run),
            "against": None if self.other is None else _described(self.other.grid.run),
            "status": run.status,
            "created": run.info.created,
            "images": run.info.manifest.rows,
            "model": run.info.model.uri,
            "measures": [
                {"name": m.name, "group": m.group, "label": m.label, "whole": m.is_whole}
                for m in grid.measures.values()
            ],
            "columns": grid.own_columns,
            "texts": grid.texts,
            "kinds": grid.kinds(),
            "coordinates": grid.coordinates,
            "tiles": self.tiles,
        }

    def routes(self) -> list[BaseRoute]:
        picture = "/pictures/{size}/{image_id:int}"
        routes: list[BaseRoute] = [
            Route("/run", self.run),
            Route("/facets", self.facets),
            Route("/points", self.points),
            Route("/images", self.images),
            Route("/count", self.count),
            Route("/images/{image_id:int}", self.image),
            Route("/originals/{image_id:int}", self.original),
            Route(f"{picture}/photo", self.photo),
            Route(f"{picture}/mask", self.mask),
        ]
        if self.other is not None:
            routes.append(Mount("/other", routes=self.other.routes()))
        return routes

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
        facts = await asyncio.to_thread(self.grid.image, image_id)
        other_id = await asyncio.to_thread(self.grid.other_id, image_id)
        return JSONResponse({**facts, "other_id": other_id})

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


def _described(run: RunFolder) -> dict[str, Any]:
    """What the page says of a run and needs for its masks."""
    return {
        "name": run.name,
        "uri": run.uri,
        "masks": run.info.job.get("masks") != "none",
        "classes": [{"name": c.name, "field": c.field, "color": c.hex} for c in run.classes],
    }


def _query_of(request: Request) -> GridQuery:
    try:
        return GridQuery.model_validate_json(request.query_params.get("query", "{}"))
    except ValidationError as error:
        raise InputError(f"query: {next(explain(error))}") from error
