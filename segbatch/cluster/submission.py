"""A job on Ray's Jobs server: start, watch and stop it, or find it by its id or its output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobErrorType, JobStatus, JobType

from segbatch import storage
from segbatch.cluster.dashboard import GONE_S, Dashboard, Unanswered, connect, last_line
from segbatch.errors import Incomplete, InputError, JobFailed
from segbatch.storage import one_line

# The metadata key that holds the URI of what a job writes, by kind of job.
OUTPUT = {"segment": "run", "finetune": "model", "evaluate": "evaluation"}
PROBE_ID = "segbatch_probe_"  # prefix of jobs that ask for versions; Ray keeps every job it ran
STOPPED = 143  # exit code of a driver that SIGTERM stopped cleanly
STOP_S = 45  # between SIGTERM and SIGKILL, for the driver to commit what is being written
POLL_S = 0.5

# Failures before the driver ran that may not happen again when the job is resubmitted.
_TRANSIENT = {
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
    """A job ended without its answer; ``code`` is its exit code, as of the command line."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Submission:
    """One job of a cluster, by its submission id."""

    id: str
    dashboard: Dashboard

    @property
    def address(self) -> str:
        """URL of the cluster's dashboard."""
        url: str = self.dashboard.get_address()
        return url

    def start(
        self, entrypoint: str, environment: dict[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Submit ``entrypoint``, a shell command, in the runtime environment ``environment``.

        Raises :class:`~segbatch.errors.InputError` for a runtime environment that Ray refuses, and
        what :class:`Dashboard` raises.
        """
        try:
            self.dashboard.submit_job(
                entrypoint=entrypoint,
                runtime_env=environment,
                submission_id=self.id,
                metadata=dict(metadata),
            )
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # from checks on this side
            raise InputError(f"runtime environment: {one_line(error)}") from error

    def details(self) -> JobDetails:
        """The server's current description of the job."""
        return self.dashboard.get_job_info(self.id)

    def wait(self, seconds: float | None = None) -> JobDetails:
        """Wait until the job has ended, and return its details.

        A server that does not answer is asked again for ``GONE_S``. Raises
        :class:`~segbatch.errors.Incomplete` if it stays silent, or the job runs after ``seconds``.
        """
        began = answered = time.monotonic()
        while True:
            try:
                details = self.details()
            except Unanswered:
                if time.monotonic() - answered > GONE_S:
                    raise
            else:
                answered = time.monotonic()
                if details.status.is_terminal():
                    return details
                if seconds is not None and answered - began > seconds:
                    raise Incomplete(f"{self.id}: still {details.status.value.lower()}; try again")
            time.sleep(POLL_S)

    def answer(self, mark: str, seconds: float) -> Any:
        """Wait for the job and return the JSON on the last line of its log that starts with
        ``mark``.

        Raises :class:`NoAnswer` if the job failed or printed no such line, and
        :class:`~segbatch.errors.Incomplete` if it still runs after ``seconds``.
        """
        details = self.wait(seconds)
        log = self.dashboard.get_job_logs(self.id) if details.driver_exit_code is not None else ""
        answers = [line for line in log.splitlines() if line.startswith(mark)]
        if code := exit_code(details) or (not answers and JobFailed.exit_code):
            raise NoAnswer(code, last_line(log) if log else outcome(details))
        return json.loads(answers[-1].removeprefix(mark))

    def stop(self) -> JobDetails:
        """Stop the job cleanly, with SIGTERM; wait for its end and return its details."""
        if self.details().status.is_terminal():
            return self.details()
        self.dashboard.stop_job(self.id)
        return self.wait(STOP_S + 15)


def exit_code(details: JobDetails) -> int:
    """The exit code of a job that has ended, as of the command line."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED
    if details.driver_exit_code is not None:
        code: int = details.driver_exit_code
        return code if code >= 0 else 128 - code
    if details.error_type in _TRANSIENT:
        return Incomplete.exit_code
    return InputError.exit_code  # its runtime environment could not be created


def outcome(details: JobDetails) -> str:
    """A job's status in a few words, with its exit code or the reason of its failure."""
    status = str(details.status.value).lower()
    if details.driver_exit_code is not None:
        return f"{status}, exit code {exit_code(details)}"
    if details.status == JobStatus.FAILED:
        return f"{status}: {last_line(details.message or '')}"
    return status


def find_submission(id_or_output: str, address: str | None) -> Submission:
    """Find a job by its submission id, or the latest job of a run, model or evaluation.

    Without ``address``, the address in the output's ``run.json`` is used. A job that still runs is
    preferred. Raises :class:`~segbatch.errors.InputError` if there is no such job.
    """
    if "/" not in id_or_output and not Path(id_or_output).is_dir():
        return Submission(id_or_output, connect(address))
    uri = storage.normalize(id_or_output)
    recorded = _recorded_submission(uri)
    not_submitted = InputError(
        f"{uri}: its last driver was started with segbatch run, not submitted: it has no job;"
        f" segbatch status {uri} shows it"
    )
    began_without_job = address is None and recorded == {}
    try:
        dashboard = connect(address or (recorded or {}).get("address"))
    except InputError as error:
        if began_without_job:
            raise not_submitted from error
        raise
    jobs = [job for job in list_submissions(dashboard) if output_of(job) == uri]
    jobs.sort(key=lambda job: (not job.status.is_terminal(), job.start_time or 0))
    submission_id = jobs[-1].submission_id if jobs else (recorded or {}).get("id")
    if submission_id is None:
        if began_without_job:
            raise not_submitted
        raise InputError(
            f"{uri}: no job for it at {dashboard.get_address()}; segbatch jobs lists all jobs"
        )
    return Submission(submission_id, dashboard)


def list_submissions(dashboard: Dashboard) -> list[JobDetails]:
    """All jobs that were submitted to a cluster except version probes, the oldest first."""
    jobs: Iterable[JobDetails] = dashboard.list_jobs()
    submitted = [
        job
        for job in jobs
        if job.type == JobType.SUBMISSION and not (job.submission_id or "").startswith(PROBE_ID)
    ]
    return sorted(submitted, key=lambda job: job.start_time or 0)


def output_of(job: JobDetails) -> str | None:
    """The URI of what a job writes; ``None`` for jobs that are not segbatch's."""
    metadata = job.metadata or {}
    return metadata.get(OUTPUT.get(metadata.get("kind", ""), ""))


def job_facts(job: JobDetails) -> dict[str, Any]:
    """A job as a row of ``segbatch jobs``; ``started`` is in seconds since 1970."""
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


def _recorded_submission(uri: str) -> dict[str, Any] | None:
    """``id`` and ``address`` of the last submission in the ``run.json`` of a run or a training;
    empty if it was not submitted, ``None`` without a ``run.json``.
    """
    with storage.translate_errors("cannot read run"):
        try:
            info = json.loads(storage.read_bytes(storage.join(uri, "run.json")))
            return info.get("submission") or {}
        except (AttributeError, FileNotFoundError, ValueError):
            return None
