"""Submission: a job on Ray's Jobs API, as anybody sees it who has its id or its run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobErrorType, JobStatus, JobType

from segbatch import storage
from segbatch.cluster.dashboard import Dashboard, connect, last_line
from segbatch.errors import Incomplete, InputError, JobFailed
from segbatch.storage import one_line

OUTPUT = {"segment": "run", "finetune": "model", "evaluate": "evaluation"}  # in the metadata
PROBE_ID = "segbatch_probe_"  # of jobs that ask for a version; Ray forgets no job for good
STOPPED = 143  # as of a driver that SIGTERM ended in order
STOP_S = 45  # between SIGTERM and SIGKILL: a driver finishes and commits what is being written
POLL_S = 0.5

# What ended a job before its driver ran: whether sending it again can help.
_PASSING = {
    kind.value
    for kind in (
        JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
        JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT,
        JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE,
        JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE,
        JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE,
    )
}


class NoAnswer(Exception):
    """A job that was to answer ended with ``code``, by those of the command line."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Submission:
    """One job of a cluster. ``address`` is the URL of the cluster's dashboard."""

    id: str
    dashboard: Dashboard

    @property
    def address(self) -> str:
        url: str = self.dashboard.get_address()
        return url

    def details(self) -> JobDetails:
        """What the server knows of it now."""
        return self.dashboard.get_job_info(self.id)

    def wait(self, seconds: float | None = None) -> JobDetails:
        """Its details once it has ended.

        Raises :class:`~segbatch.errors.Incomplete` where it has not after ``seconds``.
        """
        began = time.monotonic()
        while not (details := self.details()).status.is_terminal():
            if seconds is not None and time.monotonic() - began > seconds:
                raise Incomplete(f"{self.id}: is {details.status.value.lower()} still; ask again")
            time.sleep(POLL_S)
        return details

    def answer(self, mark: str, seconds: float) -> Any:
        """What it prints as JSON behind ``mark``, once it has ended.

        Raises :class:`NoAnswer` where it ends otherwise, :class:`~segbatch.errors.Incomplete` where
        it has not ended after ``seconds``.
        """
        details = self.wait(seconds)
        log = self.dashboard.get_job_logs(self.id) if details.driver_exit_code is not None else ""
        answers = [line for line in log.splitlines() if line.startswith(mark)]
        if code := exit_code(details) or (not answers and JobFailed.exit_code):
            raise NoAnswer(code, last_line(log) if log else outcome(details))
        return json.loads(answers[-1].removeprefix(mark))

    def stop(self) -> JobDetails:
        """End it in order, as SIGTERM does; its details afterwards."""
        if self.details().status.is_terminal():
            return self.details()
        self.dashboard.stop_job(self.id)
        return self.wait(STOP_S + 15)


def start(
    submission: Submission,
    entrypoint: str,
    environment: dict[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Have the cluster run ``entrypoint``. Raises what :class:`Dashboard` does."""
    try:
        submission.dashboard.submit_job(
            entrypoint=entrypoint,
            runtime_env=environment,
            submission_id=submission.id,
            metadata=dict(metadata),
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # found by Ray in this process
        raise InputError(f"runtime environment: {one_line(error)}") from error


def exit_code(details: JobDetails) -> int:
    """What a job that has ended comes to, by the codes of the command line."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED
    if details.driver_exit_code is not None:
        code: int = details.driver_exit_code
        return code if code >= 0 else 128 - code
    if details.error_type in _PASSING:
        return Incomplete.exit_code
    return InputError.exit_code  # its runtime environment cannot be made


def outcome(details: JobDetails) -> str:
    """How a job stands, in some words."""
    status = str(details.status.value).lower()
    if details.driver_exit_code is not None:
        return f"{status}, exit code {exit_code(details)}"
    if details.status == JobStatus.FAILED:
        return f"{status}: {last_line(details.message or '')}"
    return status


def find_submission(what: str, address: str | None) -> Submission:
    """The job with the submission id ``what``; or the latest of the run, model or evaluation there.

    A run knows where it was sent to; ``address`` is asked first. Raises
    :class:`~segbatch.errors.InputError` where there is no such job.
    """
    if not _is_location(what):
        return Submission(what, connect(address))
    uri = storage.normalize(what)
    noted = _noted(uri)
    dashboard = connect(address or noted.get("address"))
    jobs = [job for job in list_submissions(dashboard) if output_of(job) == uri]
    jobs.sort(key=lambda job: (not job.status.is_terminal(), job.start_time or 0))
    submission_id = jobs[-1].submission_id if jobs else noted.get("id")
    if submission_id is None:
        raise InputError(
            f"{uri}: no job for it at {dashboard.get_address()}; segbatch jobs lists what is there"
        )
    return Submission(submission_id, dashboard)


def list_submissions(dashboard: Dashboard) -> list[JobDetails]:
    """Every job that was submitted to a cluster, the oldest first; without what only asks."""
    jobs: Iterable[JobDetails] = dashboard.list_jobs()
    submitted = [
        job
        for job in jobs
        if job.type == JobType.SUBMISSION and not (job.submission_id or "").startswith(PROBE_ID)
    ]
    return sorted(submitted, key=lambda job: job.start_time or 0)


def output_of(job: JobDetails) -> str | None:
    """The URI of what a job of segbatch makes."""
    metadata = job.metadata or {}
    return metadata.get(OUTPUT.get(metadata.get("kind", ""), ""))


def facts_of(job: JobDetails) -> dict[str, Any]:
    """A job as a row of ``segbatch jobs``; ``started`` in seconds since 1970."""
    metadata = job.metadata or {}
    started = (job.start_time or 0) / 1000
    ended = job.end_time / 1000 if job.end_time else time.time()
    return {
        "id": job.submission_id,
        "status": str(job.status.value).lower(),
        "exit_code": exit_code(job) if job.status.is_terminal() else None,
        "kind": metadata.get("kind"),
        "output": output_of(job),
        "model": metadata.get("model"),
        "revision": metadata.get("revision"),
        "user": metadata.get("user"),
        "started": started,
        "took_s": round(ended - started),
    }


def _is_location(what: str) -> bool:
    return "/" in what or Path(what).is_dir()


def _noted(uri: str) -> dict[str, Any]:
    """Id and address of the last submission, from the ``run.json`` of a run or a training."""
    try:
        info = json.loads(storage.read_bytes(storage.join(uri, "run.json")))
        return info.get("submission") or {}
    except (AttributeError, FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise Incomplete(f"cannot read run {one_line(error)}; ask again") from error
