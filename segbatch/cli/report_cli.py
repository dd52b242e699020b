"""The command line of ``segbatch report``."""

from __future__ import annotations

from typing import Annotated

import typer

from segbatch.cli.options import RunUri
from segbatch.console import say

report_app = typer.Typer()


@report_app.command()
def report(
    run_uri: RunUri,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The page, any URI.")
    ] = "report.html",
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Coverage by a column of yours.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="What changed against another run.")
    ] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="FILE", help="A table of prices of your own.")
    ] = None,
) -> None:
    """One page to look at: distributions, failures, and a gallery of overlays; needs no network."""
    from segbatch.results.runfolder import open_run

    run = open_run(run_uri)
    before = None if against is None else open_run(against)
    size = run.report(output, by=by, against=before, prices=prices)
    say(f"{output}: {size / 1e6:.1f} MB; open it in a browser")
