"""The command ``segbatch serve``."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated, Literal, TextIO

from typer import Argument, Option, Typer

from segbatch.cli.groups import MODELS, example
from segbatch.cli.options import Variables
from segbatch.console import say
from segbatch.errors import InputError

serving_app = Typer()


@serving_app.command(
    rich_help_panel=MODELS, epilog=example("segbatch serve zoo:facades --port 8000")
)
def serve(
    model: Annotated[str, Argument(metavar="MODEL", help="A model bundle or zoo:NAME.")],
    *,
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 8000,
    host: Annotated[
        str | None,
        Option(help="Address to listen on; default: this machine only, on a cluster all."),
    ] = None,
    replicas: Annotated[int, Option(min=1, metavar="N", help="Copies of the model.")] = 1,
    max_replicas: Annotated[
        int | None, Option(min=1, metavar="N", help="Add replicas under load, up to N.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Option(help="auto: a GPU if there is one.")
    ] = "auto",
    engine: Annotated[
        Literal["auto", "torch", "openvino"], Option(help="What runs the network.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], Option(help="Precision of the network.")
    ] = "auto",
    long_side: Annotated[
        str, Option(metavar="PIXELS", help="Downscale to this; auto: the model's own; none: never.")
    ] = "auto",
    batch_size: Annotated[
        int | None, Option(min=1, metavar="N", help="Most images the network takes together.")
    ] = None,
    max_bytes: Annotated[
        int | None, Option(min=1, metavar="N", help="Largest image file that is taken.")
    ] = None,
    max_pixels: Annotated[
        int | None, Option(min=1, metavar="N", help="Largest image that is decoded.")
    ] = None,
    label_studio: Annotated[
        bool, Option("--label-studio", help="Be an ML backend of Label Studio, too.")
    ] = False,
    name: Annotated[
        str, Option(help="Name of the application; any but segbatch is served below /NAME.")
    ] = "segbatch",
    address: Annotated[
        str | None, Option(metavar="URL", help="Deploy on the cluster with this dashboard.")
    ] = None,
    env: Variables = None,
) -> None:
    """Serve a model over HTTP: an image in, its mask or its shares out.

    Runs on this machine, or on the Ray at RAY_ADDRESS, until Ctrl-C; with --address it deploys on a
    cluster and returns.
    """
    from segbatch.serving.service import check_name, require_serve, service_of

    check_name(name)
    require_serve()
    predict = {"long_side": _long_side(long_side), "engine": engine, "precision": precision}
    given = {
        "max_replicas": max_replicas,
        "max_bytes": max_bytes,
        "max_pixels": max_pixels,
        "predict": predict | ({} if batch_size is None else {"batch_size": batch_size}),
    }
    service = service_of(
        {
            "model": model,
            "replicas": replicas,
            "device": device,
            "label_studio": label_studio,
        }
        | {key: value for key, value in given.items() if value is not None}
    )
    if address is not None:
        from segbatch.cluster.environment import forwarded_variables
        from segbatch.serving.remote import deploy

        variables = forwarded_variables(env or (), os.environ)
        print(
            deploy(
                service, address, name=name, host=host or "0.0.0.0", port=port, env_vars=variables
            )
        )
        return
    if env:
        raise InputError("--env needs --address: on this machine the variables are there")
    from segbatch.serving.foreground import serve_here

    # While Ray runs, what is printed goes to stderr: Ray prints errors of the whole cluster.
    serve_here(service, host or "127.0.0.1", port, name, partial(_announce, stdout=sys.stdout))


def _announce(url: str, stdout: TextIO) -> None:
    print(url, file=stdout, flush=True)
    say(f"ready; try: curl --data-binary @photo.jpg {url}predict")
    say("Ctrl-C ends it")


def _long_side(text: str) -> int | str | None:
    if text == "none":
        return None
    if text == "auto":
        return text
    if not text.isdecimal() or not int(text):
        raise InputError(f"--long-side {text}: must be a number of pixels, auto or none")
    return int(text)
