"""The command line of ``segbatch export``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from segbatch.cli.options import RunUri
from segbatch.console import say
from segbatch.errors import Incomplete, JobFailed

export_app = typer.Typer()


class Target(StrEnum):
    """What the images of a run are exported as."""

    png = "png"
    overlay = "overlay"
    voc = "voc"
    labelme = "labelme"
    coco = "coco"
    fiftyone = "fiftyone"
    csv = "csv"
    parquet = "parquet"


@export_app.command("export")
def export_command(
    run_uri: RunUri,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="An empty or a new folder, any URI; or where it ended early."
        ),
    ],
    *,
    to: Annotated[Target, typer.Option("--to", help="What is written.")],
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Only images that fit: 'coverage.window > 0.4'."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N of them, by image_id.")
    ] = None,
) -> None:
    """Masks, overlays, or photographs with their masks as other tools read them; or the rows."""
    from segbatch.results.runfolder import open_run

    exported = open_run(run_uri).export(folder, to.value, where=where, limit=limit)
    for line in exported.unread:
        say(line)
    say(exported.line(folder))
    if exported.unanswered:
        raise Incomplete("storage did not give some photographs; run it again as it is")
    if exported.unread:
        raise JobFailed("some images could not be used; all others are exported")
