"""Remote: a survey that a cluster makes of itself, as a job of its Jobs server.

``python -m segbatch.cluster.remote`` is that job: it counts the images, measures on one worker of
each kind, and prints the survey as one line.
"""

from __future__ import annotations

import json
import shlex
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from segbatch.cluster.dashboard import connect
from segbatch.cluster.environment import with_segbatch, with_variables
from segbatch.cluster.submission import NoAnswer, Submission, start
from segbatch.cluster.submit import MAX_ENTRYPOINT, metadata_of, refuse_local, without_values
from segbatch.cluster.survey import START_S, Effort, Survey, survey_job
from segbatch.config.job import SegmentJob
from segbatch.config.reading import read_document
from segbatch.console import say
from segbatch.errors import Incomplete, InputError, JobFailed, SegbatchError

MARK = "segbatch survey: "
_ERRORS: dict[int, type[SegbatchError]] = {2: InputError, 3: Incomplete}


def survey_remotely(
    job: SegmentJob, effort: Effort, address: str, env_vars: Mapping[str, str] | None = None
) -> Survey:
    """Have the cluster whose dashboard is at ``address`` make the survey; waits for it.

    Raises what the survey raised there, and :class:`~segbatch.errors.InputError` for a cluster that
    does not answer or has another version of segbatch.
    """
    values = job.model_dump(mode="json", by_alias=True)
    refuse_local(read_document(values))
    asked = json.dumps({"job": values, "effort": asdict(effort)})
    entrypoint = shlex.join(["exec", "python", "-m", "segbatch.cluster.remote", asked])
    if len(entrypoint.encode()) > MAX_ENTRYPOINT:
        raise InputError("the job file is too long to be sent: name the images in a manifest")
    dashboard = connect(address)
    metadata = metadata_of(job) | {"kind": "plan"}
    environment = with_variables({}, {}, env_vars or {})
    new = Submission(f"segbatch_plan_{uuid.uuid4().hex[:12]}", dashboard)
    with without_values(env_vars or {}):
        start(new, entrypoint, with_segbatch(dashboard, environment), metadata)
    say(f"measuring at {new.address}, as {new.id}")
    try:
        return Survey.from_json(new.answer(MARK, START_S + effort.list_s + effort.sample_s))
    except NoAnswer as error:
        kind = _ERRORS.get(error.code, JobFailed)
        raise kind(str(error).removeprefix("segbatch: ")) from error
    except BaseException:  # it would go on, and hold a GPU
        dashboard.stop_job(new.id)
        raise


def main() -> None:
    """The job on the cluster."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    try:
        found = survey_job(SegmentJob.model_validate(asked["job"]), Effort(**asked["effort"]))
    except SegbatchError as error:
        print(f"segbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(MARK + json.dumps(found.to_json()), flush=True)


if __name__ == "__main__":
    main()
