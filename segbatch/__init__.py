"""Batch semantic segmentation of image collections in object storage, on Ray.

The public functions are imported on first use, so that one which needs neither torch nor Ray does
not wait for their import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segbatch.__version__ import __version__

if TYPE_CHECKING:
    from segbatch.cluster.jobplan import plan
    from segbatch.cluster.submit import submit
    from segbatch.config.job import load_job
    from segbatch.jobs.evaluate import evaluate
    from segbatch.jobs.finetune import finetune
    from segbatch.jobs.segment import segment
    from segbatch.labels.importing import import_labels
    from segbatch.model.predict import load_model
    from segbatch.run import open_run

__all__ = [
    "__version__",
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

_MODULES = {
    "evaluate": "segbatch.jobs.evaluate",
    "finetune": "segbatch.jobs.finetune",
    "import_labels": "segbatch.labels.importing",
    "load_job": "segbatch.config.job",
    "load_model": "segbatch.model.predict",
    "open_run": "segbatch.run",
    "plan": "segbatch.cluster.jobplan",
    "segment": "segbatch.jobs.segment",
    "submit": "segbatch.cluster.submit",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
