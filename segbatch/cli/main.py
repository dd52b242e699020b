"""The command line: a thin layer over the public functions.

Results go to stdout, everything else to stderr. A command imports what it needs when it runs, so
that ``--help`` and ``query`` load neither torch nor Ray.
"""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Context, Exit, Option, Typer

from segbatch.__version__ import __version__
from segbatch.cli.groups import FIRST, MODELS, SEGMENT, CommandsByTask, example
from segbatch.cli.jobs import jobs_app
from segbatch.cli.labels import labels_app
from segbatch.cli.models import model_app, predict_app
from segbatch.cli.options import (
    Extend,
    Format,
    JobFile,
    Only,
    Overrides,
    Repair,
    RetryFailed,
    kinds_of,
    print_facts,
    print_status,
)
from segbatch.cli.plan import plan_app
from segbatch.cli.runs import runs_app
from segbatch.cli.serving import serving_app
from segbatch.config.templates import template
from segbatch.console import quiet
from segbatch.errors import Incomplete, JobFailed, SegbatchError

STDOUT, STDERR = 1, 2  # file descriptors

app = Typer(
    cls=CommandsByTask,
    rich_markup_mode=None,  # Rich would take half of the time of --help
    name="segbatch",
    help="Batch semantic segmentation of image collections in object storage, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: prints errors of segbatch as one line and ends with their exit code."""
    code: Any = 0
    _prepare_streams()
    # Rich puts something else in the place of a broken stdout.
    stdout = os.dup(STDOUT)
    try:
        app()
    except SegbatchError as error:
        print(f"segbatch: {error}", *getattr(error, "__notes__", ()), sep="\n  ", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"segbatch: {error}; run it again", file=sys.stderr)
        code = Incomplete.exit_code
    except SystemExit as ended:
        code = ended.code
        # Typer and Rich end with 1 when any pipe breaks.
        if isinstance(ended.__context__, BrokenPipeError) and not _is_unread(STDERR):
            if _is_unread(stdout):
                code = 0  # `segbatch query … | head`
            else:
                print(f"segbatch: {ended.__context__}; run it again", file=sys.stderr)
                code = Incomplete.exit_code
    if _is_unread(stdout):  # or else Python would fail to write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    sys.exit(code)


def _prepare_streams() -> None:
    """Open streams that are closed, and let stdout print ``?`` for what its encoding does not have.

    A stream is missing after ``<&-`` or ``>&-``, which some daemons do.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _is_unread(output: int) -> bool:
    """Whether an open file is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(output, 0)  # errors are reported in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise Exit


@app.callback()
def _root(
    context: Context,
    is_quiet: Annotated[
        bool, Option("--quiet", "-q", help="Print results and errors only.")
    ] = False,
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if is_quiet:
        context.with_resource(quiet())


@app.command(
    rich_help_panel=SEGMENT, epilog=example("segbatch run job.yaml --set predict.batch_size=16")
)
def run(
    job: JobFile,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    only: Only = None,
    repair: Repair = False,
    extend: Extend = False,
) -> None:
    """Run a job, on this machine or on the Ray cluster at RAY_ADDRESS.

    A job whose output exists already resumes automatically.
    """
    from segbatch.config.job import load_job
    from segbatch.jobs.options import check_options

    loaded = load_job(job, overrides or ())
    kinds = kinds_of(only)
    check_options(loaded, retry_failed=retry_failed, only=kinds, repair=repair, extend=extend)
    if loaded.kind == "segment":
        from segbatch.cli.nextsteps import after_failure, say_what_next
        from segbatch.jobs.segment import segment

        try:
            finished = segment(
                loaded, retry_failed=retry_failed, only=kinds, repair=repair, extend=extend
            )
        except JobFailed as failure:
            after_failure(failure, loaded.output, job, overrides or ())
            raise
        print_status(finished.summary())
        say_what_next(loaded.output)
    elif loaded.kind == "finetune":
        from segbatch.jobs.finetune import finetune

        print_facts(finetune(loaded))
    else:
        from segbatch.jobs.evaluate import evaluate
        from segbatch.jobs.scoring import as_text

        print(as_text(evaluate(loaded)))


@app.command(rich_help_panel=FIRST, epilog=example("segbatch init segment > job.yaml"))
def init(
    kind: Annotated[
        Literal["segment", "finetune", "evaluate"],
        Argument(metavar="segment|finetune|evaluate", help="The kind of job."),
    ],
) -> None:
    """Print a job file to start from: segbatch init segment > job.yaml"""
    print(template(kind), end="")


@app.command(rich_help_panel=FIRST, epilog=example("segbatch doctor s3://bucket/runs/"))
def doctor(
    uri: Annotated[
        str | None, Argument(metavar="URI", help="A folder to list, write to and read from.")
    ] = None,
    format: Format = "text",
) -> None:
    """Show what this machine can run, and whether it reaches storage.

    Exit code 1 if the folder cannot be listed, written to or read from.
    """
    from segbatch.jobs.doctor import examine

    facts = examine(uri)
    print_facts(facts, format)
    if any(isinstance(value, str) and value.startswith("no:") for value in facts.values()):
        raise Exit(1)


@app.command(rich_help_panel=FIRST, epilog=example("segbatch demo tour --photos photos/"))
def demo(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder for everything it makes.")],
    photos: Annotated[
        str | None, Option("--photos", help="Photographs of your own, to segment first (any URI).")
    ] = None,
) -> None:
    """Take a tour: an S3 server, rendered facades, a model, a run, SQL."""
    from segbatch.demo.tour import tour

    tour(folder, photos)


for commands in (plan_app, predict_app, serving_app, runs_app, jobs_app):
    app.add_typer(commands)  # without a name, so that their commands are on the top level
app.add_typer(model_app, name="model", rich_help_panel=MODELS)
app.add_typer(labels_app, name="labels", rich_help_panel=MODELS)
