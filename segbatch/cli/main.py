"""The command line: a thin layer over the public functions.

Results go to stdout, everything else to stderr. A command imports what it needs when it runs, so
that ``--help`` and ``query`` load neither torch nor Ray.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segbatch.cli.jobs import cluster_app
from segbatch.cli.labels import labels_app
from segbatch.cli.models import model_app, predict_app
from segbatch.cli.options import (
    Facts,
    JobFile,
    Only,
    Overrides,
    Repair,
    RetryFailed,
    kinds_of,
    print_facts,
)
from segbatch.cli.plan import plan_app
from segbatch.cli.runs import runs_app
from segbatch.errors import Incomplete, SegbatchError

app = typer.Typer(
    rich_markup_mode=None,  # rich would take half of the time of a --help
    name="segbatch",
    help="Batch semantic segmentation of image collections in object storage, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from segbatch import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    job: JobFile,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    only: Only = None,
    repair: Repair = False,
) -> None:
    """Run a job on this machine, or on the Ray cluster of RAY_ADDRESS; resumes by itself."""
    from segbatch.config.job import load_job, refuse_misfits

    loaded = load_job(job, overrides or ())
    kinds = kinds_of(only)
    refuse_misfits(loaded, retry_failed=retry_failed, only=kinds, repair=repair)
    if loaded.kind == "finetune":
        from segbatch.jobs.finetune import finetune

        print_facts(finetune(loaded), Facts.text)
    elif loaded.kind == "evaluate":
        from segbatch.jobs.evaluate import evaluate
        from segbatch.jobs.scoring import as_text

        print(as_text(evaluate(loaded)))
    else:
        from segbatch.jobs.segment import segment

        finished = segment(loaded, retry_failed=retry_failed, only=kinds, repair=repair)
        print_facts(finished.summary(), Facts.text)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything goes.")],
) -> None:
    """The whole way on rendered facades: an S3 server, a small model, a run, SQL."""
    from segbatch.demo.tour import tour

    tour(folder)


for commands in (runs_app, predict_app, plan_app, cluster_app):
    app.add_typer(commands)  # without a name: their commands stand beside `run`
app.add_typer(model_app, name="model")
app.add_typer(labels_app, name="labels")


def main() -> None:
    """Entry point: an error that segbatch raises on purpose is one line and an exit code."""
    try:
        app()
    except SegbatchError as error:
        print(f"segbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)  # `segbatch query … | head`
    except OSError as error:
        print(f"segbatch: {error}; run it again", file=sys.stderr)
        sys.exit(Incomplete.exit_code)
