"""What a result records of its origin: software versions, and the Ray job that made it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from segbatch.__version__ import __version__
from segbatch.jobs.runtime import compat

LIBRARIES = ("ray", "torch", "torchvision", "segmentation-models-pytorch")
ADDRESS = "SEGBATCH_SUBMISSION_ADDRESS"  # set by segbatch submit; the Jobs server does not know it


def software(*more: str) -> dict[str, str]:
    """Versions of segbatch, of the libraries that it computes with, of ``more`` and of Python.

    segbatch's own is a constant, because the package of a submitted job is not installed.
    """
    return {
        "segbatch": __version__,
        **{name: version(name) for name in (*LIBRARIES, *more)},
        "python": platform.python_version(),
    }


def submission() -> dict[str, str | None] | None:
    """The Ray job this driver was submitted as: its ``id``, and the ``address`` it was sent to.

    ``None`` if the driver was not submitted; the address is ``None`` unless ``segbatch submit``
    sent it (a KubeRay RayJob, ``ray job submit``).
    """
    submission_id = compat.submission_id()
    if submission_id is None:
        return None
    return {"id": submission_id, "address": os.environ.get(ADDRESS)}
