"""Commands on runs: status, audit, query, diff, report, browse and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option, Typer

from segbatch.cli.groups import RESULTS, SEGMENT, example
from segbatch.cli.options import (
    Format,
    Prices,
    RunUri,
    print_facts,
    print_runs,
    print_status,
    require_extension,
)
from segbatch.console import say
from segbatch.errors import Incomplete, InputError, JobFailed

runs_app = Typer()

Tiles = Annotated[
    str | None,
    Option(metavar="URL", help="Tiles for the map, https://…/{z}/{x}/{y}.png; none by default."),
]


@runs_app.command(rich_help_panel=SEGMENT, epilog=example("segbatch status s3://bucket/runs/first"))
def status(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="Runs, or globs for a list of them (any URI).")
    ],
    format: Format = "text",
) -> None:
    """Show the progress of one run or several, from storage alone."""
    from segbatch import storage
    from segbatch.run import open_runs

    opened = open_runs(runs)
    if [run.uri for run in opened] == [storage.normalize(runs[0])]:  # and no glob
        print_status(opened[0].summary(), format)
    else:
        print_runs([run.summary() for run in opened], format)


@runs_app.command(
    rich_help_panel=SEGMENT, epilog=example("segbatch audit s3://bucket/runs/first --deep")
)
def audit(
    run_uri: RunUri,
    deep: Annotated[bool, Option(help="Compare every file's SHA-256.")] = False,
    format: Format = "text",
) -> None:
    """Compare a run's rows with its manifest.

    Exit code 0: clean; 1: something is lost, duplicated or damaged; 3: the run is not finished.
    """
    from segbatch.run import open_run

    result = open_run(run_uri).audit(deep=deep)
    print_facts(result.to_json(), format)
    raise Exit(result.exit_code)


@runs_app.command(
    rich_help_panel=RESULTS,
    epilog=example('segbatch query RUN "SELECT avg(coverage.window) FROM images"'),
)
def query(
    arguments: Annotated[
        list[str], Argument(metavar="RUN... [SQL]", help="Runs or globs, one SELECT.")
    ],
    file: Annotated[
        Path | None, Option("-f", "--file", help="Read SQL from a file (-: stdin).")
    ] = None,
    format: Annotated[
        Literal["table", "csv", "json", "parquet"] | None,
        Option("--format", help="Output format; default: table, or by the extension of -o."),
    ] = None,
    output: Annotated[
        str | None,
        Option("-o", "--output", help="Write all rows: .parquet, .csv, .json, .xlsx (any URI)."),
    ] = None,
) -> None:
    """Query one or several runs with SQL.

    The views are images, masks, wide, classes, failures and runs, and buildings(column), which
    groups images by a column of yours.
    """
    from segbatch.results.answer import format_of, write_answer
    from segbatch.results.database import sigint_stops_queries
    from segbatch.results.query import sql
    from segbatch.run import open_runs

    runs = list(arguments)
    if file is not None:
        text = _read_sql(file)
    elif len(runs) > 1:
        text = runs.pop()
    else:
        raise InputError('no SQL given: segbatch query RUN "SELECT * FROM images LIMIT 10"')
    answer_format = format or "table" if output is None else format_of(output, format)
    with sigint_stops_queries():
        write_answer(sql(open_runs(runs), text), answer_format, output)


def _read_sql(file: Path) -> str:
    from segbatch import storage

    if str(file) == "-":
        return storage.decode_text(sys.stdin.buffer.read(), "<stdin>")
    return storage.read_text(str(file), InputError)


@runs_app.command(
    rich_help_panel=RESULTS,
    epilog=example("segbatch diff s3://bucket/runs/first s3://bucket/runs/second"),
)
def diff(
    run_a: Annotated[str, Argument(metavar="RUN_A", help="The first run (any URI).")],
    run_b: Annotated[str, Argument(metavar="RUN_B", help="The run to compare it with.")],
    format: Format = "text",
    output: Annotated[
        str | None,
        Option("-o", "--output", help="Write a row per image: .parquet, .csv, .json, .xlsx."),
    ] = None,
    limit: Annotated[int, Option(min=0, help="Rows to show in each table.")] = 20,
) -> None:
    """Compare two runs over the same images, by class and by pixel."""
    from segbatch.results.answer import SHOWN_ROWS, format_of, write_answer
    from segbatch.results.database import sigint_stops_queries
    from segbatch.run import open_run

    output_format = None if output is None else format_of(output)
    with sigint_stops_queries():
        found = open_run(run_a).diff(open_run(run_b))
        for note in found.notes():
            say(note)
        if output_format is not None:
            write_answer(found.images, output_format, output)
        if format == "json":
            print_facts(found.to_json(limit), format)
            return
        print_facts(found.facts)
        for title, rows in found.tables(limit).items():
            print(f"\n{title}")
            write_answer(rows, shown_rows=max(limit, SHOWN_ROWS))


@runs_app.command(
    "report",
    rich_help_panel=RESULTS,
    epilog=example("segbatch report s3://bucket/runs/first -o report.html"),
)
def report_command(
    run_uri: RunUri,
    output: Annotated[
        str, Option("-o", "--output", metavar="FILE", help="The page to write, .html (any URI).")
    ] = "report.html",
    by: Annotated[
        str | None, Option(metavar="COLUMN", help="Show coverage by this column.")
    ] = None,
    against: Annotated[str | None, Option(metavar="RUN", help="Compare with another run.")] = None,
    prices: Prices = None,
    tiles: Tiles = None,
) -> None:
    """Write one HTML page about a run; it needs no network.

    It shows distributions, failures and a gallery of overlays.
    """
    from segbatch.results.database import sigint_stops_queries
    from segbatch.run import open_run

    require_extension(output, ".html", ".htm")
    run = open_run(run_uri)
    before = None if against is None else open_run(against)
    with sigint_stops_queries():
        size = run.report(output, by=by, against=before, prices=prices, tiles=tiles)
    say(f"{output}: {size / 1e6:.1f} MB; open it in a browser")


@runs_app.command(
    "browse", rich_help_panel=RESULTS, epilog=example("segbatch browse s3://bucket/runs/first")
)
def browse_command(
    run_uri: RunUri,
    *,
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 0,
    host: Annotated[
        str, Option(help="Address to listen on; any but localhost requires a token.")
    ] = "127.0.0.1",
    against: Annotated[
        str | None, Option(metavar="RUN", help="Show another run next to it.")
    ] = None,
    tiles: Tiles = None,
    open_page: Annotated[bool, Option("--open", help="Open the page in your browser.")] = False,
) -> None:
    """Browse a run's images and masks on a local web page.

    Ctrl-C ends it.
    """
    import webbrowser

    from segbatch.review.browse.site import Site

    site = Site(run_uri, host, port, tiles=tiles, against=against)

    def ready() -> None:
        print(site.url, flush=True)
        if open_page and webbrowser.open(site.url):
            say("Ctrl-C ends it")
        else:
            say("open this page in a browser; Ctrl-C ends it")

    site.run(ready)


@runs_app.command(
    "export",
    rich_help_panel=RESULTS,
    epilog=example('segbatch export RUN masks/ --to png --where "coverage.window > 0.4"'),
)
def export_command(
    run_uri: RunUri,
    folder: Annotated[
        str,
        Argument(
            metavar="DIR",
            help="Empty or new output folder (any URI); or that of an interrupted export.",
        ),
    ],
    *,
    to: Annotated[
        Literal[
            "png",
            "overlay",
            "voc",
            "labelme",
            "coco",
            "fiftyone",
            "labelstudio",
            "csv",
            "parquet",
            "geoparquet",
            "geojson",
        ],
        Option("--to", help="What to write."),
    ],
    where: Annotated[
        str | None, Option(metavar="SQL", help="Only images that match: 'coverage.window > 0.4'.")
    ] = None,
    limit: Annotated[
        int | None, Option(min=1, metavar="N", help="Only the first N images.")
    ] = None,
    by: Annotated[
        str | None,
        Option(metavar="COLUMN", help="csv, parquet: a row for each value of this column."),
    ] = None,
) -> None:
    """Export masks, overlays, annotations, rows, or points on a map.

    Annotation formats come with the photographs.
    """
    from segbatch.results.database import sigint_stops_queries
    from segbatch.run import open_run

    with sigint_stops_queries():
        exported = open_run(run_uri).export(folder, to, where=where, limit=limit, by=by)
    for line in exported.unread:
        say(line)
    say(exported.line(folder))
    if exported.unanswered:
        raise Incomplete("storage did not deliver some photographs; run it again as it is")
    if exported.unread:
        raise JobFailed("some images could not be used; all others are exported")
