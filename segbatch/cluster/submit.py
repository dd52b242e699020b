"""Submit: a job file, resolved and checked here, to a cluster's Jobs server.

The job travels as text on the standard input of its entrypoint, so that the dashboard shows what
runs and the working folder stays the user's own.
"""

from __future__ import annotations

import getpass
import shlex
import subprocess
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from segbatch import storage
from segbatch.__version__ import __version__
from segbatch.cluster.dashboard import connect
from segbatch.cluster.environment import with_segbatch, with_variables
from segbatch.cluster.submission import OUTPUT, STOP_S, Submission, list_submissions, start
from segbatch.config.job import JOBS, FinetuneJob, Job, SegmentJob, refuse_misfits
from segbatch.config.reading import Document, Key, job_text, read_document, validate
from segbatch.errors import Incomplete, InputError
from segbatch.jobs import stamp as submitted

ZOO = "zoo:"
MAX_ENTRYPOINT = 100_000  # bytes; Linux takes 131,072 in one argument
MIN_SECRET = 4  # characters; less could stand anywhere
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"

LOCATIONS = {
    ("images",),
    *(("images", kind) for kind in ("prefix", "glob", "manifest", "inventory")),
    ("model",),
    ("model", "from"),
    ("model", "backbone_weights"),
    ("dataset",),
    ("output",),
}


def submit(
    job: str | Mapping[str, Any] | Job,
    address: str | None = None,
    *,
    overrides: Sequence[str] = (),
    retry_failed: bool = False,
    only: Collection[str] = (),
    repair: bool = False,
    runtime_env: Mapping[str, Any] | None = None,
    env_vars: Mapping[str, str] | None = None,
    submission_id: str | None = None,
) -> Submission:
    """Send a job to the Ray cluster whose dashboard is at ``address``; returns at once.

    ``retry_failed``, ``only`` and ``repair`` are those of :func:`~segbatch.jobs.segment.segment`.
    ``env_vars`` are set for driver and workers, beside those of ``runtime_env``. Raises
    :class:`~segbatch.errors.InputError` for what is wrong with the job, for a cluster that does not
    answer, or has another version of segbatch.
    """
    document = _document(job, overrides)
    checked = validate(document, JOBS)
    refuse_misfits(checked, retry_failed=retry_failed, only=only, repair=repair)
    refuse_local(document)
    options = ["--retry-failed"] * retry_failed + ["--repair"] * repair
    options += [f"--only={','.join(only)}"] if only else []
    entrypoint = entrypoint_of(document.values, options)
    dashboard = connect(address)
    if submission_id in [known.submission_id for known in list_submissions(dashboard)]:
        raise InputError(f"{submission_id}: a job of this id is there already; give another one")
    metadata = metadata_of(checked)
    environment = with_variables(
        runtime_env or {},
        {STOP_WAIT: str(STOP_S)},
        {**(env_vars or {}), submitted.ADDRESS: dashboard.get_address()},
    )
    with without_values(environment["env_vars"]):
        environment = with_segbatch(dashboard, environment)
        new = Submission(submission_id or f"segbatch_{uuid.uuid4().hex[:16]}", dashboard)
        start(new, entrypoint, environment, metadata)
    return new


def refuse_local(document: Document) -> None:
    """Raises :class:`~segbatch.errors.JobFileError` for a path that only this machine has."""
    for key, uri in _locations(document.values):
        named = uri.startswith(ZOO) or (key[-1] == "backbone_weights" and uri == "imagenet")
        if not named and storage.scheme_of(uri) == "":
            seen = f"file://{storage.normalize(uri)}"
            raise document.error(
                key,
                f"{uri} is on this machine; a cluster reads s3://…, or {seen} if every node of it"
                " has this folder",
            )


def _locations(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every key below ``value`` that holds a location, and which."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _locations(child, (*key, name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _locations(child, (*key, index))
    elif isinstance(value, str) and tuple(k for k in key if isinstance(k, str)) in LOCATIONS:
        yield key, value


def entrypoint_of(values: Mapping[str, Any], options: Sequence[str] = ()) -> str:
    """The command line of a driver, with the job file in it.

    Raises :class:`~segbatch.errors.InputError` for a job that is too long for one.
    """
    text = job_text(values)
    word = "JOB"
    while word in text.splitlines():
        word += "_"
    command = shlex.join(["exec", "python", "-m", "segbatch", "run", "-", *options])
    entrypoint = f"{command} <<'{word}'\n{text}{word}\n"
    size = len(entrypoint.encode())
    if size > MAX_ENTRYPOINT:
        raise InputError(
            f"the job has {size:,} bytes, and what is submitted {MAX_ENTRYPOINT:,} at most: name"
            " the images in a manifest instead of one by one"
        )
    return entrypoint


def metadata_of(job: Job) -> dict[str, str]:
    """What the dashboard and ``segbatch jobs`` show of a job."""
    facts = {"kind": job.kind, "segbatch": __version__}
    if not isinstance(job, FinetuneJob):
        facts["model"] = job.model
    if not isinstance(job, SegmentJob):
        facts["dataset"] = job.dataset
    facts[OUTPUT[job.kind]] = storage.normalize(job.output)
    with suppress(OSError, subprocess.CalledProcessError):
        described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        revision = subprocess.run(described, capture_output=True, text=True, check=True)
        facts["revision"] = revision.stdout.strip()
    with suppress(KeyError, OSError):
        facts["user"] = getpass.getuser()
    return facts


def _document(job: str | Mapping[str, Any] | Job, overrides: Sequence[str]) -> Document:
    if isinstance(job, Job):
        if overrides:
            raise InputError("overrides need a job file or a mapping, not a job that is made")
        return read_document(job.model_dump(mode="json", by_alias=True))
    return read_document(job, overrides)


@contextmanager
def without_values(secrets: Mapping[str, str]) -> Iterator[None]:
    """Values of variables come back in what Ray says of an environment; not in an error of ours."""
    try:
        yield
    except (InputError, Incomplete) as error:
        text = str(error)
        for name, value in secrets.items():
            if name != submitted.ADDRESS and len(value) >= MIN_SECRET:
                text = text.replace(value, f"${name}")
        raise (InputError if isinstance(error, InputError) else Incomplete)(text) from None
