"""Submit a job file, checked and resolved on this machine, to a cluster's Jobs server.

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
from segbatch.cluster.submission import OUTPUT, STOP_S, Submission, list_submissions
from segbatch.config.images import SOURCES
from segbatch.config.job import JOBS, FinetuneJob, Job, SegmentJob
from segbatch.config.reading import JobDocument, Key, job_text, read_document, validate
from segbatch.errors import Incomplete, InputError
from segbatch.jobs import stamp
from segbatch.jobs.options import check_options

ZOO = "zoo:"
MAX_ENTRYPOINT = 100_000  # bytes; Linux allows 131,072 in one argument
MIN_SECRET = 4  # characters; shorter values occur by chance in any message
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"

# The keys of job files that hold a location, besides those of `images:`.
LOCATIONS = {
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
    extend: bool = False,
    runtime_env: Mapping[str, Any] | None = None,
    env_vars: Mapping[str, str] | None = None,
    submission_id: str | None = None,
) -> Submission:
    """Send a job to the Ray cluster whose dashboard is at ``address``; returns at once.

    ``retry_failed``, ``only``, ``repair`` and ``extend`` are those of
    :func:`~segbatch.jobs.segment.segment`.
    ``env_vars`` are set for the driver and the workers and override those of ``runtime_env``.
    Raises :class:`~segbatch.errors.InputError` for an invalid job, for a cluster that does not
    answer, and for one that has another version of segbatch.
    """
    document = _read(job, overrides)
    checked = validate(document, JOBS)
    check_options(checked, retry_failed=retry_failed, only=only, repair=repair, extend=extend)
    refuse_local_paths(document)
    options = ["--retry-failed"] * retry_failed + ["--repair"] * repair + ["--extend"] * extend
    options += [f"--only={','.join(only)}"] if only else []
    entrypoint = entrypoint_of(document.values, options)
    dashboard = connect(address)
    if submission_id in [known.submission_id for known in list_submissions(dashboard)]:
        raise InputError(f"{submission_id}: a job with this id already exists; choose another id")
    metadata = metadata_of(checked)
    environment = with_variables(
        runtime_env or {},
        {STOP_WAIT: str(STOP_S)},
        {**(env_vars or {}), stamp.ADDRESS: dashboard.get_address()},
    )
    with values_hidden(environment["env_vars"]):
        environment = with_segbatch(dashboard, environment)
        submission = Submission(submission_id or f"segbatch_{uuid.uuid4().hex[:16]}", dashboard)
        submission.start(entrypoint, environment, metadata)
    return submission


def _read(job: str | Mapping[str, Any] | Job, overrides: Sequence[str]) -> JobDocument:
    if isinstance(job, Job):
        if overrides:
            raise InputError("overrides need a job file or a mapping, not a job object")
        return read_document(job.model_dump(mode="json", by_alias=True))
    return read_document(job, overrides)


def refuse_local_paths(document: JobDocument) -> None:
    """Raises :class:`~segbatch.errors.JobFileError` for a path on this machine's own disk."""
    for key, uri in _locations(document.values):
        is_name = key[-1] == "backbone_weights" and uri == "imagenet"
        if not is_name and (problem := out_of_reach(uri)):
            raise document.error(key, problem)


def out_of_reach(uri: str) -> str | None:
    """Why the nodes of a cluster cannot read ``uri``; ``None`` if they can."""
    if uri.startswith(ZOO) or storage.scheme_of(uri) != "":
        return None
    return (
        f"{uri} is on this machine; a cluster reads s3://…, or file://{storage.normalize(uri)} if"
        " every node has this folder"
    )


def _locations(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every key below ``value`` that holds a location, with the location."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _locations(child, (*key, name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _locations(child, (*key, index))
    elif isinstance(value, str) and _is_location(tuple(k for k in key if isinstance(k, str))):
        yield key, value


def _is_location(names: tuple[str, ...]) -> bool:
    """Whether the key of these names holds a location; a panorama has a source within it."""
    return names in LOCATIONS or (names[0] == "images" and SOURCES.keys() >= {*names[1:]})


def entrypoint_of(values: Mapping[str, Any], options: Sequence[str] = ()) -> str:
    """The shell command of a job's driver, with the job file in it.

    Raises :class:`~segbatch.errors.InputError` for a job file that is too long.
    """
    text = job_text(values)
    delimiter = "JOB"
    while delimiter in text.splitlines():
        delimiter += "_"
    command = shlex.join(["exec", "python", "-m", "segbatch", "run", "-", *options])
    entrypoint = f"{command} <<'{delimiter}'\n{text}{delimiter}\n"
    refuse_too_long(entrypoint)
    return entrypoint


def refuse_too_long(entrypoint: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a command that Linux would not start."""
    size = len(entrypoint.encode())
    if size > MAX_ENTRYPOINT:
        raise InputError(
            f"the job file is too long to submit: {size:,} bytes of at most {MAX_ENTRYPOINT:,};"
            " list the images in a manifest instead"
        )


def metadata_of(job: Job) -> dict[str, str]:
    """The metadata of a job that the dashboard and ``segbatch jobs`` show."""
    metadata = {"kind": job.kind, "segbatch": __version__}
    if not isinstance(job, FinetuneJob):
        metadata["model"] = job.model
    if not isinstance(job, SegmentJob):
        metadata["dataset"] = job.dataset
    metadata[OUTPUT[job.kind]] = storage.normalize(job.output)
    with suppress(OSError, subprocess.CalledProcessError):
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        revision = subprocess.run(describe, capture_output=True, text=True, check=True)
        metadata["revision"] = revision.stdout.strip()
    with suppress(KeyError, OSError):
        metadata["user"] = getpass.getuser()
    return metadata


@contextmanager
def values_hidden(variables: Mapping[str, str]) -> Iterator[None]:
    """Replace the values of ``variables`` by ``$NAME`` in errors, where Ray may quote them."""
    try:
        yield
    except (InputError, Incomplete) as error:
        text = str(error)
        for name, value in variables.items():
            if name != stamp.ADDRESS and len(value) >= MIN_SECRET:
                text = text.replace(value, f"${name}")
        raise (InputError if isinstance(error, InputError) else Incomplete)(text) from None
