"""Options of a start, which ``run`` and ``submit`` take in addition to the job file."""

from __future__ import annotations

from collections.abc import Collection

from segbatch.config.job import Job
from segbatch.errors import InputError
from segbatch.results.schema import ERRORS


def check_options(
    job: Job,
    *,
    retry_failed: bool = False,
    only: Collection[str] = (),
    repair: bool = False,
    extend: bool = False,
) -> None:
    """Raises :class:`~segbatch.errors.InputError` for options that do not apply to ``job``."""
    options = {"--retry-failed": retry_failed, "--repair": repair, "--extend": extend}
    for option, given in options.items():
        if given and job.kind != "segment":
            raise InputError(f"{option} is for jobs of kind: segment, not {job.kind}")
    if only and not retry_failed:
        raise InputError("--only needs --retry-failed")
    if unknown := sorted(set(only) - set(ERRORS)):
        raise InputError(f"--only {','.join(unknown)}: no such kind; kinds: {', '.join(ERRORS)}")
