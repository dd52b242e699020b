"""The command line of ``segbatch browse``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from segbatch.cli.options import RunUri

browse_app = typer.Typer()


@browse_app.command("browse")
def browse_command(
    run_uri: RunUri,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Another than this machine's own: the URL then holds a token.")
    ] = "127.0.0.1",
) -> None:
    """Look around in a run: a page for your browser, on this machine, until Ctrl-C."""
    from segbatch.review.browse.site import Site

    site = Site(run_uri, host, port)
    print(site.url, flush=True)
    print("open this page in a browser; Ctrl-C ends it", file=sys.stderr)
    site.run()
