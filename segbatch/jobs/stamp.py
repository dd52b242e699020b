"""Submitted: what a driver knows of the job on Ray's Jobs API that it is, if it is one."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version

from segbatch.__version__ import __version__

# Software: the versions that a result was made with.


LIBRARIES = ("ray", "torch", "torchvision", "segmentation-models-pytorch")


def software(*more: str) -> dict[str, str]:
    """Versions of segbatch, of what it computes with and of ``more``, and of Python.

    segbatch tells its own: what a submitted job brings along is installed nowhere.
    """
    return {
        "segbatch": __version__,
        **{name: version(name) for name in (*LIBRARIES, *more)},
        "python": platform.python_version(),
    }


ADDRESS = "SEGBATCH_SUBMISSION_ADDRESS"  # set by segbatch submit: the server does not know it


JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for every entrypoint of the Jobs API


def submission() -> dict[str, str | None] | None:
    """Submission ``id`` of this process and the ``address`` that it was sent to.

    ``None`` for a driver that nobody submitted; no address where another than ``segbatch submit``
    did (a KubeRay RayJob, ``ray job submit``).
    """
    try:
        submission_id = json.loads(os.environ[JOB_CONFIG])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    return {"id": submission_id, "address": os.environ.get(ADDRESS)}
