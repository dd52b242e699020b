"""Software: the versions that a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import segbatch

LIBRARIES = ("ray", "torch", "torchvision", "segmentation-models-pytorch")


def software(*more: str) -> dict[str, str]:
    """Versions of segbatch, of what it computes with and of ``more``, and of Python.

    segbatch tells its own: what a submitted job brings along is installed nowhere.
    """
    return {
        "segbatch": segbatch.__version__,
        **{name: version(name) for name in (*LIBRARIES, *more)},
        "python": platform.python_version(),
    }
