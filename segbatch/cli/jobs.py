"""Commands on jobs of a Ray cluster: ``segbatch submit``, ``jobs``, ``logs`` and ``stop``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Exit, Option, Typer

from segbatch.cli.groups import CLUSTER, example
from segbatch.cli.options import (
    Extend,
    Format,
    JobFile,
    Only,
    Overrides,
    Repair,
    RetryFailed,
    Variables,
    kinds_of,
    print_facts,
    print_table,
)
from segbatch.console import say
from segbatch.errors import SegbatchError

if TYPE_CHECKING:
    from segbatch.cluster.follow import JobLog

jobs_app = Typer()

Address = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.",
    ),
]
JobOrOutput = Annotated[
    str, Argument(metavar="RUN|ID", help="The job's output, or its submission id.")
]
COLUMNS = ("id", "status", "kind", "output", "model", "started (UTC)", "took")
LEFT = 130  # exit code of a command that stopped following a job


@jobs_app.command(
    rich_help_panel=CLUSTER, epilog=example("segbatch submit job.yaml --address http://head:8265")
)
def submit(
    job: JobFile,
    *,
    address: Address = None,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    only: Only = None,
    repair: Repair = False,
    extend: Extend = False,
    runtime_env: Annotated[
        str | None, Option(metavar="FILE", help="Ray's runtime environment, in YAML.")
    ] = None,
    runtime_env_json: Annotated[
        str | None, Option(metavar="JSON", help="The same, in JSON.")
    ] = None,
    working_dir: Annotated[
        str | None, Option(metavar="DIR", help="Folder or .zip URI that the job runs in.")
    ] = None,
    env: Variables = None,
    submission_id: Annotated[
        str | None, Option(metavar="ID", help="Submission id; default: a random one.")
    ] = None,
    no_wait: Annotated[
        bool, Option("--no-wait", help="Print the submission id and return.")
    ] = False,
) -> None:
    """Run a job on a Ray cluster, through its Jobs server.

    Follows the job's log and ends with the job's exit code.
    """
    from segbatch.cluster.environment import forwarded_variables, read_environment
    from segbatch.cluster.follow import JobLog
    from segbatch.cluster.submit import submit as submit_job

    submission = submit_job(
        job,
        address,
        overrides=overrides or (),
        retry_failed=retry_failed,
        only=kinds_of(only),
        repair=repair,
        extend=extend,
        runtime_env=read_environment(runtime_env, runtime_env_json, working_dir),
        env_vars=forwarded_variables(env or (), os.environ),
        submission_id=submission_id,
    )
    if no_wait:
        print(submission.id)
        say(
            f"submitted; follow it with: segbatch logs {submission.id} --address"
            f" {submission.address} --follow"
        )
        return
    say(f"submitted as {submission.id} to {submission.address}")
    raise Exit(_follow(JobLog(submission, _write)))


@jobs_app.command(
    rich_help_panel=CLUSTER, epilog=example("segbatch jobs --address http://head:8265")
)
def jobs(address: Address = None, format: Format = "text") -> None:
    """List the jobs of a cluster, the oldest first."""
    from segbatch.cluster.dashboard import connect
    from segbatch.cluster.submission import job_facts, list_submissions

    rows = [job_facts(job) for job in list_submissions(connect(address))]
    if format == "json":
        print_facts(rows, format)
    else:
        _print_table(rows)


@jobs_app.command(
    rich_help_panel=CLUSTER, epilog=example("segbatch logs s3://bucket/runs/first --follow")
)
def logs(
    job: JobOrOutput,
    address: Address = None,
    follow: Annotated[bool, Option("--follow", help="Follow the log to its end.")] = False,
) -> None:
    """Print the log of a job.

    With --follow, ends with the job's exit code.
    """
    from segbatch.cluster.follow import JobLog
    from segbatch.cluster.submission import find_submission

    log = JobLog(find_submission(job, address), _write)
    if follow:
        raise Exit(_follow(log))
    log.write_available()


@jobs_app.command(rich_help_panel=CLUSTER, epilog=example("segbatch stop s3://bucket/runs/first"))
def stop(job: JobOrOutput, address: Address = None) -> None:
    """Stop a job cleanly, so that it can be resumed.

    Waits until the job has stopped.
    """
    from segbatch.cluster.submission import find_submission, outcome, output_of
    from segbatch.run import open_run

    submission = find_submission(job, address)
    details = submission.stop()
    say(f"{submission.id}: {outcome(details)}")
    output = output_of(details)
    if output is None or (details.metadata or {}).get("kind") != "segment":
        return
    try:
        print_facts(open_run(output).summary())
    except SegbatchError as error:  # the run had not begun, or we may not read its storage
        say(str(error))


def _follow(log: JobLog) -> int:
    """Follow a job to its end, or until the user leaves; the exit code."""
    from segbatch.cluster.submission import exit_code, outcome

    submission = log.submission
    try:
        details = log.follow()
    except KeyboardInterrupt:
        if not _wants_stop():
            say(
                f"the job goes on; follow it again with: segbatch logs {submission.id} --address"
                f" {submission.address} --follow"
            )
            return LEFT
        say("stopping the job; it first commits what is being written")
        details = submission.stop()
        log.write_available()
    say(f"{submission.id}: {outcome(details)}")
    return exit_code(details)


def _wants_stop() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        answer = typer.prompt("\nstop the job, or leave it running? [s/l]", default="l", err=True)
    except (typer.Abort, KeyboardInterrupt):
        return False
    return str(answer).strip().lower().startswith("s")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from datetime import UTC, datetime

    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        started = datetime.fromtimestamp(row["started"], UTC)
        minutes, seconds = divmod(row["took_s"], 60)
        cells = [row[name] or "-" for name in COLUMNS[:5]]
        lines.append((*cells, f"{started:%Y-%m-%d %H:%M:%S}", f"{minutes}:{seconds:02d}"))
    print_table(lines)
