"""The command line of a cluster: ``segbatch submit``, ``jobs``, ``logs`` and ``stop``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbatch.cli.options import (
    Facts,
    FactsFormat,
    JobFile,
    Only,
    Overrides,
    Repair,
    RetryFailed,
    kinds_of,
    print_facts,
)
from segbatch.console import say
from segbatch.errors import SegbatchError

if TYPE_CHECKING:
    from segbatch.cluster.follow import JobLog

cluster_app = typer.Typer()

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's dashboard; default: of RAY_API_SERVER_ADDRESS."
    ),
]
What = Annotated[str, typer.Argument(metavar="RUN|ID", help="What it makes, or its submission id.")]
LOOKED_AWAY = 130


@cluster_app.command()
def submit(
    job: JobFile,
    *,
    address: Address = None,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    only: Only = None,
    repair: Repair = False,
    runtime_env: Annotated[
        str | None, typer.Option(metavar="FILE", help="Ray's runtime environment, in YAML.")
    ] = None,
    runtime_env_json: Annotated[
        str | None, typer.Option(metavar="JSON", help="The same, written out.")
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder or .zip URI that the job runs in.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Send a variable of this shell along."),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Its name; default: one that is free.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the submission id and leave.")
    ] = False,
) -> None:
    """Run a job on a Ray cluster, through its Jobs server; follows it, and ends with its code."""
    from segbatch.cluster.environment import forwarded_variables, read_environment
    from segbatch.cluster.follow import JobLog
    from segbatch.cluster.submit import submit as send

    submission = send(
        job,
        address,
        overrides=overrides or (),
        retry_failed=retry_failed,
        only=kinds_of(only),
        repair=repair,
        runtime_env=read_environment(runtime_env, runtime_env_json, working_dir),
        env_vars=forwarded_variables(env or (), os.environ),
        submission_id=submission_id,
    )
    again = f"{submission.id} --address {submission.address}"
    if no_wait:
        print(submission.id)
        say(f"submitted; follow it with: segbatch logs {again} --follow")
        return
    say(f"submitted as {submission.id} to {submission.address}")
    raise typer.Exit(_watch(JobLog(submission, _show), again))


@cluster_app.command()
def jobs(address: Address = None, format: FactsFormat = Facts.text) -> None:
    """The jobs of a cluster, the oldest first."""
    from segbatch.cluster.dashboard import connect
    from segbatch.cluster.submission import job_facts, list_submissions

    rows = [job_facts(job) for job in list_submissions(connect(address))]
    if format is Facts.json:
        print_facts(rows, format)
    else:
        _print_table(rows)


@cluster_app.command()
def logs(
    what: What,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends.")] = False,
) -> None:
    """What a job has said; with --follow ends with the job's exit code."""
    from segbatch.cluster.follow import JobLog
    from segbatch.cluster.submission import find_submission

    submission = find_submission(what, address)
    log = JobLog(submission, _show)
    if follow:
        raise typer.Exit(_watch(log, f"{submission.id} --address {submission.address}"))
    log.write_available()


@cluster_app.command()
def stop(what: What, address: Address = None) -> None:
    """End a job in order, so that submitting it again goes on; waits until it has stopped."""
    from segbatch.cluster.submission import find_submission, outcome, output_of
    from segbatch.run import open_run

    submission = find_submission(what, address)
    details = submission.stop()
    say(f"{submission.id}: {outcome(details)}")
    output = output_of(details)
    if output is None or (details.metadata or {}).get("kind") != "segment":
        return
    try:
        print_facts(open_run(output).summary(), Facts.text)
    except SegbatchError as error:  # it had not begun, or its storage is not ours to read
        say(str(error))


def _watch(log: JobLog, again: str) -> int:
    """Follow a job to its end, or until the user looks away; the exit code."""
    from segbatch.cluster.submission import exit_code, outcome

    try:
        details = log.follow()
    except KeyboardInterrupt:
        if not _wants_stop():
            say(f"it goes on; look again with: segbatch logs {again} --follow")
            return LOOKED_AWAY
        say("stopping it; what is being written is finished first")
        details = log.submission.stop()
        log.write_available()
    say(f"{log.submission.id}: {outcome(details)}")
    return exit_code(details)


def _wants_stop() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        answer = typer.prompt("\nstop the job, or only look away? [s/l]", default="l", err=True)
    except (typer.Abort, KeyboardInterrupt):
        return False
    return str(answer).strip().lower().startswith("s")


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from datetime import UTC, datetime

    header = ("id", "status", "kind", "output", "model", "started", "took")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        started = datetime.fromtimestamp(row["started"], UTC)
        minutes, seconds = divmod(row["took_s"], 60)
        cells = [row[name] or "-" for name in ("id", "status", "kind", "output", "model")]
        lines.append((*cells, f"{started:%Y-%m-%d %H:%M:%S}", f"{minutes}:{seconds:02d}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
