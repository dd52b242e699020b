"""segbatch: batch semantic segmentation of image collections in object storage, on Ray.

The public functions are loaded when they are first used, so that asking for one thing does not
import torch and Ray for another.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segbatch.cluster.plan import plan
    from segbatch.cluster.submit import submit
    from segbatch.evaluate import evaluate
    from segbatch.finetune import finetune
    from segbatch.job import load_job
    from segbatch.labels.importing import import_labels
    from segbatch.model.predict import load_model
    from segbatch.results.run import open_run
    from segbatch.segment import segment

__all__ = [
    "evaluate",
    "finetune",
    "import_labels",
    "load_job",
    "load_model",
    "open_run",
    "plan",
    "segment",
    "submit",
]

_HOME = {
    "evaluate": "segbatch.evaluate",
    "finetune": "segbatch.finetune",
    "import_labels": "segbatch.labels.importing",
    "load_job": "segbatch.job",
    "load_model": "segbatch.model.predict",
    "open_run": "segbatch.results.run",
    "plan": "segbatch.cluster.plan",
    "segment": "segbatch.segment",
    "submit": "segbatch.cluster.submit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """``segbatch.segment`` is the function, also once the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
