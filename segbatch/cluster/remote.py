"""A survey that runs on a cluster as a job of its Jobs server, and the request for it.

``python -m segbatch.cluster.remote`` is the job: it counts the images, measures on one worker of
each kind of node, and prints the survey as one line of JSON.
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
from segbatch.cluster.submission import NoAnswer, Submission
from segbatch.cluster.submit import (
    metadata_of,
    refuse_local_paths,
    refuse_too_long,
    values_hidden,
)
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
    """Run the survey on the cluster whose dashboard is at ``address``, and wait for it.

    Raises what the survey raises there, and :class:`~segbatch.errors.InputError` for a cluster that
    does not answer or has another version of segbatch.
    """
    values = job.model_dump(mode="json", by_alias=True)
    refuse_local_paths(read_document(values))
    request = json.dumps({"job": values, "effort": asdict(effort)})
    entrypoint = shlex.join(["exec", "python", "-m", "segbatch.cluster.remote", request])
    refuse_too_long(entrypoint)
    dashboard = connect(address)
    metadata = metadata_of(job) | {"kind": "plan"}
    environment = with_variables({}, {}, env_vars or {})
    submission = Submission(f"segbatch_plan_{uuid.uuid4().hex[:12]}", dashboard)
    with values_hidden(env_vars or {}):
        submission.start(entrypoint, with_segbatch(dashboard, environment), metadata)
    say(f"measuring at {submission.address}, as job {submission.id}")
    try:
        answer = submission.answer(MARK, START_S + effort.list_s + effort.sample_s)
    except NoAnswer as error:
        kind = _ERRORS.get(error.code, JobFailed)
        raise kind(str(error).removeprefix("segbatch: ")) from error
    except BaseException:  # the job would go on and hold a GPU
        dashboard.stop_job(submission.id)
        raise
    return Survey.from_json(answer)


def main() -> None:
    """Run the survey that the first argument asks for, in JSON, and print it."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    try:
        survey = survey_job(SegmentJob.model_validate(request["job"]), Effort(**request["effort"]))
    except SegbatchError as error:
        print(f"segbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(MARK + json.dumps(survey.to_json()), flush=True)


if __name__ == "__main__":
    main()
