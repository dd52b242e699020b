"""What segbatch uses of Ray that is not its public API, or that Ray is about to remove.

Each use says why it is needed, what upstream says of it, and what holds in a version of Ray without
it. What was found in which version: docs/decisions/0012-what-depends-on-ray.md. Two uses are where
they belong: :class:`~segbatch.cluster.dashboard.Dashboard` uses three private methods of the client
that it extends, and :mod:`segbatch.jobs.runtime.rayerrors` reads tracebacks that Ray quotes.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.exceptions import RayActorError

if TYPE_CHECKING:
    from ray.data import Dataset

ATTEMPTS = 2  # at one block, if its process dies

LOG_LEVEL_LINE = b"Set ray log level from environment variable"

# Logs an error of eighty lines for a lost block. In a Ray that calls it otherwise, they are shown.
BLOCK_ERRORS_LOG = "ray.data._internal.execution.streaming_executor_state"


# ----------------------------------------------------------------------------- blocks that crash


def takes_retries() -> bool:
    """Whether a stage of Ray Data can be given its number of retries.

    Ray 2.64 removes the only way, ``**ray_remote_args`` (ray-project/ray#65227, #65228), and leaves
    the default: a block that kills its process is tried again without end.
    """
    import ray.data

    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def map_blocks(
    dataset: Dataset,
    stage: Callable[..., Any],
    *,
    num_cpus: float,
    batch_size: int | None = None,
    fn_constructor_args: tuple[Any, ...] = (),
    **options: Any,
) -> Dataset:
    """Apply ``stage``, a function or a class, to each block of a dataset, as an Arrow table.

    A block whose process dies is tried ``ATTEMPTS`` times; then it is an error of the execution.
    """
    is_class = isinstance(stage, type)
    if takes_retries():
        retries = ATTEMPTS - 1
        options |= (
            {"max_restarts": -1, "max_task_retries": retries}
            if is_class
            else {"max_retries": retries}
        )
    else:
        attempts: Any = ray.remote(num_cpus=0)(Attempts).remote()
        if is_class:
            stage, fn_constructor_args = LimitedStage, (attempts, stage, *fn_constructor_args)
        else:
            stage = partial(limited, stage=stage, attempts=attempts)
    if is_class:
        options["fn_constructor_args"] = fn_constructor_args
    return dataset.map_batches(
        stage, batch_format="pyarrow", batch_size=batch_size, num_cpus=num_cpus, **options
    )


class Attempts:
    """An actor that knows which processes have begun which blocks of an execution.

    Ray's own count of a task's attempts is private. The id of a task is public, but a stage runs in
    a thread of its own in some actors, and has another id there at each attempt.
    """

    def __init__(self) -> None:
        self._processes: defaultdict[str, set[str]] = defaultdict(set)

    def begin(self, block: str, process: str) -> int:
        """Note that ``process`` works on ``block``; returns how many processes have so far."""
        self._processes[block].add(process)
        return len(self._processes[block])


def limited(block: pa.Table, stage: Callable[[Any], Any], attempts: Any) -> Any:
    """What ``stage`` makes of a block. Raises :class:`DiedTooOften` instead of trying it again."""
    process = f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"
    try:
        begun = ray.get(attempts.begin.remote(name_of(block), process))
    except RayActorError:  # lost with its node: the execution over a deadly block ends as hung
        begun = 1
    if begun > ATTEMPTS:
        raise DiedTooOften(f"the worker's process died {ATTEMPTS} times over the same images")
    return stage(block)


def name_of(block: pa.Table) -> str:
    """A name that a block has again when it is computed again: the hash of its small columns."""
    small = [
        name
        for name, kind in zip(block.schema.names, block.schema.types, strict=True)
        if pa.types.is_primitive(kind) or pa.types.is_string(kind)
    ]
    return sha256(repr(block.select(small).to_pydict()).encode()).hexdigest()


class LimitedStage:
    """A stage that is a class, through :func:`limited`."""

    def __init__(self, attempts: Any, stage: Callable[..., Any], *arguments: Any) -> None:
        self._attempts = attempts
        self._stage = stage(*arguments)

    def __call__(self, block: pa.Table) -> Any:
        return limited(block, self._stage, self._attempts)


class DiedTooOften(Exception):
    """A block has killed its process as often as it may."""


# -------------------------------------------------------------------------- the end of a pipeline


def shut_down(before: Collection[threading.Thread]) -> None:
    """Shut down the executions of Ray Data that were started since ``before``.

    Their thread has the only handle on them (``StreamingExecutor``, private; there is no public
    way to end an iteration from another thread). In a Ray without it, the execution ends when its
    reader gets the next block.
    """
    for thread in set(threading.enumerate()) - set(before):
        stop = getattr(thread, "shutdown", None)
        if callable(stop) and type(thread).__module__.startswith("ray.data."):
            stop(force=True)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keep from stderr the line in which Ray's backend says at its start how much it will log.

    It writes the line itself, past Python, and has no setting for it. Everything else that is
    written meanwhile comes when the start is over.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        try:
            with _stderr_into(held.fileno()):
                yield
                sys.stderr.flush()
        finally:
            held.seek(0)
            os.write(2, b"".join(line for line in held if LOG_LEVEL_LINE not in line))


@contextmanager
def _stderr_into(file: int) -> Iterator[None]:
    """Let file descriptor 2 be another file."""
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def disconnect(*, for_good: bool) -> None:
    """Leave Ray; ``for_good`` where a pipeline that was left early may still call it, which would
    start another Ray and log at length.

    ``auto_init_hook`` is private. In a version of Ray without it, that other Ray is started and
    ends with the process.
    """
    hook: Any = getattr(getattr(ray, "_private", None), "auto_init_hook", None)
    if for_good and hasattr(hook, "enable_auto_connect"):
        hook.enable_auto_connect = False
    ray.shutdown()


# --------------------------------------------------------------------------- nodes of the cluster

# A resource that only the head has. In a Ray without it, the hours of the head count as those of a
# worker of its size.
HEAD = "node:__internal_head__"

# `ray up` leaves its file there on the head, where drivers run, and KubeRay sets this variable in
# its pods. Where neither is, no node is expected to start: a job for GPUs does not wait for one.
BOOTSTRAP = "~/ray_bootstrap_config.yaml"
KUBERAY = "KUBERAY_GEN_RAY_START_CMD"


# ------------------------------------------------------------------------------- the Jobs server

# Set for every entrypoint of a job that was submitted.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# These log every closed socket and every upload. In a Ray that calls them otherwise, that is shown.
JOBS_CLIENT_LOGS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def submission_id() -> str | None:
    """The submission id of this driver; ``None`` if it was not submitted.

    Ray has no public way to ask for it. In a version of Ray that does not set the variable so,
    ``run.json`` holds no submission, and ``segbatch logs`` and ``stop`` need ``--address``.
    """
    try:
        name: str = json.loads(os.environ[JOB_CONFIG])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    return name


def log_header(submission_id: str, entrypoint: str) -> str:
    """The line that Ray writes into the log of a job before the job's own.

    Its wording is not documented. In a version of Ray with another one, the log begins with it and
    with the job file, and is shown from its ten thousandth character on or when the job ends.
    """
    return f"Running entrypoint for job {submission_id}: {entrypoint}\n"


def api_server_url(address: str | None) -> str:
    """URL of the Jobs server of the cluster at ``address``, by default the one on this machine.

    Raises what Ray raises if there is none.
    """
    try:
        from ray.dashboard.utils import ray_address_to_api_server_url
    except ImportError:  # it is private
        from ray.job_submission import JobSubmissionClient

        return str(JobSubmissionClient(address).get_address())
    url: str = ray_address_to_api_server_url(address)
    return url
