"""Options: what several commands take, and what goes together with what."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import typer

from segbatch.errors import InputError

if TYPE_CHECKING:
    from segbatch.config.job import Job

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="Job file, any URI; - is stdin.")]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="The run's folder, any URI.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: predict.batch_size=64."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Take failed images up again.")]
Only = Annotated[
    str | None, typer.Option(metavar="KIND,…", help="With --retry-failed: these kinds only.")
]
Repair = Annotated[
    bool, typer.Option("--repair", help="First move damaged files away, and do them again.")
]


def kinds_of(only: str | None) -> list[str]:
    """The kinds of error that ``--only`` names."""
    return [kind.strip() for kind in (only or "").split(",") if kind.strip()]


def refuse_misfits(job: Job, *, retry_failed: bool, only: Collection[str], repair: bool) -> None:
    """Raises :class:`~segbatch.errors.InputError` for what ``job`` has nothing to do with."""
    if only and not retry_failed:
        raise InputError("--only goes with --retry-failed")
    for option, given in (("--retry-failed", retry_failed), ("--repair", repair)):
        if given and job.kind != "segment":
            raise InputError(f"{option} is for kind: segment, and this job is {job.kind}")
