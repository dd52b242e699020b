"""The HTTP endpoints in front of a :class:`~segbatch.serving.replica.Predictor`.

An error is JSON with one line, ``detail``.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from ray import serve

from segbatch.__version__ import __version__
from segbatch.errors import InputError, JobFailed
from segbatch.formats.labelconfig import write_label_config
from segbatch.images.faults import Undecodable
from segbatch.serving import labelstudio
from segbatch.serving.answers import JPEG, JSON, OFFERED, PNG, Facts, accepted
from segbatch.serving.replica import Predictor
from segbatch.storage import one_line

STATUS = {"too_large": 413, "unsupported": 415, "undecodable": 422, "truncated": 422}
MAX_SETUP = 2 << 20  # bytes
PAGE = {"page.css": "text/css", "page.js": "text/javascript"}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self';"
        " connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}

BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "requestBody": {
        "required": True,
        "description": "An image file, of any format that segment jobs decode: JPEG, PNG, WebP, …",
        "content": {"image/*": BINARY},
    }
}
DETAIL = {JSON: {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}}
REFUSALS = {
    406: "The header Accept allows none of the types above",
    413: "Too many bytes or pixels, or too large for the device",
    415: "A format that is not decoded",
    422: "Not an image, or a damaged one",
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Facts,
        "description": "As the header Accept asks for: facts, the mask as palette PNG, an overlay",
        "content": {PNG: BINARY, JPEG: BINARY},
    },
    **{status: {"description": why, "content": DETAIL} for status, why in REFUSALS.items()},
}

# FastAPI's own pages would load their scripts from another host.
api = FastAPI(title="segbatch", version=__version__, docs_url=None, redoc_url=None)


async def _predictor() -> Predictor:
    return cast(Predictor, serve.get_replica_context().servable_object)


Here = Annotated[Predictor, Depends(_predictor)]


@api.post("/predict", responses=ANSWERS, openapi_extra=BODY, response_class=Response)
async def predict(request: Request, predictor: Here) -> Response:
    """Predict the image in the body; or tasks of Label Studio, in JSON."""
    kind = content_type(request)
    if kind == JSON:
        require_label_studio(predictor)
        body = await read_body(request, predictor.service.max_bytes)
        return JSONResponse(await labelstudio.predict_tasks(predictor, body))
    if kind == "multipart/form-data":
        raise HTTPException(
            415, "a form; send the image itself as the body: curl --data-binary @photo.jpg URL"
        )
    media_type = accepted(request.headers.get("accept"))
    if media_type is None:
        raise HTTPException(406, f"Accept must allow one of {', '.join(OFFERED)}")
    body = await read_body(request, predictor.service.max_bytes)
    predicted = await predictor.predict(body)
    if isinstance(predicted, Undecodable):
        raise HTTPException(STATUS[predicted.kind], f"{predicted.kind}: {predicted.message}")
    try:
        content = await predictor.in_thread(predicted.body, media_type)
    except InputError as error:
        raise HTTPException(406, one_line(error)) from error
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


@api.post("/setup")
async def setup(request: Request, predictor: Here) -> dict[str, Any]:
    """Connect a project of Label Studio."""
    require_label_studio(predictor)
    return labelstudio.set_up(predictor, await read_body(request, MAX_SETUP))


@api.get("/health")
async def health() -> dict[str, str]:
    """Answer Label Studio once the model is loaded."""
    return {"status": "UP"}


@api.get("/label_config.xml", response_class=Response)
async def label_config(predictor: Here) -> Response:
    """A labelling configuration for Label Studio with the classes of the model."""
    return Response(write_label_config(predictor.model.classes), media_type="application/xml")


@api.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer once the model is loaded."""
    return {"status": "ok"}


@api.get("/", include_in_schema=False)
async def page(request: Request, predictor: Here) -> Response:
    """A page to try the model with."""
    root = request.scope.get("root_path", "").rstrip("/")
    html = page_file("page.html").decode()
    html = html.replace("{{base}}", f"{root}/").replace("{{model}}", escape(predictor.name.uri))
    return Response(html, media_type="text/html", headers=PAGE_HEADERS)


@api.get("/page/{name}", include_in_schema=False)
async def part_of_page(name: str) -> Response:
    """The page's style and script."""
    if name not in PAGE:
        raise HTTPException(404, "Not Found")
    return Response(page_file(name), media_type=PAGE[name], headers=PAGE_HEADERS)


@api.exception_handler(InputError)
async def wrong_input(_: Request, error: InputError) -> Response:
    """A request that is not what the endpoint takes."""
    return JSONResponse({"detail": one_line(error)}, 422)


@api.exception_handler(JobFailed)
async def failed(_: Request, error: JobFailed) -> Response:
    """The model fails for every image."""
    return JSONResponse({"detail": one_line(error)}, 500)


@api.exception_handler(Exception)
async def internal_error(_: Request, __: Exception) -> Response:
    """An error of ours: Serve writes its traceback into the replica's log."""
    return JSONResponse({"detail": "internal error; the server's log says more"}, 500)


def require_label_studio(predictor: Predictor) -> None:
    """Raises ``HTTPException`` if this server does not read the images of tasks."""
    if not predictor.service.label_studio:
        raise HTTPException(
            415, "JSON is for tasks of Label Studio: start the server with --label-studio"
        )


def content_type(request: Request) -> str:
    """The media type of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises ``HTTPException`` if it is longer than ``max_bytes``."""
    announced = request.headers.get("content-length", "")
    too_long = announced.isdigit() and int(announced) > max_bytes
    body = bytearray()
    if not too_long:
        async for chunk in request.stream():
            body += chunk
            if too_long := len(body) > max_bytes:
                break
    if too_long:
        raise HTTPException(413, f"too_large: more than {max_bytes:,} bytes (max_bytes)")
    return bytes(body)


def page_file(name: str) -> bytes:
    """A file of the page."""
    return files("segbatch.serving").joinpath(name).read_bytes()
