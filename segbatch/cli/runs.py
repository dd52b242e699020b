"""``segbatch status``, ``audit``, ``query``, ``diff``, ``report``, ``browse`` and ``export``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from segbatch.cli.options import (
    Facts,
    FactsFormat,
    RunUri,
    print_facts,
)
from segbatch.console import say
from segbatch.errors import Incomplete, InputError, JobFailed

runs_app = typer.Typer()


class Rows(StrEnum):
    """How rows are printed or written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


@runs_app.command()
def status(run_uri: RunUri, format: FactsFormat = Facts.text) -> None:
    """Where a run stands, from storage alone."""
    from segbatch.run import open_run

    print_facts(open_run(run_uri).summary(), format)


@runs_app.command()
def audit(
    run_uri: RunUri,
    deep: Annotated[bool, typer.Option(help="Compare every file's SHA-256.")] = False,
    format: FactsFormat = Facts.text,
) -> None:
    """Count a run's rows against its manifest: 0 clean, 1 lost, twice or damaged, 3 unfinished."""
    from segbatch.run import open_run

    result = open_run(run_uri).audit(deep=deep)
    print_facts(result.to_json(), format)
    raise typer.Exit(result.exit_code)


@runs_app.command()
def query(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN... [SQL]", help="Runs or globs, then one SELECT.")
    ],
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the SQL from a file; - is stdin.")
    ] = None,
    format: Annotated[Rows, typer.Option("--format", help="How rows are written.")] = Rows.table,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Write all rows here, any URI.")
    ] = None,
) -> None:
    """SQL over one or several runs: views images, masks, wide, classes, failures, runs."""
    from segbatch.results.answer import write_answer
    from segbatch.results.query import sql
    from segbatch.run import open_runs

    runs, text = list(arguments), ""
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else _read_text(file)
    elif len(runs) > 1:
        text = runs.pop()
    else:
        raise InputError('no SQL given: segbatch query RUN "SELECT * FROM images LIMIT 10"')
    write_answer(sql(open_runs(runs), text), format.value, output)


@runs_app.command()
def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="The run to start from, any URI.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to hold against it.")],
    format: FactsFormat = Facts.text,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Write a row per image: .parquet, .csv, .json."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many rows of a kind are shown.")] = 20,
) -> None:
    """How two runs over the same images differ: by class, by pixel, and where most."""
    from segbatch.results.answer import SHOWN_ROWS, format_of, write_answer
    from segbatch.run import open_run

    output_format = None if output is None else format_of(output)
    found = open_run(run_a).diff(open_run(run_b))
    for note in found.notes():
        print(note, file=sys.stderr)
    if output_format is not None:
        write_answer(found.images, output_format, output)
    if format is Facts.json:
        print_facts(found.to_json(limit), format)
        return
    print_facts(found.facts, format)
    for title, rows in found.tables(limit).items():
        print(f"\n{title}")
        write_answer(rows, shown_rows=max(limit, SHOWN_ROWS))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


@runs_app.command()
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
    from segbatch.run import open_run

    run = open_run(run_uri)
    before = None if against is None else open_run(against)
    size = run.report(output, by=by, against=before, prices=prices)
    say(f"{output}: {size / 1e6:.1f} MB; open it in a browser")


@runs_app.command("browse")
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


@runs_app.command("export")
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
    from segbatch.run import open_run

    exported = open_run(run_uri).export(folder, to.value, where=where, limit=limit)
    for line in exported.unread:
        say(line)
    say(exported.line(folder))
    if exported.unanswered:
        raise Incomplete("storage did not give some photographs; run it again as it is")
    if exported.unread:
        raise JobFailed("some images could not be used; all others are exported")
