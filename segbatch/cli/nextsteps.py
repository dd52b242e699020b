"""The commands that a user may want to type after a run has ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shlex import quote

from segbatch.console import say
from segbatch.errors import JobFailed, SegbatchError
from segbatch.run import open_run

STDIN = "-"


def say_what_next(run_uri: str) -> None:
    """Say on a terminal how to look at a finished run."""
    if sys.stderr.isatty():
        run = quote(run_uri)
        say(f"\nlook at it: segbatch browse {run}")
        say(f"        or: segbatch report {run} -o report.html")


def after_failure(failure: JobFailed, run_uri: str, job: str, overrides: Sequence[str]) -> None:
    """Add notes to ``failure`` of a run: how to see the failed images, and what to do about them.

    A job that was read from standard input, as a submitted one is, cannot be named again.
    """
    try:
        run = open_run(run_uri)
    except SegbatchError:
        return
    num_failed = sum(run.info.counts.failed.values())
    if not num_failed:
        return
    select = '"SELECT uri, error, message FROM failures"'
    failure.add_note(f"which, and why:     segbatch query {quote(run_uri)} {select}")
    if job == STDIN:
        return
    again = " ".join(["segbatch run", quote(job), *(f"--set {quote(key)}" for key in overrides)])
    failure.add_note(f"process them again: {again} --retry-failed")
    if run.finished:  # or more may fail
        percent = min(100, 100 * num_failed // run.info.manifest.rows + 1)
        failure.add_note(
            f"accept them:        {again} --set limits.max_failed_fraction={percent / 100:g}"
        )
