"""The command line of ``segbatch labels suggest``."""

from __future__ import annotations

import csv
import io
from typing import Annotated

import typer

from segbatch.cli.facts import Facts, FactsFormat, print_facts
from segbatch.cli.options import RunUri
from segbatch.errors import Incomplete, InputError

suggest_app = typer.Typer()


@suggest_app.command("suggest")
def suggest_command(
    run: RunUri,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to, any URI.")],
    *,
    count: Annotated[int, typer.Option(min=1, help="Images, at most.")] = 20,
    by: Annotated[
        str, typer.Option(help="uncertainty, disagreement, failures or diverse.")
    ] = "uncertainty",
    against: Annotated[
        str | None, typer.Option(metavar="RUN_B", help="The run that it disagrees with.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET", help="Leave out what is in this labelled dataset."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Among these only: a URI a line, or a CSV with uri."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="How labels are written: labelme or coco (CVAT).")
    ] = "labelme",
    format: FactsFormat = Facts.text,
) -> None:
    """Images of a run that are worth labelling, with their masks as polygons to correct."""
    from segbatch import storage
    from segbatch.console import say
    from segbatch.labels.known import contents_of
    from segbatch.results.runfolder import open_run
    from segbatch.review.suggest.suggest import Labelled, suggest

    opened = open_run(run)
    uris: set[str] = set()
    digests: set[str] = set()
    for dataset in exclude or ():
        contents = contents_of(dataset)
        uris |= contents.keys()
        digests |= set(contents.values())
    suggestions = suggest(
        opened,
        folder,
        count=count,
        by=by,
        against=None if against is None else open_run(against),
        images=None if images is None else read_uris(images),
        labelled=Labelled(uris, digests),
        to=to,
    )
    print_facts(suggestions.to_json() if format is Facts.json else suggestions.facts(), format)
    if suggestions.unanswered and not suggestions.images:
        raise Incomplete("storage did not give the images to look at; run it again as it is")
    if suggestions.images and to == "labelme" and storage.is_local(suggestions.folder):
        say(f"correct them with: labelme {suggestions.folder} --nodata --autosave")
    if suggestions.images:
        say(
            f"then take them back with: segbatch labels import {suggestions.folder} DATASET"
            f" --from {to} --append"
        )


def read_uris(where: str) -> list[str]:
    """The URIs of a list of images: a line each, or the column ``uri`` of a CSV.

    Raises :class:`~segbatch.errors.InputError` where there is none.
    """
    from segbatch import storage

    try:
        text = storage.read_input(where, InputError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--images {where}: is no text in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    found = (
        [row["uri"] for row in reader]
        if "uri" in (reader.fieldnames or ())
        else [line.strip() for line in text.splitlines()]
    )
    uris = list(dict.fromkeys(uri for uri in found if uri))
    if not uris:
        raise InputError(f"--images {where}: names no image: a URI a line, or a CSV with uri")
    return uris
